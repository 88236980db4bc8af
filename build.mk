# The library: linked, installed, its header, its examples, its tests. Included by the Makefile.
#
# Cargo makes libqwen.a; the C compiler links the shared library from it. Cargo cannot: rustc gives
# every shared library a version script of its own without a version name, and a linker takes no
# second script beside that. Here the script is src/capi/libqwen.map, and what it does not name is
# not exported, and dropped unless something exported needs it.

CC ?= cc
CXX ?= c++
CFLAGS ?= -O2 -g
CXXFLAGS ?= -O2 -g
PREFIX ?= /usr/local
LIBDIR := $(PREFIX)/lib
INCLUDEDIR := $(PREFIX)/include

# 1: with the CUDA backend, which takes nvcc to build (and nothing to load). By default where there is
# a compiler for it, or a GPU.
CUDA ?= $(if $(or $(shell command -v nvcc),$(wildcard .tools/cuda/ready /proc/driver/nvidia/version)),1,0)
FEATURES = $(if $(filter 0 1,$(CUDA)),,$(error CUDA is 0 or 1, not `$(CUDA)`))$(if $(filter 1,$(CUDA)),--features cuda)
NVCC := .tools/cuda/nvidia/cu13/bin/nvcc

# The one place of each number is the code.
QWEN_ABI := $(shell sed -n 's/^pub const QWEN_ABI_VERSION: u32 = \(.*\);/\1/p' src/capi/codes.rs)
QWEN_VERSION := $(shell sed -n '/^\[package\]/,/^\[dep/s/^version = "\(.*\)"/\1/p' Cargo.toml)
SONAME := libqwen.so.$(QWEN_ABI)

# What Rust's standard library needs of the system (`rustc --print native-static-libs`); the ABI
# test sees that nothing stays undefined.
NATIVE_LIBS := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
# nodelete: Rust's thread-locals outlive dlclose, so the code must, too.
LINK_LIBRARY = $(CC) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=src/capi/libqwen.map \
	-Wl,-z,nodelete,-z,defs,-z,relro,-z,now -Wl,--gc-sections -Wl,--as-needed -Wl,--build-id
WHOLE = -Wl,--whole-archive $(1) -Wl,--no-whole-archive

# The library of the fault-injection tests: other options, own folder, never installed.
HOOKS_PROFILE ?= checked
HOOKS_TARGET := $(HOOKS_PROFILE)

.PHONY: lib hooks-lib header examples install abi-test c-test cargo-release cuda-toolkit

lib: build/lib/libqwen.so ## libqwen.so and its header, in build/lib and include
hooks-lib: build/hooks/libqwen.so

cargo-release: $(if $(filter 1,$(CUDA)),cuda-toolkit)
	cargo build --locked --release --lib $(FEATURES)

# nvcc from PyPI, where the machine has none of its own.
cuda-toolkit: $(if $(shell command -v nvcc),,.tools/cuda/ready) ## the CUDA compiler, if the machine has none

.tools/cuda/ready: .ci/cuda-requirements.txt | .venv/ready
	.venv/bin/pip install --disable-pip-version-check --no-deps --upgrade --target .tools/cuda -r $<
	@touch $@

# Cargo knows better than make whether the archive is old.
target/release/libqwen.a: cargo-release ;

# Other features are another library, even where Cargo has its archive at hand and leaves its time as it is.
build/features: FORCE
	@mkdir -p build
	@echo '$(FEATURES)' | cmp -s - $@ || echo '$(FEATURES)' > $@
FORCE:

build/lib/$(SONAME): target/release/libqwen.a src/capi/libqwen.map build.mk build/features
	@mkdir -p build/lib
	$(LINK_LIBRARY) -o $@.new $(call WHOLE,$<) $(NATIVE_LIBS)
	objcopy --only-keep-debug $@.new $@.debug
	strip --strip-unneeded $@.new
	cd build/lib && objcopy --add-gnu-debuglink=$(SONAME).debug $(SONAME).new
	mv $@.new $@

build/lib/libqwen.so: build/lib/$(SONAME)
	ln -sf $(SONAME) $@

build/hooks/libqwen.so: cargo-release src/capi/libqwen.map build.mk
	cargo build --locked --profile $(HOOKS_PROFILE) --lib --features test-hooks
	@mkdir -p build/hooks
	$(LINK_LIBRARY) -o build/hooks/$(SONAME) $(call WHOLE,target/$(HOOKS_TARGET)/libqwen.a) $(NATIVE_LIBS)
	ln -sf $(SONAME) $@

header: ## write include/qwen.h and the symbol list anew from the code
	QWEN_BLESS=1 cargo test --locked --profile checked --test abi -- header_is header_and

