#!/usr/bin/env bash
# Runs every test of this bundle on GPU 0, and those of several GPUs on as many as there are (up to three):
# run-tests.sh [sanitize]. With `sanitize`, the op tests
# also run under compute-sanitizer's four tools, which takes long. Full logs: logs/. Last: a table.
set -euo pipefail
. "$(dirname "$0")/common.sh"
usage "${1:-plain}" plain sanitize
export QWEN_REQUIRE_GPU=1
QWEN_REQUIRE_GPUS=$(nvidia-smi -L | wc -l)
export QWEN_REQUIRE_GPUS

# Races in shared memory, within a kernel; those inside cuBLAS (nvjet) are passed over: the tool reports
# its pipelines.
racecheck() {
    local log found
    log=$(compute-sanitizer --tool racecheck "$@" 2>&1) || { echo "$log"; return 1; }
    found=$(grep 'Race reported' <<< "$log" | grep -v nvjet || true)
    echo "$log"
    [ -z "$found" ] || { echo "$found"; return 1; }
    grep -q 'RACECHECK SUMMARY' <<< "$log" || { echo "no summary"; return 1; }
    echo "no race outside of cuBLAS"
}
export -f racecheck

machine
# Some tests speak to the demo model, which is too large for this folder.
without=()
if [ ! -e "${QWEN_DEMO_MODEL:-}/config.json" ]; then
    without=(--skip demo::)
    echo "demo model: SKIPPED, QWEN_DEMO_MODEL names no folder with it" >> "$LOGS/table"
fi
for test in "$HERE"/tests/*; do
    # cuda-ptx-80 is `cuda` with the kernels of GPUs before Hopper, compiled by the driver.
    # One at a time: each takes the GPU's memory as it pleases.
    step "test-$(basename "$test")" 600 "$test" --test-threads 1 "${without[@]}"
done
for kernel in "$HERE"/kernels/*; do
    [ -e "$kernel" ] && step "kernel-$(basename "$kernel")" 120 "$kernel"
done
if python3 -c 'import torch, transformers, safetensors' 2> /dev/null; then
    step transformers-logits 300 python3 "$HERE/oracles/transformers_logits.py" "$HERE/tests/cuda"
else
    echo "transformers-logits: SKIPPED, no torch and transformers here" >> "$LOGS/table"
fi
step c-abi-bf16 60 "$HERE/bin/qwen-bench" --backend cuda --shape tiny --ceilings none \
    --context 1,700 --generate 64 --batch 1,8
step c-abi-fp16 60 "$HERE/bin/qwen-bench" --backend cuda --shape tiny --ceilings none \
    --format fp16 --embedding host --temperature 0.8 --top-p 0.8 --generate 64 --batch 3
if [ "${1:-}" = sanitize ]; then
    for tool in memcheck initcheck synccheck; do
        step "sanitizer-$tool" 600 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$HERE/tests/cuda" --test-threads 1 ops:: fed:: model:: random::
    done
    step sanitizer-racecheck 600 racecheck "$HERE/tests/cuda" --test-threads 1 ops:: random::
    step sanitizer-racecheck-prefill 600 racecheck "$HERE/kernels/prefill_attention" quick
fi
echo
cat "$LOGS/table"
[ "$failures" -eq 0 ] || { echo "$failures failed"; exit 1; }
