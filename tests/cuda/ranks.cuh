// Ranks of a test of what GPUs do together: a GPU for each where there are as many, numbers that
// every rank can make for every other, and launches. Included behind a kernel file that has
// exchange.cuh.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <vector>

using namespace qwen;
using namespace qwen::exchange;

static void check_cuda(cudaError_t error, const char *what, int line) {
    if (error == cudaSuccess)
        return;
    printf("line %d: %s: %s\n", line, what, cudaGetErrorString(error));
    exit(1);
}
#define CHECK(x) check_cuda((x), #x, __LINE__)

// A number that every rank can make for every other, none of them tidy; some are -0.
__host__ __device__ inline float number(uint32_t call, uint32_t rank, uint32_t i) {
    uint32_t h = (i + 1) * 0x9e3779b1u ^ (call + 1) * 0x85ebca77u ^ (rank + 1) * 0xc2b2ae3du;
    h ^= h >> 15, h *= 0x2c1b3c6du, h ^= h >> 12, h *= 0x297a2d39u, h ^= h >> 15;
    if (h % 997 == 0)
        return -0.0f;
    return (static_cast<int32_t>(h) >> 8) * (1.0f / (1 << 20)) * ((h & 1) ? 1.0f : 1e-3f);
}
__host__ __device__ inline float sum_of(uint32_t call, uint32_t world, uint32_t i) {
    float sum = number(call, 0, i) + 0.0f;
    for (uint32_t rank = 1; rank < world; rank++)
        sum += number(call, rank, i) + 0.0f;
    return sum;
}

// x of this rank for the next call, perhaps late.
__global__ void make(float *x, uint32_t count, uint32_t *call, uint32_t rank, bool is_late) {
    const uint32_t now = *call;
    uint32_t h = (now * 2654435761u) ^ (rank * 40503u);
    h ^= h >> 13, h *= 0x5bd1e995u, h ^= h >> 15;
    if (is_late && h % 4 == 0) {
        const uint64_t until = now_ns() + h / 4 % 16384;
        while (now_ns() < until)
            ;
    }
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        x[i] = number(now, rank, i);
}
constexpr uint32_t SLOT = 128 * 8192;

struct Rank {
    int device;
    cudaStream_t stream;
    Peers peers{};
    float *x, *residual, *gain, *squares, *full;
    bf16 *weighted;
    uint32_t *call, *wrong;
};

template <typename T> T *take(size_t count) {
    T *p;
    CHECK(cudaMalloc(&p, count * sizeof(T)));
    CHECK(cudaMemset(p, 0, count * sizeof(T)));
    return p;
}

// As many as there are devices, at least two; `shared` is what they share with the host, if it is
// wanted.
static std::vector<Rank> make_ranks(int &devices, Shared **wanted) {
    // Loading a kernel when it is first launched waits for all that run, also for those that wait
    // for it.
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    CHECK(cudaGetDeviceCount(&devices));
    devices = std::min(devices, int(MAX_WORLD));
    const uint32_t world = std::max(2, devices);
    Shared *shared;
    CHECK(cudaHostAlloc(&shared, sizeof *shared, cudaHostAllocMapped | cudaHostAllocPortable));
    memset(shared, 0, sizeof *shared);
    if (wanted)
        *wanted = shared;
    std::vector<Rank> ranks(world);
    for (uint32_t r = 0; r < world; r++) {
        Rank &rank = ranks[r];
        rank.device = r % devices;
        CHECK(cudaSetDevice(rank.device));
        for (int other = 0; other < devices; other++)
            if (other != rank.device) {
                const cudaError_t error = cudaDeviceEnablePeerAccess(other, 0);
                if (error != cudaErrorPeerAccessAlreadyEnabled)
                    CHECK(error);
                cudaGetLastError();
            }
        CHECK(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking));
        rank.x = take<float>(SLOT), rank.residual = take<float>(SLOT),
        rank.gain = take<float>(8192);
        rank.squares = take<float>(SLOT / 8), rank.full = take<float>(SLOT * world);
        rank.weighted = take<bf16>(SLOT);
        rank.call = take<uint32_t>(1), rank.wrong = take<uint32_t>(1);
        const size_t words = size_t(BUFFERS) * world * SLOT;
        rank.peers.memory[r] = take<float>(words);
        std::vector<uint32_t> empty(words, EMPTY);
        CHECK(cudaMemcpy(rank.peers.memory[r], empty.data(), words * 4, cudaMemcpyHostToDevice));
        rank.peers.calls = take<Calls>(BLOCKS);
        rank.peers.has_failed = take<uint32_t>(1);
        rank.peers.shared = shared;
        rank.peers.timeout_ns = 2'000'000'000;
        rank.peers.rank = r, rank.peers.world = world, rank.peers.slot_floats = SLOT;
    }
    for (Rank &rank : ranks)
        for (uint32_t r = 0; r < world; r++)
            rank.peers.memory[r] = ranks[r].peers.memory[r];
    return ranks;
}

template <typename A>
void launch(void (*kernel)(A), const Rank &rank, A a, uint32_t blocks = BLOCKS,
            uint32_t threads = THREADS) {
    cudaLaunchConfig_t config{};
    config.gridDim = blocks, config.blockDim = threads, config.stream = rank.stream;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute, config.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&config, kernel, a));
}

static void wait_for(std::vector<Rank> &ranks) {
    for (Rank &rank : ranks) {
        CHECK(cudaSetDevice(rank.device));
        CHECK(cudaStreamSynchronize(rank.stream));
    }
}

template <typename T> std::vector<T> fetch(const T *from, size_t count) {
    std::vector<T> host(count);
    CHECK(cudaMemcpy(host.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}
