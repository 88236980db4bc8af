# The commands of the project. `make help` lists them; build.mk has the library itself.
#
# Set-up is included: what comes from pip goes to .venv, models and vocabularies to demo/, built
# files to build/ and target/. Git ignores all of these.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Cargo already keeps every core busy.
.NOTPARALLEL:

PYTHON ?= python3
DEMO_MODEL := demo/chat-model
VOCABULARY := demo/vocabulary/qwen.tiktoken
MODEL ?= $(DEMO_MODEL)
# As typed: a `$` in a prompt is a dollar sign. The shell gets it by environment, never by quoting.
export CHAT_PROMPT := $(value PROMPT)

include build.mk
include bindings/go/go.mk
include bindings/java/java.mk

.PHONY: help chat test bench lint demo-model quantised-models vocabulary fixtures compiler deps unit-test twins-test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

chat: compiler lib examples ## chat in the terminal: PROMPT="one question" MODEL=/path/to/Qwen-7B-Chat
	@build/bin/chat --model "$(MODEL)" $${CHAT_PROMPT:+--prompt "$$CHAT_PROMPT"}

# The demo model is made only where it is the one asked for.
ifeq ($(MODEL),$(DEMO_MODEL))
chat: demo-model
endif

# With the CUDA backend: every kernel is compiled, and what needs a GPU says that it is skipped.
test: CUDA := 1
test: deps cuda-toolkit lint fixtures lib examples c-test unit-test go-test java-test twins-test ## everything: lint, Rust, C, C++, Go and Java tests

# Optimised, with assertions and overflow checks (the profile is in Cargo.toml).
unit-test: fixtures lib examples
	@mkdir -p build
	@status=0; cargo test --locked --profile checked $(FEATURES) --no-fail-fast 2>&1 | tee build/test.log || status=$$?; \
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 } \
	     END { printf "%d passed, %d failed, %d ignored\n", passed, failed, ignored }' build/test.log; \
	exit $$status

# The profile of the Rust tests, which have built it already.
twins-test: examples demo-model go-chat java-native ## the same program in every language says the same
	cargo build --locked --profile checked $(FEATURES) --example chat
	JAVA=$(JAVA) tests/twins.sh

lint: $(if $(filter 1,$(CUDA)),cuda-toolkit) ## rustfmt and clippy, warnings are errors
	cargo fmt --check
	cargo clippy --locked --profile checked --all-targets $(FEATURES) -- -D warnings
	cargo clippy --locked --profile checked --all-targets $(FEATURES) --features test-hooks -- -D warnings

bench: fixtures lib ## measure: bandwidth, decode, prefill, tokenizer
	cargo bench --locked

demo-model: $(DEMO_MODEL)/config.json ## a small real chat model in the layout of Qwen-1
vocabulary: $(VOCABULARY) ## the real Qwen-1 vocabulary, for the tokenizer's tests
fixtures: demo-model quantised-models vocabulary
quantised-models: $(DEMO_MODEL)-int4/config.json $(DEMO_MODEL)-int8/config.json ## the demo model in Int4 and Int8

$(DEMO_MODEL)/config.json: examples/demo_model.py | .venv/ready
	.venv/bin/python examples/demo_model.py
	@touch $@

$(DEMO_MODEL)-int%/config.json: examples/quantise_model.py $(DEMO_MODEL)/config.json | .venv/ready
	.venv/bin/python examples/quantise_model.py --bits $*
	@touch $@

$(VOCABULARY): tests/data/fetch_vocabulary.py | .venv/ready
	.venv/bin/python tests/data/fetch_vocabulary.py
	@touch $@

.venv/ready: tests/requirements.txt
	@PYTHON=$(PYTHON) .ci/deps python
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -r tests/requirements.txt
	@touch $@

compiler:
	@.ci/deps cxx

deps: ## the tools that come from the system: installed where allowed, else named
	@PYTHON=$(PYTHON) GO=$(GO) JAVAC=$(JAVAC) MVN=$(MVN) .ci/deps cxx python tests go java browser
