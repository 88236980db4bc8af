#!/usr/bin/env bash
# Measures on GPU 0: run-benchmarks.sh [quick|full] (quick). quick: the 72B, 14B and 7B shapes at
# short context, and 6144-token prompts on 36 of the 72B's layers: with all 80, a card of 141 GB has
# no room left for the cache. full: longer replies and prompts. Full logs: logs/. Last: the tables.
set -euo pipefail
. "$(dirname "$0")/common.sh"
GENERATE=256
[ "${1:-quick}" = full ] && GENERATE=2048

before=$(machine)
step ceilings 60 "$HERE/bin/ceilings"
bench() {
    local name=$1
    shift
    step "bench-$name" 600 "$HERE/bin/qwen-bench" --backend cuda \
        --ceilings "$LOGS/ceilings.log" "$@"
}
bench 72b --shape qwen-72b --context 1 --generate "$GENERATE" --batch 1,8
bench 14b --shape 14b --context 1 --generate "$GENERATE" --batch 1,8
bench 7b --shape 7b --context 1 --generate "$GENERATE" --batch 1,8
bench 72b-36-layers --shape qwen-72b --layers 36 --context 6144 --generate 128 --batch 1,8
if [ "${1:-quick}" = full ]; then
    bench 72b-36-layers-long --shape qwen-72b --layers 36 --context 14336,30720 --generate 256
    bench 7b-long --shape 7b --context 6144,14336,30720 --generate "$GENERATE" --batch 1,8
fi
echo
echo "$before"
machine
cat "$LOGS/ceilings.log"
for log in "$LOGS"/bench-*.log; do
    echo
    cat "$log"
done
echo
cat "$LOGS/table"
[ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
