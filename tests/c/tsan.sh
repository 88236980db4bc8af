#!/usr/bin/env bash
# The C tests of many threads under ThreadSanitizer, the whole library instrumented: `make tsan` runs it.
#
# Needs a nightly compiler for -Zsanitizer; no test that must pass depends on it. Rust's own library is
# linked as it comes, not instrumented: what of it is generic or inline (Arc, channels, cells) is compiled
# with our code and watched, what is not is listed with its reason in tsan.suppressions.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-20}
out=build/tsan
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
runtime=$(rustc +nightly --print sysroot)/lib/rustlib/$host/lib/librustc-nightly_rt.tsan.a
tiny=tests/data/tiny/plain-bf16
export TSAN_OPTIONS="suppressions=$PWD/tests/c/tsan.suppressions halt_on_error=0 exitcode=66 second_deadlock_stack=1 history_size=6"
mkdir -p "$out"

# With a target named, programs that only help the build stay as they are.
RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" cargo +nightly build --locked \
    --profile checked --lib --target "$host" --target-dir target/tsan

# build NAME SOURCE: compiled by gcc, whose instrumentation calls the same functions; one runtime.
build() {
    gcc -std=c99 -D_POSIX_C_SOURCE=200809L -Iinclude -Itests/c -pthread -g -O1 -fsanitize=thread -c "$2" -o "$out/$1.o"
    g++ -no-pie "$out/$1.o" "target/tsan/$host/checked/libqwen.a" \
        -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive -o "$out/$1" -lpthread -ldl -lm -lrt
}

# It must be able to find a race at all, in Rust and in what a wrong C program does to the library, whose
# own functions must be in the report; and no race where there is none.
cat >"$out/racy.c" <<'RACY'
#include "model.h"
#include <pthread.h>
static void *use(void *event) { return (void *)qwen_event_text(event, NULL); }
int main(int argc, char **argv) {
    const uint32_t id = 1;
    pthread_t thread;
    qwen_request *request = NULL;
    qwen_event *event = NULL;
    qwen_engine *engine = open_engine(argv[argc - 1], SMALL);
    qwen_options *options = long_reply(3, 1);
    CHECK_OK(qwen_request_new_tokens(engine, &id, 1, options, &request, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK_OK(qwen_request_next(request, -1, &event, &err));
    CHECK(pthread_create(&thread, NULL, use, event) == 0);
    qwen_event_free(event), pthread_join(thread, NULL);
    qwen_request_free(request), qwen_options_free(options), qwen_engine_free(engine);
    return 0;
}
RACY
cat >"$out/racy.rs" <<'RACY'
use std::sync::{atomic::{AtomicUsize, Ordering}, mpsc::channel};
static mut COUNTER: usize = 0;
static SAFE: AtomicUsize = AtomicUsize::new(0);
fn count(race: bool) {
    if race { unsafe { COUNTER += 1 } } else { SAFE.fetch_add(1, Ordering::Relaxed); }
}
fn main() {
    let race = std::env::args().len() > 1;
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || { count(race); sender.send(vec![1; 9]).ok() });
    count(race);
    assert_eq!(receiver.recv().unwrap().len(), 9);
    thread.join().unwrap();
}
RACY
build racy-c "$out/racy.c"
rustc +nightly --edition 2021 -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -O \
    "$out/racy.rs" -o "$out/racy-rust" 2>/dev/null
for racy in "racy-c $tiny" "racy-rust race"; do
    if "$out"/$racy 2>"$out/racy.log" || ! grep -Eq "data race|use-after-free" "$out/racy.log" ||
        { [[ $racy = racy-c* ]] && ! grep -q 'qwen::capi::event::qwen_event_text' "$out/racy.log"; }; then
        echo "ThreadSanitizer misses a plain race ($racy)" >&2
        exit 1
    fi
done
"$out/racy-rust" >"$out/racy.log" 2>&1 || { echo "a race where there is none: $out/racy.log" >&2; exit 1; }

failed=0
run() {
    local log=$out/$1.log
    if "$out/$1" "${@:2}" >"$log" 2>&1; then
        echo "$*: no race"
    else
        failed=1
        echo "$*: see $log: $(grep -c '^WARNING: ThreadSanitizer' "$log") reports" >&2
    fi
}
for name in mixed threads session request life; do build $name tests/c/$name.c; done
run mixed $tiny "$seconds"
run threads $tiny 8
run session $tiny
run request $tiny
run life $tiny orders
exit $failed
