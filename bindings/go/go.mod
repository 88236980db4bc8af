module github.com/libqwen/libqwen/bindings/go

go 1.24
