// The program behind `go generate`: writes the generated files of package qwen anew. It runs in the
// package's folder, inside the repository.
package main

import (
	"log"
	"os"

	"github.com/libqwen/libqwen/bindings/go/internal/gen"
)

func main() {
	files, err := gen.Files("../..")
	if err != nil {
		log.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
