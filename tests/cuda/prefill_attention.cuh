// What prefill_attention.cu (the test) checks and times with: a batch of sequences on the device
// with permuted pages and NaN wherever nothing was written, the plain float64 twin, and the
// launches of both implementations.
#pragma once

#include "../../cuda/prefill_attention.cu"
#include "../../cuda/prefill_attention_sm90.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace prefill = qwen::prefill;
using prefill::PAGE_TOKENS;

#define CHECK(call)                                                                                \
    do {                                                                                           \
        cudaError_t status_ = (call);                                                              \
        if (status_ != cudaSuccess) {                                                              \
            printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_));      \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#include "tensor_map.cuh"

template <typename T> struct Device { // device memory of n elements, freed at the end of scope
    T *data = nullptr;
    size_t size = 0;
    explicit Device(size_t n) : size(n) {
        CHECK(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T)));
    }
    explicit Device(const std::vector<T> &host) : Device(host.size()) {
        CHECK(cudaMemcpy(data, host.data(), size * sizeof(T), cudaMemcpyHostToDevice));
    }
    Device(const Device &) = delete;
    ~Device() { cudaFree(data); }
    std::vector<T> host() const {
        std::vector<T> copy(size);
        CHECK(cudaMemcpy(copy.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
        return copy;
    }
};

struct Shape {
    int num_heads, num_kv_heads;
    std::vector<int> rows, contexts; // new rows and context length of each sequence
};

// Everything a launch reads, on the device.
struct Launch {
    void *out;
    const void *qkv, *cache;
    const uint32_t *cu_seqlens, *context_lens, *block_table;
    uint32_t *counter;
    int max_pages, num_seqs, num_heads, num_kv_heads, total_rows, buffer_rows, num_pages;
    uint32_t flags;
};

// Hash of an index, as an approximately normal number (a sum of four uniform ones).
__host__ __device__ inline float noise(uint64_t seed, uint64_t index) {
    uint64_t x = (index + 1) * 0x9E3779B97F4A7C15ull ^ seed * 0xD1B54A32D192ED03ull;
    x ^= x >> 30, x *= 0xBF58476D1CE4E5B9ull, x ^= x >> 27, x *= 0x94D049BB133111EBull,
        x ^= x >> 31;
    float sum = 0;
    for (int i = 0; i < 4; ++i)
        sum += float((x >> (16 * i)) & 0xFFFF) / 65536.0f - 0.5f;
    return sum * 1.7320508f;
}

template <typename T> __global__ void fill_noise(T *data, size_t n, uint64_t seed, int row_width) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
         i += size_t(gridDim.x) * blockDim.x) {
        // rows of different sharpness: the scores' deviation is 1/2, 1, 2 or 4
        const float gain = row_width ? 0.5f * float(1 << (i / row_width % 4)) : 1.0f;
        data[i] = T(noise(seed, i) * gain);
    }
}

// Marks the cache slots that no sequence owns as NaN.
template <typename T>
__global__ void poison_slots(T *cache, const uint8_t *used, int num_kv_heads, int d, size_t n) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n;
         i += size_t(gridDim.x) * blockDim.x) {
        const size_t token = i / d % PAGE_TOKENS, page = i / d / PAGE_TOKENS / num_kv_heads / 2;
        if (!used[page * PAGE_TOKENS + token])
            cache[i] = T(NAN);
    }
}

