// Checks and times cuda/skinny_linear.cu: y = x W^T for 1..16 rows. `check` compares every epilogue
// with a float64 twin, and the linears between two attentions with the norms among them, step by
// step; `time` and `chain` give the share of a streaming read of the same run.
#include "../../cuda/skinny_linear.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <string>
#include <vector>

static void check_cuda(cudaError_t error, const char *what, int line) {
    if (error == cudaSuccess)
        return;
    printf("line %d: %s: %s\n", line, what, cudaGetErrorString(error));
    exit(1);
}
#define CHECK(x) check_cuda((x), #x, __LINE__)

using skinny::Arguments;

// ---- data ----

__device__ inline uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
__device__ inline float normal(uint64_t seed, uint64_t i) {
    uint64_t h = mix(seed * 0x100000001b3ull + i);
    float u = ((h >> 40) + 1) * (1.0f / 16777217.0f), v = (h & 0xffffff) * (1.0f / 16777216.0f);
    return sqrtf(-2.0f * __logf(u)) * __cosf(6.2831853f * v);
}
template <typename T> __device__ inline void put(T *to, float v);
template <> __device__ inline void put(float *to, float v) { *to = v; }
template <> __device__ inline void put(__half *to, float v) { *to = __float2half_rn(v); }
template <> __device__ inline void put(__nv_bfloat16 *to, float v) { *to = __float2bfloat16_rn(v); }
template <typename T> __device__ inline float get(T v);
template <> __device__ inline float get(float v) { return v; }
template <> __device__ inline float get(__half v) { return __half2float(v); }
template <> __device__ inline float get(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T> __global__ void fill(T *to, uint64_t count, uint64_t seed, float scale) {
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < count;
         i += (uint64_t)gridDim.x * blockDim.x)
        put(to + i, normal(seed, i) * scale);
}

// y and the root of the sum of squared terms, in float64: the size of a random walk's excursions.
template <typename T>
__global__ void twin(const T *w, const T *x, double *y, double *walk, uint32_t rows, uint32_t n,
                     uint32_t k) {
    uint64_t item = (blockIdx.x * (uint64_t)blockDim.x + threadIdx.x) / 32;
    if (item >= (uint64_t)rows * n)
        return;
    uint32_t row = item / n, col = item % n, lane = threadIdx.x % 32;
    double sum = 0, square = 0;
    for (uint32_t i = lane; i < k; i += 32) {
        double p = (double)get(w[(uint64_t)col * k + i]) * (double)get(x[(uint64_t)row * k + i]);
        sum += p, square += p * p;
    }
    for (int o = 16; o; o /= 2) {
        sum += __shfl_xor_sync(~0u, sum, o);
        square += __shfl_xor_sync(~0u, square, o);
    }
    if (lane == 0)
        y[item] = sum, walk[item] = sqrt(square);
}

template <typename T> __global__ void widen(const T *from, float *to, uint64_t count) {
    uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x;
    if (i < count)
        to[i] = get(from[i]);
}

// ---- launching ----

