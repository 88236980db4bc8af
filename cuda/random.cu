// Random weights for measuring: independent normal numbers, the same as the host makes.
//
//   x(i) = mean + deviation * r(i / 2) * (cos or sin)(2 pi u(i / 2)), cos for even i, sin for odd
//   r(p) = sqrt(-2 ln ((bits(p) >> 40) + 1/2) / 2^24),  u(p) = (bits(p) mod 2^24) / 2^24
//   bits(p) = SplitMix64's finaliser of seed + (p + 1) * 0x9e3779b97f4a7c15
//
// Inputs: seed, mean, deviation. Output: T [8 * groups], row-major; after every `gap` groups of
// eight elements, `gap` groups are left as they are (0: none), so that two matrices can lie
// interleaved. The twin on the host is src/backend/random.rs; the two differ by rounding of ln, cos
// and sin.
//
// Grid: blocks of 256 threads stride over groups of eight elements.
//
//   |thread 0: elements 0-7|thread 1: elements 8-15| ... |thread 0 of the next block| ...
//
// Bytes: 16 * groups written. About 60 instructions a pair, so that arithmetic bounds it: 72e9
// elements, the whole of a 72B model, are expected to take 0.1 to 0.2 s on an H200 (not timed alone
// yet; the 1.8B shape opened in 1.9 s there, 2026-11-24, vocabulary and cache included).
// Arithmetic in f32, rounded once to T. Deterministic: element i depends on seed and i alone.
//
// Ladder
//   first version; it runs once, at open, and what it saves is writing and reading 145 GB of files.

#include "common.cuh"
#include "random.cuh"

using namespace qwen;

namespace {

// Two independent numbers, N(0, 1).
__device__ __forceinline__ float2 normal_pair(uint64_t seed, uint64_t pair) {
    constexpr float SCALE = 1.0f / 16777216.0f;
    const uint64_t bits = random_bits(seed, pair);
    // Never 0, whose logarithm is infinite.
    const float radius_bits = (float(uint32_t(bits >> 40)) + 0.5f) * SCALE;
    const float turns = float(uint32_t(bits) & 0xffffffu) * SCALE;
    const float radius = sqrtf(-2.0f * logf(radius_bits));
    float sine, cosine;
    sincospif(2.0f * turns, &sine, &cosine);
    return {radius * cosine, radius * sine};
}

template <typename T>
__device__ void random_normal(T *out, uint64_t groups, uint64_t gap, uint64_t seed, float mean,
                              float deviation) {
    wait_for_predecessor();
    release_successor();
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t group = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
         group += stride) {
        Vec8<T> eight;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 pair = normal_pair(seed, group * 4 + i);
            eight.at[2 * i] = from_f32<T>(mean + deviation * pair.x);
            eight.at[2 * i + 1] = from_f32<T>(mean + deviation * pair.y);
        }
        const uint64_t skipped = gap == 0 ? 0 : group / gap * gap;
        reinterpret_cast<Vec8<T> *>(out)[group + skipped] = eight;
    }
}

} // namespace

extern "C" {

__global__ void __launch_bounds__(256) random_normal_bf16(bf16 *out, uint64_t groups, uint64_t gap,
                                                          uint64_t seed, float mean,
                                                          float deviation) {
    random_normal(out, groups, gap, seed, mean, deviation);
}

__global__ void __launch_bounds__(256) random_normal_f16(f16 *out, uint64_t groups, uint64_t gap,
                                                         uint64_t seed, float mean,
                                                         float deviation) {
    random_normal(out, groups, gap, seed, mean, deviation);
}
}
