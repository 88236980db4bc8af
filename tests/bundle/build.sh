#!/usr/bin/env bash
# Puts all that a GPU host needs into one folder: the library with CUDA, programs, prebuilt tests,
# kernel harnesses, benchmarks, two scripts that run them, and what makes a large checkpoint there (a
# script and the vocabulary). `make gpu-bundle` runs it, with NVCC naming the compiler. The host needs a
# driver and cuBLAS, and Python with numpy; with torch and transformers for the comparison with those.
set -euo pipefail
cd "$(dirname "$0")/../.."

OUT=build/gpu-bundle
LIMIT_MIB=60
# The tests that touch a GPU, and those that say whether the CPU of the host is used rightly.
TESTS=(cuda ops attention engine)

rm -rf "$OUT"
mkdir -p "$OUT"/{bin,lib,tests,kernels,oracles}

cp build/lib/libqwen.so.? "$OUT/lib/"
(cd "$OUT/lib" && ln -sf libqwen.so.? libqwen.so)
if grep -q 'built without CUDA' "$OUT/lib/libqwen.so.1"; then
    echo "build/lib has a library without CUDA: make lib CUDA=1" >&2
    exit 1
fi
for program in chat chat-c chat-cpp qwen-bench load-time ceilings; do
    cp "build/bin/$program" "$OUT/bin/"
done

# build_programs FOLDER SUFFIX ARGUMENTS...: tests and benchmarks; Cargo says where it has put each.
build_programs() {
    local folder=$1 suffix=$2
    shift 2
    cargo test --locked --profile checked --features cuda,test-hooks --no-run --message-format=json \
        "$@" | python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable"):
        print(message["target"]["name"], message["executable"])
' | while read -r name path; do cp "$path" "$OUT/$folder/$name$suffix"; done
}
# Without code for later GPUs than compute capability 8.0, those run its PTX.
QWEN_CUDA_ARCHS=80 build_programs tests -ptx-80 --test cuda
build_programs tests "" "${TESTS[@]/#/--test=}"
build_programs bin "" --bench=reading

# Static CUDA runtime: the host may have none, or another.
toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v "$NVCC")")")")
for source in tests/cuda/*.cu; do
    [ -e "$source" ] || continue
    "$NVCC" -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=sm_80 -O3 \
        -std=c++17 -Xfatbin -compress-all "$source" -o "$OUT/kernels/$(basename "$source" .cu)" \
        -L"$toolkit/lib" -lcudart_static -ldl
done
for oracle in tests/data/{transformers_logits,make_published}.py tests/cuda/*.py; do
    [ -e "$oracle" ] && cp "$oracle" "$OUT/oracles/"
done

cp demo/vocabulary/qwen.tiktoken "$OUT/"
find "$OUT/bin" "$OUT/tests" "$OUT/kernels" -type f -exec strip --strip-unneeded {} +
cp tests/bundle/{common,run-tests,run-benchmarks}.sh "$OUT/"
git describe --always --dirty > "$OUT/commit"

size_mib=$(($(du -sk "$OUT" | cut -f1) / 1024))
echo "$OUT: $size_mib MiB, $(find "$OUT" -type f | wc -l) files"
if [ "$size_mib" -ge "$LIMIT_MIB" ]; then
    echo "it must stay under $LIMIT_MIB MiB" >&2
    exit 1
fi