// The plain twin: float64 throughout. One block a (row, head); scores[block][max_keys] is scratch;
// exact[row][head][d] and absolute[row][head][d] = sum p |v| / sum p.
template <typename T>
__global__ void reference(double *exact, double *absolute, double *scores, size_t max_keys,
                          Launch l, int d, int first_row, int row_step) {
    const int row = first_row + blockIdx.x * row_step, head = blockIdx.y;
    const int kv_head = head * l.num_kv_heads / l.num_heads;
    int s = 0;
    while (int(l.cu_seqlens[s + 1]) <= row)
        ++s;
    const int position = int(l.context_lens[s]) - int(l.cu_seqlens[s + 1]) + row;
    if (l.context_lens[s] == 0)
        return;
    const T *q = (const T *)l.qkv + size_t(row) * (l.num_heads + 2 * l.num_kv_heads) * d + head * d;
    double *score = scores + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * max_keys;
    __shared__ double reduce[2];
    auto slot = [&](int key, int value) {
        const size_t page = l.block_table[size_t(s) * l.max_pages + key / PAGE_TOKENS];
        return (const T *)l.cache +
               (((page * 2 + value) * l.num_kv_heads + kv_head) * PAGE_TOKENS + key % PAGE_TOKENS) *
                   d;
    };
    for (int key = threadIdx.x; key <= position; key += blockDim.x) {
        double dot = 0;
        const T *k = slot(key, 0);
        for (int i = 0; i < d; ++i)
            dot += double(float(q[i])) * double(float(k[i]));
        score[key] = dot / sqrt(double(d));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double top = score[0];
        for (int key = 1; key <= position; ++key)
            top = fmax(top, score[key]);
        reduce[0] = top;
    }
    __syncthreads();
    for (int key = threadIdx.x; key <= position; key += blockDim.x)
        score[key] = exp(score[key] - reduce[0]);
    __syncthreads();
    const int i = threadIdx.x;
    if (i >= d)
        return;
    double sum = 0, o = 0, a = 0;
    for (int key = 0; key <= position; ++key) {
        const double v = double(float(slot(key, 1)[i])), p = score[key];
        sum += p, o += p * v, a += p * fabs(v);
    }
    const size_t at = (size_t(row) * l.num_heads + head) * d + i;
    exact[at] = o / sum, absolute[at] = a / sum;
}

// A batch of sequences with permuted pages, random contents and NaN wherever nothing was written.
template <typename T> struct Batch {
    Shape shape;
    int d, total_rows, max_pages, num_pages;
    static constexpr int GUARD_ROWS = 130;
    std::vector<uint32_t> cu_seqlens, context_lens, block_table;
    Device<T> *qkv, *cache, *out;
    Device<uint32_t> *cu, *ctx, *table, *counter;

    Batch(const Shape &shape, int d, uint64_t seed) : shape(shape), d(d) {
        std::mt19937_64 random(seed);
        const int num_seqs = int(shape.rows.size());
        cu_seqlens = {0};
        max_pages = 1, num_pages = 3;
        for (int s = 0; s < num_seqs; ++s) {
            cu_seqlens.push_back(cu_seqlens.back() + shape.rows[s]);
            context_lens.push_back(shape.contexts[s]);
            const int pages = (shape.contexts[s] + PAGE_TOKENS - 1) / PAGE_TOKENS;
            max_pages = std::max(max_pages, pages + 1), num_pages += pages;
        }
        total_rows = cu_seqlens.back();
        std::vector<uint32_t> order(num_pages);
        for (int i = 0; i < num_pages; ++i)
            order[i] = i;
        std::shuffle(order.begin(), order.end(), random);
        block_table.assign(size_t(num_seqs) * max_pages, 0xFFFFFFFFu);
        std::vector<uint8_t> used(size_t(num_pages) * PAGE_TOKENS, 0);
        for (int s = 0, next = 0; s < num_seqs; ++s)
            for (int t = 0; t < shape.contexts[s]; ++t) {
                if (t % PAGE_TOKENS == 0)
                    block_table[size_t(s) * max_pages + t / PAGE_TOKENS] = order[next++];
                const size_t page = block_table[size_t(s) * max_pages + t / PAGE_TOKENS];
                used[page * PAGE_TOKENS + t % PAGE_TOKENS] = 1;
            }
        const int width = (shape.num_heads + 2 * shape.num_kv_heads) * d;
        const size_t cache_size = size_t(num_pages) * 2 * shape.num_kv_heads * PAGE_TOKENS * d;
        qkv = new Device<T>(size_t(total_rows) * width);
        out = new Device<T>(size_t(total_rows + GUARD_ROWS) * shape.num_heads * d);
        cache = new Device<T>(cache_size);
        cu = new Device<uint32_t>(cu_seqlens), ctx = new Device<uint32_t>(context_lens);
        table = new Device<uint32_t>(block_table);
        counter = new Device<uint32_t>(std::vector<uint32_t>{0, 0});
        fill_noise<T><<<1024, 256>>>(qkv->data, qkv->size, seed * 2, width);
        fill_noise<T><<<1024, 256>>>(cache->data, cache_size, seed * 2 + 1, 0);
        Device<uint8_t> used_slots(used);
        poison_slots<T>
            <<<1024, 256>>>(cache->data, used_slots.data, shape.num_kv_heads, d, cache_size);
        CHECK(cudaDeviceSynchronize());
    }
    ~Batch() {
        delete qkv, delete cache, delete out, delete cu, delete ctx, delete table, delete counter;
    }
    Launch launch(uint32_t flags) const {
        return Launch{out->data,       qkv->data,          cache->data,
                      cu->data,        ctx->data,          table->data,
                      counter->data,   max_pages,          int(shape.rows.size()),
                      shape.num_heads, shape.num_kv_heads, total_rows,
                      total_rows,      num_pages,          flags};
    }
};

