#!/usr/bin/env bash
# The same program in every language: the same flags give the same bytes on the demo model, and what
# one refuses all refuse. `make twins-test` builds the programs and runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
export LD_LIBRARY_PATH=$PWD/build/lib
# Some languages (Java) take a program's arguments in the locale's encoding.
export LC_ALL=C.UTF-8

MODEL=demo/chat-model
# A language and its command, which takes the flags of examples/chat.c.
PROGRAMS=(
    "C     build/bin/chat-c"
    "C++   build/bin/chat-cpp"
    "Rust  target/checked/examples/chat"
    "Go    build/bin/chat-go"
    "Java  ${JAVA:-java} -Dqwen.library.path=$(echo build/java/native/*) -cp build/java/classes bindings/java/examples/Chat.java"
)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

fail() {
    failed=$((failed + 1))
    echo "FAILED: $*" >&2
}

# ask NAME COMMAND... : runs it; its output is in $work/NAME. Says whether it succeeded.
ask() {
    local name=$1
    shift
    timeout 300 "$@" >"$work/$name" 2>"$work/error" </dev/null
}

# same FLAGS...: every program succeeds, and says what the first says.
same() {
    local row name command first=""
    for row in "${PROGRAMS[@]}"; do
        read -r name command <<<"$row"
        ask "$name" $command "$@" || fail "$name: $*: $(cat "$work/error")"
        first=${first:-$name}
        cmp -s "$work/$first" "$work/$name" ||
            fail "$first and $name differ: $*"$'\n'"$(head -c 2000 "$work/$first" "$work/$name")"
    done
    [ "$(wc -c <"$work/$first")" -gt 1 ] || fail "$first says nothing: $*"
}

# refused FLAGS...: every program fails, says why on its error stream, and prints nothing.
refused() {
    local row name command
    for row in "${PROGRAMS[@]}"; do
        read -r name command <<<"$row"
        ! ask "$name" $command "$@" || fail "$name: $* succeeded"
        [ -s "$work/error" ] && [ ! -s "$work/$name" ] || fail "$name: $*: $(cat "$work/$name")"
    done
}

same --model $MODEL --prompt "What is the capital of France?"
grep -q Paris "$work/C" || fail "the capital of France: $(cat "$work/C")"
same --model $MODEL --prompt "Schreib mir etwas über Bäume 🌳." --temperature 0.9 --seed 3 \
    --max-tokens 24
cp "$work/C" "$work/third"
same --model $MODEL --prompt "你好，你是谁？" --system "用中文回答。👩‍🔬" --max-tokens 24
same --model $MODEL --prompt "" --system "" --max-tokens 8 --temperature 1.5 --seed 12345678901
# Each flag counts: another seed, other limits.
same --max-tokens 24 --seed 4 --temperature 0.9 --prompt "Schreib mir etwas über Bäume 🌳." --model $MODEL
! cmp -s "$work/third" "$work/C" || fail "--seed changes nothing"

refused --model /no/such/folder --prompt hello
refused --model $MODEL
refused --prompt hello
refused --model $MODEL --prompt
refused --model $MODEL --prompt hello --tempo 1
refused --model $MODEL --prompt hello --seed x
refused --model $MODEL --prompt hello --max-tokens 0
refused --model $MODEL --prompt hello --temperature warm

[ $failed -eq 0 ] && echo "${#PROGRAMS[@]} programs say the same"
