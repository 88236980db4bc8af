# The commands of the Go binding. Included by the Makefile.

GO ?= go
# An installed tree, which the binding finds by pkg-config as it would any other.
STAGE := $(CURDIR)/build/stage
# Go does not see that a C header has changed; it sees changed flags.
GO_ENV = cd bindings/go && export PKG_CONFIG_PATH=$(STAGE)/lib/pkgconfig LD_LIBRARY_PATH=$(STAGE)/lib \
	CGO_CFLAGS="-O2 -g -DQWEN_HEADER=$$(cksum < ../../include/qwen.h | cut -d ' ' -f 1)" &&

# The example server, whose tests have programs of others: OpenAI's client, lm-eval, and a browser.
SERVER := bindings/go/examples/server

.PHONY: stage go-deps go-browser go-chat go-test go-generate go-bench go-screenshot

stage: lib
	@$(MAKE) -s install PREFIX=$(STAGE) DESTDIR=

go-deps:
	@GO=$(GO) .ci/deps cxx go

go-browser:
	@.ci/deps browser

# lm-eval and what of its dependencies these tests need, in a place of its own: half a GB, most of it pyarrow,
# pandas and lm-eval's own tasks.
.venv-eval/ready: $(SERVER)/lm_eval_requirements.txt | .venv/ready
	$(PYTHON) -m venv .venv-eval
	.venv-eval/bin/pip install --disable-pip-version-check --no-deps --no-compile -r $<
	@touch $@

go-chat: go-deps stage
	@mkdir -p build/bin
	$(GO_ENV) $(GO) build -o $(CURDIR)/build/bin/chat-go ./examples/chat

# Twice: under the race detector, and with the garbage collector around every C call while the
# runtime checks each pointer that is stored where C can see it.
go-test: go-deps go-browser stage fixtures .venv-eval/ready ## the Go binding's tests
	@cd bindings/go && unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .) && { [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted" >&2; exit 1; }; }
	$(GO_ENV) $(GO) vet ./...
	$(GO_ENV) GODEBUG=cgocheck=1 QWEN_REQUIRE_BROWSER=1 $(GO) test -race -count=1 ./...
	$(GO_ENV) GOEXPERIMENT=cgocheck2 $(GO) test -count=1 -tags gcstress .
	$(GO_ENV) $(GO) build -o $(CURDIR)/build/bin/go-server ./examples/server
	LD_LIBRARY_PATH=$(STAGE)/lib .venv/bin/python $(SERVER)/openai_test.py build/bin/go-server $(DEMO_MODEL)
	LD_LIBRARY_PATH=$(STAGE)/lib .venv/bin/python $(SERVER)/lm_eval_test.py build/bin/go-server $(DEMO_MODEL) \
		$(STAGE)/lib/libqwen.so .venv-eval/bin/lm_eval

go-screenshot: go-deps go-browser stage fixtures ## take the picture of the server's page anew
	$(GO_ENV) QWEN_REQUIRE_BROWSER=1 QWEN_SCREENSHOT=$(CURDIR)/$(SERVER)/page.png \
		$(GO) test -count=1 -run TestThePageChats ./examples/server

go-generate: stage ## write the Go binding's generated files anew
	$(GO_ENV) $(GO) generate .

go-bench: go-deps stage ## what a streamed token costs in Go, beside plain C
	@mkdir -p build/bin
	$(CC) -std=c11 -O2 -Wall -Wextra -Iinclude benches/stream.c -o build/bin/stream -Lbuild/lib -lqwen -pthread $(RUNPATH)
	$(GO_ENV) $(GO) build -o $(CURDIR)/build/bin/go-stream ./bench
	LD_LIBRARY_PATH=$(STAGE)/lib bindings/go/bench/compare.sh build/bin/stream build/bin/go-stream tests/data/tiny/plain-bf16