typedef void (*Kernel)(const Arguments);
template <typename T> Kernel kernel_of(bool sixteen);
template <> Kernel kernel_of<__nv_bfloat16>(bool sixteen) {
    return sixteen ? skinny_linear_bf16_16 : skinny_linear_bf16_8;
}
template <> Kernel kernel_of<__half>(bool sixteen) {
    return sixteen ? skinny_linear_f16_16 : skinny_linear_f16_8;
}
static int num_sms;
static int shared_of(bool sixteen) {
    return sixteen ? skinny::shared_bytes<2> : skinny::shared_bytes<1>;
}
static void allow_shared_memory() {
    for (int sixteen = 0; sixteen < 2; sixteen++)
        for (Kernel f : {kernel_of<__nv_bfloat16>(sixteen), kernel_of<__half>(sixteen)}) {
            CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       shared_of(sixteen)));
            int blocks;
            CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, skinny::NUM_THREADS,
                                                                shared_of(sixteen)));
            printf("%d rows: %d blocks an SM\n", sixteen ? 16 : 8, blocks);
        }
}
static Arguments plain(const void *w, const void *x, void *out, uint32_t rows, uint32_t n,
                       uint32_t k, uint32_t epilogue) {
    Arguments a = {};
    a.weights = w, a.x = x, a.out = out, a.rows = rows, a.n = n, a.k = k, a.epilogue = epilogue;
    return a;
}
static void launch(Kernel f, int grid, int shared, Arguments a, cudaStream_t s, bool pdl) {
    skinny::divide(a, grid);
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = grid, c.blockDim = skinny::NUM_THREADS, c.dynamicSmemBytes = shared, c.stream = s;
    c.attrs = &attribute, c.numAttrs = pdl;
    CHECK(cudaLaunchKernelEx(&c, f, a));
}

// ---- correctness ----

static int failures;

template <typename T> struct Case {
    uint32_t n, k, rows, epilogue;
    bool sixteen, with_bias;
    T *w, *x;
    float *bias, *before;
    void *out;
    double *y, *walk;

    uint64_t width() const { return epilogue == skinny::GATE_UP ? n / 2 : n; }
    bool wide() const { return epilogue == skinny::STORE_F32 || epilogue == skinny::ADD_F32; }
    uint64_t out_bytes() const { return rows * width() * (wide() ? 4 : 2); }
    static constexpr uint64_t GUARD = 4096;

    void prepare(uint64_t seed) {
        CHECK(cudaMalloc(&w, (uint64_t)n * k * 2));
        CHECK(cudaMalloc(&x, (uint64_t)rows * k * 2));
        CHECK(cudaMalloc(&bias, n * 4));
        CHECK(cudaMalloc(&before, (uint64_t)rows * n * 4));
        CHECK(cudaMalloc(&out, (uint64_t)rows * n * 4 + GUARD));
        CHECK(cudaMalloc(&y, (uint64_t)rows * n * 8));
        CHECK(cudaMalloc(&walk, (uint64_t)rows * n * 8));
        fill<<<512, 256>>>(w, (uint64_t)n * k, seed, 1.0f / sqrtf(k));
        fill<<<512, 256>>>(x, (uint64_t)rows * k, seed + 1, 1.0f);
        fill<<<512, 256>>>(bias, n, seed + 2, 1.0f);
        fill<<<512, 256>>>(before, (uint64_t)rows * n, seed + 3, 1.0f);
        twin<<<(rows * (uint64_t)n * 32 + 255) / 256, 256>>>(w, x, y, walk, rows, n, k);
        CHECK(cudaDeviceSynchronize());
    }
    void release() {
        for (void *p :
             {(void *)w, (void *)x, (void *)bias, (void *)before, out, (void *)y, (void *)walk})
            CHECK(cudaFree(p));
    }
    // Rows first .. first + count of the batch, in one launch; the outputs as f32.
    std::vector<float> run(uint32_t first, uint32_t count, bool sixteen_rows, int grid) {
        uint64_t outputs = count * width();
        CHECK(cudaMemset(out, 0xff, (uint64_t)rows * n * 4 + GUARD));
        if (epilogue == skinny::ADD_F32)
            CHECK(cudaMemcpy(out, before + first * (uint64_t)n, outputs * 4,
                             cudaMemcpyDeviceToDevice));
        Arguments a = plain(w, x + (uint64_t)first * k, out, count, n, k, epilogue);
        a.bias = with_bias ? bias : nullptr;
        launch(kernel_of<T>(sixteen_rows), grid, shared_of(sixteen_rows), a, 0, false);
        CHECK(cudaDeviceSynchronize());
        std::vector<float> h(outputs);
        uint64_t bytes = outputs * (wide() ? 4 : 2);
        std::vector<unsigned char> raw(bytes + GUARD);
        CHECK(cudaMemcpy(raw.data(), out, bytes + GUARD, cudaMemcpyDeviceToHost));
        for (uint64_t i = bytes; i < bytes + GUARD; i++)
            if (raw[i] != 0xff) {
                printf("FAIL: wrote beyond its output at byte %llu\n", (unsigned long long)i);
                failures++;
                break;
            }
        for (uint64_t i = 0; i < outputs; i++) {
            if (wide())
                memcpy(&h[i], &raw[4 * i], 4);
            else {
                uint16_t bits;
                memcpy(&bits, &raw[2 * i], 2);
                if (sizeof(T) == 2 && std::is_same<T, __nv_bfloat16>::value) {
                    uint32_t full = (uint32_t)bits << 16;
                    memcpy(&h[i], &full, 4);
                } else {
                    __half v;
                    memcpy(&v, &bits, 2);
                    h[i] = __half2float(v);
                }
            }
        }
        return h;
    }
};

