// How the decode attention harness reaches the kernel: its entry points, launches as the library
// makes them, and device memory.
#pragma once

#include "../../cuda/decode_attention.cu"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <vector>

static void require(cudaError_t status, int line) {
    if (status == cudaSuccess)
        return;
    printf("line %d: %s\n", line, cudaGetErrorString(status));
    exit(1);
}
#define CUDA(call) require((call), __LINE__)

enum class Type { bf16, f16 };

static const void *entry_point(Type type, uint32_t head_dim) {
    if (type == Type::bf16) {
        return head_dim == 64 ? (const void *)decode_attention_bf16_64
                              : (const void *)decode_attention_bf16_128;
    }
    return head_dim == 64 ? (const void *)decode_attention_f16_64
                          : (const void *)decode_attention_f16_128;
}

static uint32_t multiprocessors() {
    int count;
    CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
    return count;
}

static uint32_t num_blocks() { return multiprocessors() * decode_attention::BLOCKS_PER_SM; }

// Launches as the library does, with or without programmatic dependence on the kernel before.
static void launch(const void *kernel, dim3 grid, dim3 block, size_t shared, void **arguments,
                   cudaStream_t stream, bool dependent) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = dependent ? 1 : 0;
    CUDA(cudaLaunchKernelExC(&config, kernel, arguments));
}

static void launch_decode(DecodeAttention arguments, Type type, uint32_t head_dim,
                          cudaStream_t stream, bool dependent) {
    const void *kernel = entry_point(type, head_dim);
    const size_t shared = decode_attention::shared_bytes(head_dim);
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    void *pointers[] = {&arguments};
    launch(kernel, num_blocks(), decode_attention::THREADS, shared, pointers, stream, dependent);
}

// Device memory with the extent of a host vector.
template <class E> struct Buffer {
    E *pointer = nullptr;
    size_t count;
    explicit Buffer(size_t n) : count(n) {
        CUDA(cudaMalloc(&pointer, std::max<size_t>(n, 1) * sizeof(E)));
    }
    explicit Buffer(const std::vector<E> &from) : Buffer(from.size()) { set(from); }
    Buffer(const Buffer &) = delete;
    ~Buffer() { cudaFree(pointer); }
    void set(const std::vector<E> &from) {
        CUDA(cudaMemcpy(pointer, from.data(), count * sizeof(E), cudaMemcpyHostToDevice));
    }
    std::vector<E> get() const {
        std::vector<E> to(count);
        CUDA(cudaMemcpy(to.data(), pointer, count * sizeof(E), cudaMemcpyDeviceToHost));
        return to;
    }
};
