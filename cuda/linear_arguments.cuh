// The argument of the linear kernels for few rows, skinny_linear.cu's and quant_linear.cu's, and
// what they do with a product. Either may follow the other where a norm is divided between them.
#pragma once

#include "exchange.cuh"

namespace qwen::linear {

// What is done with y [rows, n]; T is the type of x. Only quantised linears add a bias to f32.
//   BIAS:      out [rows, n] T    = y (+ bias)
//   STORE_F32: out [rows, n] f32  = y (+ bias)
//   ADD_F32:   out [rows, n] f32 += y (+ bias)                 (the residual stream)
//   GATE_UP:   out [rows, n/2] T  = up * silu(gate); the rows of W are interleaved in blocks of 16:
//              8 gate rows, then the up rows of the same 8 outputs; no bias
//   ADD_NORM:  out += y (+ bias), weighted [rows, n] T = out * gain [n] / range, squares = sums of
//              out^2
//   SEND:      out [rows, n] f32  = y (+ bias), which also goes to all other ranks, for the sum
//   over
//              them that is the next call of their exchange
enum Epilogue : uint32_t {
    BIAS = 0,
    STORE_F32 = 1,
    ADD_F32 = 2,
    GATE_UP = 3,
    ADD_NORM = 4,
    SEND = 5
};

struct Arguments {
    const void *weights; //  0  [n, k]: T row-major, or packed
    const void *x;       //  8  [rows, k] T
    const float *bias;   // 16  [n], or null
    void *out;           // 24  see above
    const float *gain;   // 32  [n], the weight of the norm that follows (ADD_NORM only)
    void *weighted;      // 40  [rows, n] T (ADD_NORM); exchange::Peers, on the device (SEND)
    float *squares;      // 48  of an ADD_NORM, sums of eight: [rows, 2 * tiles of 16 outputs]
    uint32_t rows, n, k; // 56
    uint32_t epilogue;   // 68
    uint32_t normalised; // 72  x is `weighted` of an ADD_NORM, `squares` its sums
    uint32_t tiles;      // 76  of a block, but for the last ones
    uint32_t group;      // 80  tiles that share a pass over x
    float epsilon;       // 84  of the norm that x still needs
    uint32_t groups;     // 88  quantised: of a chunk that have a scale of their own: 1, 2 or 4
    uint32_t has_zeros;  // 92  quantised, 1: there are zeros; else all are the middle, 8 or 128
    uint32_t split;      // 96  quantised, 2: a pair of blocks, a cluster, has half of k each
    uint32_t unused;     // 100
};
static_assert(sizeof(Arguments) == 104, "as the host has it");

// Weighted streams are rounded before they are normalised. bf16 has the range of f32 for that; f16
// gets them divided by this: stream times gain up to a million fits, more is cut there. What is
// below 0.001 loses bits, 5e-7 at most: as much as f16's own rounding where a row's mean size is
// 0.001.
template <typename T> constexpr float weighted_range = 1.0f;
template <> constexpr float weighted_range<__half> = 16.0f;

// An element of a weighted stream, to be rounded.
template <typename T> __host__ __device__ inline float weigh(float stream, float gain) {
    const float y = stream * gain / weighted_range<T>;
    return weighted_range<T> == 1.0f ? y : fminf(fmaxf(y, -65504.0f), 65504.0f);
}

// Where a row's sums of squares of 16 outputs from `n` on are: two, of eight.
__device__ inline uint64_t squares_at(uint32_t row, uint32_t n, uint32_t width) {
    return 2 * (uint64_t(row) * ((width + 15) / 16) + n / 16);
}

// What a row of a normalised x must still be multiplied by. A whole warp; every lane gets it.
template <typename T> __device__ inline float row_scale(const Arguments &a, uint32_t row) {
    const uint32_t tiles = (a.k + 15) / 16;
    const float2 *from = reinterpret_cast<const float2 *>(a.squares) + uint64_t(row) * tiles;
    float sum = 0;
#pragma unroll 8
    for (uint32_t i = threadIdx.x % 32; i < tiles; i += 32) {
        const float2 two = __ldcg(from + i);
        sum += two.x + two.y;
    }
    sum = warp_sum(sum);
    // The last term is 0, or makes a number of what is none: the product would be 0 otherwise.
    return weighted_range<T> / sqrtf(sum / static_cast<float>(a.k) + a.epsilon) + 0.0f * sum;
}

// The call that SEND sends for: known when the kernel before has ended.
__device__ inline uint32_t next_call(const Arguments &a) {
    const auto *peers = static_cast<const exchange::Peers *>(a.weighted);
    return a.epilogue == SEND ? __ldcg(&peers->calls->count) : 0;
}

// SEND's part that the others get, of output `at`.
template <int VECTOR>
__device__ inline void send(const Arguments &a, uint32_t call, const float (&y)[VECTOR],
                            uint64_t at) {
    exchange::Numbers<VECTOR> v;
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        v.at[i] = y[i];
    exchange::send(*static_cast<const exchange::Peers *>(a.weighted), call, exchange::sendable(v),
                   at);
}

__device__ inline float gated(float gate, float up) { return up * (gate / (1.0f + expf(-gate))); }

} // namespace qwen::linear
