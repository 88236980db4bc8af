#!/usr/bin/env bash
# Measures on GPU 0, or on all: run-benchmarks.sh [quick|full|kernels|parallel] (quick). quick: the 72B, 14B and 7B shapes
# at short context, and 6144-token prompts on 36 of the 72B's layers: with all 80, a card of 141 GB
# has no room left for the cache. full: longer replies and prompts. kernels: each kernel alone beside
# its roofline, with caches emptied, and cuBLAS and PyTorch's attention beside them. parallel: the 72B over
# all GPUs of the host, and what these send each other. Full logs: logs/. Last: the tables.
set -euo pipefail
. "$(dirname "$0")/common.sh"
usage "${1:-quick}" quick full kernels parallel
GENERATE=256
[ "${1:-quick}" = full ] && GENERATE=2048

before=$(machine)
if [ "${1:-quick}" = kernels ]; then
    step ceilings 60 "$HERE/bin/ceilings"
    step kernel-linear 120 "$HERE/kernels/skinny_linear" time,chain
    step kernel-decode-attention 120 "$HERE/kernels/decode_attention" "decode attention" time
    step kernel-prefill-attention 120 "$HERE/kernels/prefill_attention" time
    step kernel-sample 60 "$HERE/kernels/sample" time
    if python3 -c 'import torch' 2> /dev/null; then
        step rival-linear 120 python3 "$HERE/oracles/skinny_linear_cublas.py"
        step rival-attention 120 python3 "$HERE/oracles/prefill_attention_sdpa.py"
    fi
    for log in "$LOGS"/ceilings.log "$LOGS"/kernel-*.log "$LOGS"/rival-*.log; do
        [ -e "$log" ] && { echo; echo "== $(basename "$log" .log)"; cat "$log"; }
    done
    echo
    echo "$before"
    machine
    cat "$LOGS/table"
    [ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
    exit 0
fi
step ceilings 60 "$HERE/bin/ceilings"
bench() {
    local name=$1
    shift
    step "bench-$name" 600 "$HERE/bin/qwen-bench" --backend cuda \
        --ceilings "$LOGS/ceilings.log" "$@"
}
if [ "${1:-quick}" = parallel ]; then
    count=$(nvidia-smi -L | wc -l)
    devices=$(seq -s, 0 $((count - 1)))
    step sums 60 "$HERE/kernels/all_reduce" time
    step sums-of-rows 60 "$HERE/kernels/reduce_rows" time
    for format in bf16 int8 int4; do
        bench "72b-$format" --devices "$devices" --shape qwen-72b --format "$format" \
            --context 1,6144,14336,30720 --generate 2048 --batch 1
        bench "72b-$format-8" --devices "$devices" --shape qwen-72b --format "$format" \
            --context 1 --generate 256 --batch 8,16
    done
    for log in "$LOGS"/sums*.log "$LOGS"/bench-*.log; do
        echo
        cat "$log"
    done
    echo "$before"
    machine
    cat "$LOGS/table"
    [ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
    exit 0
fi
# The cache that is left beside the whole 72B holds some 1,300 tokens.
bench 72b --shape qwen-72b --context 1 --generate 128 --batch 1,8
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
