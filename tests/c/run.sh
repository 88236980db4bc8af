#!/usr/bin/env bash
# Builds the programs of this folder and runs them against build/lib and build/hooks: under
# AddressSanitizer and UndefinedBehaviorSanitizer, then under Valgrind, then against an installed
# tree. A program passes when it returns 0 and has written no byte to its output or error stream:
# so the whole suite is also the test that the library is silent. `make abi-test` runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."

CC=${CC:-gcc}
CXX=${CXX:-g++}
ROOT=$PWD
OUT=build/tests
TINY=tests/data/tiny/plain-bf16
NTK=tests/data/tiny/ntk-logn-f32
HOSTILE=$OUT/hostile
WARN=(-Wall -Wextra -Werror -pedantic -Iinclude -pthread -g)
C99=(-std=c99 -D_POSIX_C_SOURCE=200809L)
SANITIZE=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
passed=0
failed=0

for needed in "build/lib/libqwen.so lib" "build/hooks/libqwen.so hooks-lib" \
    "demo/vocabulary/qwen.tiktoken vocabulary"; do
    [ -e "${needed% *}" ] || { echo "${needed% *} is missing: run \`make ${needed#* }\`" >&2; exit 1; }
done
mkdir -p "$OUT"

# The hostile checkpoints have only the files that matter to their defect; the vocabulary is read
# first, so those without one get a sound one, but for the one whose defect that is.
rm -rf "$HOSTILE"
cp -r tests/data/hostile "$HOSTILE"
for folder in "$HOSTILE"/*; do
    [ -e "$folder/qwen.tiktoken" ] || [ "${folder##*/}" = vocabulary-missing ] ||
        cp "$HOSTILE/sound/qwen.tiktoken" "$folder"
done

# link FOLDER: how to link with the library there, and find it again.
link() { echo "-L$ROOT/$1 -lqwen -Wl,-rpath,$ROOT/$1 -ldl"; }

# build NAME SOURCE LIBRARY-FOLDER FLAGS...
build() {
    local name=$1 source=$2 library=$3
    shift 3
    "$CC" "${C99[@]}" "${WARN[@]}" "$@" "$source" -o "$OUT/$name" $(link "$library") -lm
}

# build_wrap NAME COMPILER STANDARD FLAGS...: wrap.cpp, and results.cpp without exceptions, in one.
build_wrap() {
    local at=$OUT/$1 compile=("$2" "-std=$3" "${WARN[@]}" -Wconversion -Wshadow)
    shift 3
    "${compile[@]}" "$@" -fno-exceptions -fno-rtti -c tests/c/results.cpp -o "$at-results.o"
    "${compile[@]}" "$@" tests/c/wrap.cpp "$at-results.o" -o "$at" $(link build/lib)
}

# check COMMAND...: it succeeds in silence.
check() {
    local status=0
    timeout 300 "$@" >"$OUT/stdout" 2>"$OUT/stderr" </dev/null || status=$?
    if [ $status -eq 0 ] && [ ! -s "$OUT/stdout" ] && [ ! -s "$OUT/stderr" ]; then
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    echo "FAILED (status $status): $*"
    head -c 4000 "$OUT/stdout" "$OUT/stderr"
}

# says PATTERN COMMAND...: it succeeds, and a line of its output is as the pattern has it.
says() {
    local pattern=$1 status=0
    shift
    timeout 300 "$@" >"$OUT/stdout" 2>"$OUT/stderr" </dev/null || status=$?
    if [ $status -eq 0 ] && grep -aq "$pattern" "$OUT/stdout" && [ ! -s "$OUT/stderr" ]; then
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    echo "FAILED (status $status, no \`$pattern\`): $*"
    head -c 4000 "$OUT/stdout" "$OUT/stderr"
}