# The parts that qwen.hpp includes.
HPP_PARTS := $(wildcard include/qwen/*.hpp)

# Programs find the library beside themselves, wherever the folder is moved to.
RUNPATH = -Wl,-rpath,'$$ORIGIN/../lib'
examples: build/bin/chat build/bin/chat-c build/bin/chat-cpp build/bin/concurrent ## the C and C++ programs of examples, in build/bin

build/bin/chat-c: examples/chat.c include/qwen.h build/lib/libqwen.so
	@mkdir -p build/bin
	$(CC) -std=c99 -Wall -Wextra $(CFLAGS) -Iinclude $< -o $@ -Lbuild/lib -lqwen $(RUNPATH)

build/bin/concurrent: examples/concurrent.c include/qwen.h build/lib/libqwen.so
	@mkdir -p build/bin
	$(CC) -std=c99 -D_POSIX_C_SOURCE=200809L -Wall -Wextra $(CFLAGS) -Iinclude $< -o $@ -Lbuild/lib -lqwen -pthread $(RUNPATH)

BUILD_CXX = $(CXX) -std=c++17 -Wall -Wextra $(CXXFLAGS) -Iinclude $< -o $@ -Lbuild/lib -lqwen -pthread $(RUNPATH)

build/bin/chat-cpp: examples/chat.cpp include/qwen.hpp $(HPP_PARTS) include/qwen.h build/lib/libqwen.so
	@mkdir -p build/bin
	$(BUILD_CXX)

build/bin/chat: examples/terminal.cpp include/qwen.hpp $(HPP_PARTS) include/qwen.h build/lib/libqwen.so
	@mkdir -p build/bin
	$(BUILD_CXX)

# What `make lib` has built is installed as it is: root needs no Rust for it.
# The templates' paths are relative to where they lie, so an installed tree can be moved.
TEMPLATE = sed -e 's|@VERSION@|$(QWEN_VERSION)|g' -e 's|@SONAME@|$(SONAME)|g'

install: $(if $(wildcard build/lib/$(SONAME)),,lib) ## put library, headers, pkg-config and CMake files under PREFIX (and DESTDIR)
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(LIBDIR)/cmake/qwen $(DESTDIR)$(INCLUDEDIR)/qwen
	install -m 755 build/lib/$(SONAME) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libqwen.so
	install -m 644 include/qwen.h include/qwen.hpp $(DESTDIR)$(INCLUDEDIR)
	install -m 644 $(HPP_PARTS) $(DESTDIR)$(INCLUDEDIR)/qwen
	$(TEMPLATE) include/qwen.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/qwen.pc
	$(TEMPLATE) include/qwenConfig.cmake.in > $(DESTDIR)$(LIBDIR)/cmake/qwen/qwenConfig.cmake
	$(TEMPLATE) include/qwenConfigVersion.cmake.in > $(DESTDIR)$(LIBDIR)/cmake/qwen/qwenConfigVersion.cmake
	@[ -n "$(DESTDIR)" ] || [ "$$(id -u)" -ne 0 ] || ldconfig 2>/dev/null || true

abi-test: c-test ## header, symbols, C and C++ programs, sanitizers, installed tree
	cargo test --locked --profile checked --test abi

c-test: lib hooks-lib examples
	tests/c/run.sh

# These two take a nightly compiler, and `make test` needs neither.
.PHONY: tsan fuzz
tsan: ## the tests of many threads under ThreadSanitizer
	tests/c/tsan.sh

FUZZ_SECONDS ?= 300
fuzz: ## look for inputs that break a promise: FUZZ_SECONDS for each target (takes cargo-fuzz)
	tests/fuzz/run.sh $(FUZZ_SECONDS)

BENCH_PARTS := $(wildcard benches/support/*.hpp)

build/bin/qwen-bench: benches/qwen_bench.cpp $(BENCH_PARTS) include/qwen.hpp $(HPP_PARTS) include/qwen.h build/lib/libqwen.so
	@mkdir -p build/bin
	$(CXX) -std=c++17 -Wall -Wextra $(CXXFLAGS) -O3 -Iinclude $< -o $@ -Lbuild/lib -lqwen -pthread $(RUNPATH)

build/bin/load-time: benches/load_time.cpp include/qwen.hpp $(HPP_PARTS) include/qwen.h build/lib/libqwen.so
	@mkdir -p build/bin
	$(CXX) -std=c++17 -Wall -Wextra $(CXXFLAGS) -Iinclude $< -o $@ -Lbuild/lib -lqwen -pthread $(RUNPATH)

# As build.rs chooses: the fetched compiler if it is there, or the machine's own.
FOUND_NVCC = $(or $(wildcard $(NVCC)),$(shell command -v nvcc),$(NVCC))

build/bin/ceilings: benches/ceilings.cu | cuda-toolkit
	@mkdir -p build/bin
	$(FOUND_NVCC) -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=sm_80 -O3 \
		-std=c++17 -lineinfo $< -o $@ -L$(dir $(FOUND_NVCC))../lib -lcudart_static -ldl

.PHONY: qwen-bench gpu-bundle
qwen-bench: build/bin/qwen-bench $(if $(filter 1,$(CUDA)),build/bin/ceilings) ## the benchmark of a model, in build/bin
gpu-bundle: CUDA := 1
gpu-bundle: cuda-toolkit lib examples build/bin/qwen-bench build/bin/load-time build/bin/ceilings $(VOCABULARY) ## build/gpu-bundle: tests and benchmarks for a GPU host
	NVCC="$(FOUND_NVCC)" tests/bundle/build.sh
