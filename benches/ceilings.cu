// ceilings: what a GPU can do at most, measured: the rates that a model's speed is held against.
//
//   ceilings [DEVICE]     prints one JSON object
//
//   read_gb_s               best streaming read of device memory, decimal GB/s
//   gemm_burst_tflop_s      bf16 matrix product 8192^3, f32 sums: best product of a cool card
//   gemm_sustained_tflop_s  the same averaged over seconds: what power and clocks allow for long
//
// Read: blocks stride over a buffer far larger than the L2 (8 GiB, or half of what is free), 8 x 16
// bytes in flight a thread; several block counts are tried and the best kept: ceilings are maxima.
//
//   |block 0: 512 threads x 8 x 16 B = 64 KiB|block 1: the next 64 KiB| ... |block 0 again| ...
//
// Product: cuBLASLt, opened at run time, so that the program starts where it is missing (the rates
// are then left out); of its proposals the fastest. All data is random: constant data draws less
// power and multiplies up to 13 % faster. Its few types are declared here, for its headers are not
// part of every toolkit.
//
// Measured on an H200, 2026-11-24: 4552 GB/s, 825 and 686 TFLOP/s; the whole program takes 4 s.

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int THREADS = 512;
constexpr int IN_FLIGHT = 8;
constexpr size_t TILE_BYTES = size_t(THREADS) * IN_FLIGHT * 16;
constexpr int SIZE = 8192;
constexpr size_t WORKSPACE_BYTES = size_t(64) << 20;
constexpr double SUSTAINED_S = 2.5;

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess)
        return;
    std::fprintf(stderr, "ceilings: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

// Past the L1, which a stream cannot use.
__device__ __forceinline__ uint4 load_stream(const uint4 *from) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from));
    return x;
}

__global__ void __launch_bounds__(THREADS) read(const uint4 *data, size_t tiles, uint32_t *sink) {
    uint32_t all = 0;
    for (size_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint4 *from = data + tile * (THREADS * IN_FLIGHT) + threadIdx.x;
        uint4 x[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            x[i] = load_stream(from + i * THREADS);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            all ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    // Never so, but the compiler cannot know.
    if (all == 0x9e3779b9u && tiles == 0)
        *sink = all;
}

__device__ __forceinline__ uint32_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return uint32_t(z >> 32);
}

// Random bf16 pairs: random signs and mantissas, exponents of 1/8 to 2 (sizes 0.125 to 4).
__global__ void fill(uint32_t *out, size_t words, uint64_t seed) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
         i += size_t(gridDim.x) * blockDim.x) {
        const uint32_t bits = mix(seed + i * 0x9e3779b97f4a7c15ull);
        const uint32_t low = 124u + (bits >> 7 & 3u), high = 124u + (bits >> 23 & 3u);
        out[i] = (bits & 0x807f807fu) | low << 7 | high << 23;
    }
}

struct Timer {
    cudaEvent_t from, to;
    Timer() {
        check(cudaEventCreate(&from), "event");
        check(cudaEventCreate(&to), "event");
    }
    template <typename Work> double seconds(Work &&work) {
        check(cudaEventRecord(from), "record");
        work();
        check(cudaEventRecord(to), "record");
        check(cudaEventSynchronize(to), "run");
        float ms = 0.0f;
        check(cudaEventElapsedTime(&ms, from, to), "time");
        return ms * 1e-3;
    }
};

double read_bytes_per_s(int num_sms) {
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
    const size_t tiles = std::min(size_t(8) << 30, free_bytes / 2) / TILE_BYTES;
    uint32_t *data = nullptr;
    check(cudaMalloc(&data, tiles * TILE_BYTES), "allocate");
    fill<<<num_sms * 8, 256>>>(data, tiles * TILE_BYTES / 4, 1);
    Timer timer;
    double best_s = 1e9;
    for (int round = 0; round < 3; round++)
        for (int blocks_an_sm = 1; blocks_an_sm <= 4; blocks_an_sm++)
            best_s = std::min(best_s, timer.seconds([&] {
                const auto *from = reinterpret_cast<const uint4 *>(data);
                read<<<num_sms * blocks_an_sm, THREADS>>>(from, tiles, data);
                check(cudaGetLastError(), "read");
            }));
    check(cudaFree(data), "free");
    return double(tiles * TILE_BYTES) / best_s;
}

// cuBLASLt's interface, as far as it is used here.
struct Algorithm {
    uint64_t data[8];
};
struct Proposal {
    Algorithm algorithm;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};
constexpr int COMPUTE_32F = 68, TYPE_32F = 0, TYPE_16BF = 14, DESCRIPTION_TRANSPOSE_A = 3,
              PREFERENCE_WORKSPACE_BYTES = 1;