// Runs one implementation: head dimension, and f16 instead of bf16.
struct Impl {
    const char *name;
    void (*run)(const Launch &, int d, bool f16);
};

static int ceil_div_host(int a, int b) { return (a + b - 1) / b; }

template <typename T, typename Kernel>
static void launch_mma(Kernel kernel, int d, const Launch &l) {
    const int bytes = 512 * d;
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const dim3 grid(ceil_div_host(l.total_rows, prefill::ROW_TILE) + l.num_seqs, l.num_heads);
    kernel<<<grid, prefill::any_gpu::THREADS, bytes>>>(
        (T *)l.out, (const T *)l.qkv, (const T *)l.cache, l.cu_seqlens, l.context_lens,
        l.block_table, l.max_pages, l.num_seqs, l.num_heads, l.num_kv_heads, l.flags);
}

static void run_mma(const Launch &l, int d, bool f16) {
    if (f16 && d == 128)
        launch_mma<__half>(prefill_attention_f16_128, d, l);
    if (f16 && d == 64)
        launch_mma<__half>(prefill_attention_f16_64, d, l);
    if (!f16 && d == 128)
        launch_mma<__nv_bfloat16>(prefill_attention_bf16_128, d, l);
    if (!f16 && d == 64)
        launch_mma<__nv_bfloat16>(prefill_attention_bf16_64, d, l);
}

template <typename T, int D, typename Kernel>
static void launch_sm90(Kernel kernel, const Launch &l) {
    static int num_sms = 0;
    constexpr int bytes = prefill::sm90::shared_bytes<D>();
    if (!num_sms) {
        CHECK(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0));
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    }
    const bool f16 = std::is_same<T, __half>::value;
    const CUtensorMap q_map = matrix_map(l.qkv, uint64_t(l.num_heads + 2 * l.num_kv_heads) * D,
                                         l.buffer_rows, prefill::ROW_TILE, f16);
    const CUtensorMap kv_map = matrix_map(
        l.cache, D, uint64_t(l.num_pages) * 2 * l.num_kv_heads * PAGE_TOKENS, PAGE_TOKENS, f16);
    kernel<<<num_sms, prefill::sm90::THREADS, bytes>>>(
        q_map, kv_map, (T *)l.out, l.cu_seqlens, l.context_lens, l.block_table, l.counter,
        l.max_pages, l.num_seqs, l.num_heads, l.num_kv_heads, l.flags);
}

static void run_sm90(const Launch &l, int d, bool f16) {
    if (f16 && d == 128)
        launch_sm90<__half, 128>(prefill_attention_sm90_f16_128, l);
    if (f16 && d == 64)
        launch_sm90<__half, 64>(prefill_attention_sm90_f16_64, l);
    if (!f16 && d == 128)
        launch_sm90<__nv_bfloat16, 128>(prefill_attention_sm90_bf16_128, l);
    if (!f16 && d == 64)
        launch_sm90<__nv_bfloat16, 64>(prefill_attention_sm90_bf16_64, l);
}

static std::vector<Impl> implementations() {
    int major = 0;
    CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major != 9)
        return {{"mma", run_mma}};
    return {{"mma", run_mma}, {"sm90", run_sm90}};
}
