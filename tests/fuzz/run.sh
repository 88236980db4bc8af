#!/usr/bin/env bash
# Fuzzes: tests/fuzz/run.sh SECONDS [TARGET...], each target for so long, one after another. `make fuzz`
# runs it.
#
# Needs a nightly compiler and cargo-fuzz (`cargo install --locked cargo-fuzz`). What is found lies in
# target/fuzz/found; bytes that break a promise go into tests/fuzz/corpus under a name that says what
# was wrong, with the change that mends it, and `cargo test --test fuzz` holds it from there on.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:?usage: tests/fuzz/run.sh SECONDS [TARGET...]}
shift
targets=("$@")
((${#targets[@]})) || targets=($(ls tests/fuzz/targets | sed 's/\.rs$//'))
at=target/fuzz
TMPDIR=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)" qwen-fuzz-XXXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

cargo +nightly fuzz build --fuzz-dir tests/fuzz --target-dir $at
failed=0
for target in "${targets[@]}"; do
    mkdir -p "$at/corpus/$target" "$at/found/$target"
    # What is new goes to the first folder; the tree's own is only read.
    log=$at/$target.log
    if $at/x86_64-unknown-linux-gnu/release/"$target" -max_total_time="$seconds" -timeout=20 \
        -rss_limit_mb=3000 -max_len=4096 -print_final_stats=1 \
        -artifact_prefix="$at/found/$target/" "$at/corpus/$target" "tests/fuzz/corpus/$target" \
        >"$log" 2>&1; then
        echo "$target: $(grep -o 'stat::number_of_executed_units: .*' "$log" | tr -s ' ')"
    else
        failed=1
        echo "$target: FOUND something, see $log and $at/found/$target" >&2
    fi
done
exit $failed