# suite PREFIX RUNNER...: every program; RUNNER is put before each.
suite() {
    local at=$OUT/$1
    shift
    check "$@" "$at-arguments"
    check "$@" "$at-session" $TINY
    check "$@" "$at-request" $TINY
    check "$@" "$at-request" $NTK
    check "$@" "$at-analysis" $TINY
    check "$@" "$at-tools" $TINY
    check "$@" "$at-threads" $TINY "$THREAD_ROUNDS"
    check "$@" "$at-load" $TINY $HOSTILE
    check "$@" "$at-forge" $TINY
    check "$@" "$at-life" $TINY orders
    check "$@" "$at-wrap" $TINY
    check "$@" "$at-panic" $TINY
}

build_all() {
    local prefix=$1 name
    shift
    for name in arguments session request analysis tools threads mixed load forge life; do
        build "$prefix-$name" "tests/c/$name.c" build/lib "$@"
    done
    build "$prefix-panic" tests/c/panic.c build/hooks "$@"
}

echo "C and C++ programs under AddressSanitizer and UndefinedBehaviorSanitizer"
build_all asan "${SANITIZE[@]}"
# Optimising takes far longer than all that they do; and the objects of a file without RTTI have no
# type that could be checked.
build_wrap asan-wrap "$CXX" c++20 "${SANITIZE[@]}" -O0 -fno-sanitize=vptr
THREAD_ROUNDS=24 suite asan
check "$OUT/asan-forge" demo/vocabulary
check "$OUT/asan-life" $TINY reopen
check "$OUT/asan-mixed" $TINY 12
build asan-concurrent examples/concurrent.c build/lib "${SANITIZE[@]}"
for threads in 32 1; do
    says "32 conversations on $threads threads: .* finished" "$OUT/asan-concurrent" $TINY $threads
done
says '"requests_submitted":32,' build/bin/concurrent $TINY

echo "The same under Valgrind, and ends that leak on purpose"
build_all plain -O1
# Valgrind may not know the debug information that Clang writes by default.
build_wrap plain-wrap clang++ c++17 -gdwarf-4
THREAD_ROUNDS=2 suite plain valgrind --quiet --error-exitcode=9 --leak-check=full \
    --show-leak-kinds=definite --errors-for-leak-kinds=definite --fair-sched=yes
# fork stays here, too: AddressSanitizer's own allocator may be locked in the child for ever.
for how in exit quit thread fork; do
    for _ in 1 2 3 4 5; do check "$OUT/plain-life" $TINY $how; done
done
# Without Valgrind, which lets one thread run at a time.
check "$OUT/plain-mixed" $TINY 9
"$CC" "${C99[@]}" "${WARN[@]}" tests/c/unload.c -o "$OUT/unload" -ldl
check "$OUT/unload" "$ROOT/build/lib/libqwen.so" $TINY

echo "An installed tree, moved, with pkg-config and CMake"
rm -rf "$OUT/staged" "$OUT/moved" "$OUT/cmake"
make -s install PREFIX=/opt/qwen DESTDIR="$ROOT/$OUT/staged" >"$OUT/install.log" 2>&1
mv "$OUT/staged/opt/qwen" "$OUT/moved"
flags=$(PKG_CONFIG_PATH=$ROOT/$OUT/moved/lib/pkgconfig pkg-config --cflags --libs qwen)
"$CXX" -std=c++2b -fno-exceptions -fno-rtti -c tests/c/results.cpp -o "$OUT/by-pkg-config.o" $flags
"$CXX" -std=c++2b tests/c/wrap.cpp "$OUT/by-pkg-config.o" -o "$OUT/by-pkg-config" $flags -pthread \
    -Wl,-rpath,"$ROOT/$OUT/moved/lib"
check "$OUT/by-pkg-config" $TINY
cmake -S tests/c/install -B "$OUT/cmake" -DCMAKE_PREFIX_PATH="$ROOT/$OUT/moved" >"$OUT/cmake.log"
cmake --build "$OUT/cmake" >>"$OUT/cmake.log"
check "$OUT/cmake/wrap" $TINY

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