// An f32 sum errs by at most one truncation of the running sum a step, and there are k/16 mma and
// a few dozen sums of sums. The running sum of independent terms stays within 6 deviations. One
// rounding to T and the f32 operations of the epilogue come on top.
template <typename T> void check(Case<T> c, uint64_t seed) {
    c.prepare(seed);
    uint64_t outputs = c.rows * c.width(), all = (uint64_t)c.rows * c.n;
    std::vector<double> y(all), walk(all);
    std::vector<float> bias(c.n), before(all);
    CHECK(cudaMemcpy(y.data(), c.y, all * 8, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(walk.data(), c.walk, all * 8, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(bias.data(), c.bias, c.n * 4, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(before.data(), c.before, all * 4, cudaMemcpyDeviceToHost));
    std::vector<float> got = c.run(0, c.rows, c.sixteen, num_sms);
    double half_ulp = std::is_same<T, __nv_bfloat16>::value ? 1.0 / 256 : 1.0 / 2048;
    double steps = (c.k / 16.0 + 64) * 6 * std::ldexp(1.0, -23);
    double worst = 0, mean = 0;
    uint64_t wrong = 0, first_wrong = ~0ull, last_wrong = 0;
    uint32_t rows_wrong = 0;
    for (uint64_t i = 0; i < outputs; i++) {
        uint64_t row = i / c.width(), o = i % c.width();
        double want, allowed;
        if (c.epilogue == skinny::GATE_UP) {
            uint64_t g = row * c.n + o / 8 * 16 + o % 8, u = g + 8;
            double silu = y[g] / (1 + std::exp(-y[g]));
            want = y[u] * silu;
            allowed = steps * (1.1 * std::fabs(y[u]) * walk[g] + std::fabs(silu) * walk[u]) +
                      std::fabs(want) * std::ldexp(1.0, -20);
        } else {
            want = y[i] + (c.epilogue == skinny::BIAS && c.with_bias ? bias[o] : 0) +
                   (c.epilogue == skinny::ADD_F32 ? before[i] : 0);
            allowed = steps * walk[i] + std::fabs(want) * std::ldexp(1.0, -23);
        }
        if (!c.wide())
            allowed += std::fabs(want) * half_ulp + std::ldexp(1.0, -25);
        double error = std::fabs(got[i] - want) / allowed;
        if (!(error <= 1) && wrong++ < 6)
            printf("  row %llu output %llu: %g, not %g\n", (unsigned long long)row,
                   (unsigned long long)o, got[i], want);
        if (!(error <= 1))
            rows_wrong |= 1u << row, first_wrong = std::min(first_wrong, o),
                                     last_wrong = std::max(last_wrong, o);
        if (!(error <= worst))
            worst = error; // also catches NaN
        mean += error / outputs;
    }
    if (wrong)
        printf("  %llu wrong, rows %x, outputs %llu .. %llu\n", (unsigned long long)wrong,
               rows_wrong, (unsigned long long)first_wrong, (unsigned long long)last_wrong);
    bool right = worst <= 1, same = got == c.run(0, c.rows, c.sixteen, num_sms / 3 + 1);
    bool alone = true; // each row by itself has the bits it has in the batch
    for (uint32_t row = 0; row < c.rows; row += c.rows > 4 ? 3 : 1) {
        std::vector<float> one = c.run(row, 1, false, num_sms);
        alone &= memcmp(one.data(), &got[row * c.width()], one.size() * 4) == 0;
    }
    bool good = right && same && alone;
    failures += !good;
    printf("%s n %6u k %5u rows %2u(%2d) epilogue %u%s: error/allowed max %.3f mean %.4f%s%s%s\n",
           good ? "ok  " : "FAIL", c.n, c.k, c.rows, c.sixteen ? 16 : 8, c.epilogue,
           c.with_bias ? "b" : " ", worst, mean, right ? "" : " WRONG", same ? "" : " UNSTABLE",
           alone ? "" : " DEPENDS-ON-ROWS");
    c.release();
}

template <typename T> void check_all(uint64_t seed) {
    struct Shape {
        uint32_t n, k;
    } shapes[] = {{8, 64},       {24, 64},      {16, 128},    {1728, 576},   {576, 576},
                  {3072, 576},   {576, 1536},   {2048, 2048}, {11008, 2048}, {2048, 5504},
                  {12288, 4096}, {4096, 11008}, {4104, 2112}, {5120, 13696}, {8192, 8192},
                  {8192, 24576}, {49152, 576},  {24576, 8192}};
    for (auto s : shapes) {
        seed += 10;
        uint32_t big = s.n >= 8192 && s.k >= 8192;
        for (uint32_t rows = 1; rows <= 16; rows++) {
            if ((big || s.n > 20000) && rows != 1 && rows != 8 && rows != 16)
                continue;
            if (s.n > 1000 && rows > 9 && rows < 16)
                continue;
            uint32_t epilogue = (rows + s.n / 8 + s.k / 64) % 4;
            if (rows == 1 || rows == 8) {
                for (uint32_t e = 0; e < 4; e++)
                    if (e != skinny::GATE_UP || s.n % 16 == 0)
                        check<T>({s.n, s.k, rows, e, false, rows == 8}, seed + rows);
                continue;
            }
            if (epilogue == skinny::GATE_UP && s.n % 16)
                epilogue = skinny::BIAS;
            check<T>({s.n, s.k, rows, epilogue, rows > 8, true}, seed + rows);
        }
    }
}

#include "skinny_chain.cuh"
#include "skinny_timing.cuh"

int main(int argc, char **argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    num_sms = properties.multiProcessorCount;
    printf("%s, %d SMs; %d stages, %d + %d warps\n", properties.name, num_sms,
           skinny::num_stages<1>, skinny::NUM_WARPS, skinny::NUM_FEEDERS);
    allow_shared_memory();
    std::string all = argc > 1 ? argv[1] : "check,time,chain";
    if (all.find("check") != std::string::npos) {
        check_chains<__nv_bfloat16>(20000), check_chains<__half>(30000);
        check_all<__nv_bfloat16>(1000), check_all<__half>(5000);
        printf("%s: %d failures\n", failures ? "FAILED" : "all checks passed", failures);
    }
    bool timed = all.find("time") != std::string::npos,
         chained = all.find("chain") != std::string::npos;
    if (timed || chained) {
        Bench b;
        b.prepare(), b.measure_peak();
        if (timed)
            time_matrices(b, all.find("time-big") == std::string::npos);
        if (chained)
            for (Model m :
                 {Model{"72B", 8192, 24576, 152064, 20}, Model{"7B", 4096, 11008, 151936, 32},
                  Model{"1.8B", 2048, 5504, 151936, 24}})
                for (uint32_t rows : {1u, 8u})
                    time_chain(b, m, rows);
    }
    return failures != 0;
}