struct BlasLt {
    void *library = nullptr;
    int (*create)(void **);
    int (*describe)(void **, int, int);
    int (*set)(void *, int, const void *, size_t);
    int (*layout)(void **, int, uint64_t, uint64_t, int64_t);
    int (*preference)(void **);
    int (*prefer)(void *, int, const void *, size_t);
    int (*propose)(void *, void *, void *, void *, void *, void *, void *, int, Proposal *, int *);
    int (*multiply)(void *, void *, const void *, const void *, void *, const void *, void *,
                    const void *, const void *, void *, void *, void *, const Algorithm *, void *,
                    size_t, cudaStream_t);

    template <typename Function> bool find(Function &function, const char *name) {
        function = reinterpret_cast<Function>(dlsym(library, name));
        return function != nullptr;
    }
    bool open() {
        for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
            if (!library)
                library = dlopen(name, RTLD_NOW);
        return library && find(create, "cublasLtCreate") &&
               find(describe, "cublasLtMatmulDescCreate") &&
               find(set, "cublasLtMatmulDescSetAttribute") &&
               find(layout, "cublasLtMatrixLayoutCreate") &&
               find(preference, "cublasLtMatmulPreferenceCreate") &&
               find(prefer, "cublasLtMatmulPreferenceSetAttribute") &&
               find(propose, "cublasLtMatmulAlgoGetHeuristic") && find(multiply, "cublasLtMatmul");
    }
};

// C = A^T B, all SIZE x SIZE bf16: the layout of the model's linears.
struct Product {
    BlasLt blas;
    void *handle, *description, *square, *wish;
    uint32_t *a, *b, *c, *workspace;
    Proposal proposals[16];
    int num_proposals = 0;

    bool prepare(int num_sms) {
        const int transposed = 1;
        const size_t workspace_bytes = WORKSPACE_BYTES;
        if (!blas.open() || blas.create(&handle) ||
            blas.describe(&description, COMPUTE_32F, TYPE_32F) ||
            blas.set(description, DESCRIPTION_TRANSPOSE_A, &transposed, sizeof transposed) ||
            blas.layout(&square, TYPE_16BF, SIZE, SIZE, SIZE) || blas.preference(&wish) ||
            blas.prefer(wish, PREFERENCE_WORKSPACE_BYTES, &workspace_bytes,
                        sizeof workspace_bytes) ||
            blas.propose(handle, description, square, square, square, square, wish, 16, proposals,
                         &num_proposals))
            return false;
        constexpr size_t BYTES = size_t(SIZE) * SIZE * 2;
        for (uint32_t **matrix : {&a, &b, &c}) {
            check(cudaMalloc(matrix, BYTES), "allocate");
            fill<<<num_sms * 8, 256>>>(*matrix, BYTES / 4, uint64_t(matrix - &a) + 2);
        }
        check(cudaMalloc(&workspace, WORKSPACE_BYTES), "allocate");
        return num_proposals > 0;
    }
    int run(const Proposal &proposal) {
        const float one = 1.0f, zero = 0.0f;
        return blas.multiply(handle, description, &one, a, square, b, square, &zero, c, square, c,
                             square, &proposal.algorithm, workspace, WORKSPACE_BYTES, nullptr);
    }
};

struct GemmRates {
    double burst = 0.0, sustained = 0.0;
};

GemmRates gemm_flops(int num_sms) {
    constexpr double FLOPS = 2.0 * SIZE * double(SIZE) * SIZE;
    constexpr int SOME = 20;
    Product product;
    GemmRates rates;
    if (!product.prepare(num_sms))
        return rates;
    Timer timer;
    const Proposal *best = nullptr;
    for (int i = 0; i < product.num_proposals; i++) {
        if (product.run(product.proposals[i]) != 0)
            continue;
        for (int round = 0; round < 3; round++) {
            const double flops = FLOPS / timer.seconds([&] { product.run(product.proposals[i]); });
            if (flops > rates.burst) {
                rates.burst = flops;
                best = &product.proposals[i];
            }
        }
    }
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const auto elapsed = [&] {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double busy_s = 0.0, count = 0.0;
    while (best && elapsed() < SUSTAINED_S) {
        const double s = timer.seconds([&] {
            for (int i = 0; i < SOME; i++)
                product.run(*best);
        });
        // The first fifth warms the card up.
        if (elapsed() > SUSTAINED_S / 5) {
            busy_s += s;
            count += SOME;
        }
    }
    rates.sustained = busy_s > 0.0 ? count * FLOPS / busy_s : 0.0;
    return rates;
}

} // namespace

int main(int argc, char **argv) {
    const int device = argc > 1 ? std::atoi(argv[1]) : 0;
    check(cudaSetDevice(device), "no such device");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "properties");
    const double read = read_bytes_per_s(properties.multiProcessorCount);
    const GemmRates gemm = gemm_flops(properties.multiProcessorCount);
    std::printf("{\"device\": \"%s\", \"read_gb_s\": %.1f", properties.name, read / 1e9);
    if (gemm.burst > 0.0)
        std::printf(", \"gemm_burst_tflop_s\": %.1f, \"gemm_sustained_tflop_s\": %.1f",
                    gemm.burst / 1e12, gemm.sustained / 1e12);
    std::printf("}\n");
    return 0;
}
