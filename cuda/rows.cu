// Row-wise kernels around the matrix products: embedding, RMSNorm with residual, gathers, SwiGLU.
//
//   embed        residual[row] = table[token_ids[row]]                              T -> f32, exact
//                an id with its highest bit set is fed: id = drawn[id without it], and written back
//   add_norm     residual += delta (if given); out = residual * rsqrt(mean(residual^2) + eps) * w
//   gather_rows  out[i] = x[rows[i]]                                                f32
//   silu_mul     out = up * silu(gate), silu(x) = x / (1 + exp(-x))                 T -> T
//
// Shapes: residual, delta [rows, hidden] f32; w [hidden] f32; out [rows, hidden] T; table
// [vocab, hidden] T (device memory, or pinned host memory that the device maps); gate_up
// [rows, 2 * width] T with columns in blocks of 16, eight gates then the ups of the same eight
// outputs; out [rows, width] T. hidden and width are multiples of 8.
//
// Grid: embed, add_norm, gather_rows: one block a row. silu_mul: blocks of 256 threads stride over
// (row, group of 8 outputs).
//
//   block b:  |thread 0: 8 columns|thread 1: 8 columns| ... |thread THREADS-1|thread 0 again ...
//
// Bytes: embed 6 * rows * hidden; add_norm (8 + 4 (delta) + 2) * rows * hidden;
// silu_mul 6 * rows * width. FLOPs are of no account: all of them are bound by memory, and at one
// row by the latency of one trip to it (about 2 us a kernel).
// Accumulates in f32; a row's sum of squares is always added in the same order, so its bits do not
// depend on the other rows.
//
// Ladder
//   2026-11-24  first version; expected at the copy rate (4.3 TB/s on an H200) for 6144 rows.

#include "common.cuh"

using namespace qwen;

namespace {

constexpr int NORM_THREADS = 512;
constexpr uint32_t FED = 1u << 31;
constexpr uint32_t NO_TOKEN = 0xffffffffu;

template <typename T>
__device__ void embed(float *residual, const T *table, uint32_t *token_ids, const uint32_t *drawn,
                      int hidden) {
    wait_for_predecessor();
    release_successor();
    const size_t row = blockIdx.x;
    uint32_t id = token_ids[row];
    if (id & FED) { // the same for the whole block
        id = drawn[id & ~FED];
        id = id == NO_TOKEN ? 0 : id; // its sequence is about to fail
        __syncthreads();
        if (threadIdx.x == 0)
            token_ids[row] = id;
    }
    const T *from = table + size_t(id) * hidden;
    float *to = residual + row * hidden;
    for (int col = threadIdx.x * 8; col < hidden; col += blockDim.x * 8) {
        const Vec8<T> x = *reinterpret_cast<const Vec8<T> *>(from + col);
        float4 low = {to_f32(x.at[0]), to_f32(x.at[1]), to_f32(x.at[2]), to_f32(x.at[3])};
        float4 high = {to_f32(x.at[4]), to_f32(x.at[5]), to_f32(x.at[6]), to_f32(x.at[7])};
        *reinterpret_cast<float4 *>(to + col) = low;
        *reinterpret_cast<float4 *>(to + col + 4) = high;
    }
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ __forceinline__ float square_sum(float4 a) {
    return a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
}

template <typename T> __device__ __forceinline__ void store4(T *to, float4 x, float4 w, float scale) {
    struct alignas(8) Four {
        T at[4];
    } four;
    four.at[0] = from_f32<T>(x.x * scale * w.x);
    four.at[1] = from_f32<T>(x.y * scale * w.y);
    four.at[2] = from_f32<T>(x.z * scale * w.z);
    four.at[3] = from_f32<T>(x.w * scale * w.w);
    *reinterpret_cast<Four *>(to) = four;
}

// The row stays in registers between the two passes up to KEPT vectors a thread (hidden 8192);
// longer rows are read again.
template <typename T>
__device__ void add_norm(T *out, float *residual, const float *delta, const float *weight,
                         float epsilon, int hidden) {
    constexpr int KEPT = 4;
    __shared__ float scratch[NORM_THREADS / 32];
    const size_t start = size_t(blockIdx.x) * hidden;
    float4 kept[KEPT];
    wait_for_predecessor();
    release_successor();
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const int col = (i * NORM_THREADS + threadIdx.x) * 4;
        if (col < hidden) {
            kept[i] = *reinterpret_cast<const float4 *>(residual + start + col);
            if (delta != nullptr) {
                kept[i] = add(kept[i], *reinterpret_cast<const float4 *>(delta + start + col));
                *reinterpret_cast<float4 *>(residual + start + col) = kept[i];
            }
            squares += square_sum(kept[i]);
        }
    }
    for (int col = (KEPT * NORM_THREADS + threadIdx.x) * 4; col < hidden; col += NORM_THREADS * 4) {
        float4 x = *reinterpret_cast<const float4 *>(residual + start + col);
        if (delta != nullptr) {
            x = add(x, *reinterpret_cast<const float4 *>(delta + start + col));
            *reinterpret_cast<float4 *>(residual + start + col) = x;
        }
        squares += square_sum(x);
    }
    const float mean = block_sum<NORM_THREADS>(squares, scratch) / float(hidden);
    const float scale = 1.0f / sqrtf(mean + epsilon);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const int col = (i * NORM_THREADS + threadIdx.x) * 4;
        if (col < hidden)
            store4(out + start + col, kept[i], *reinterpret_cast<const float4 *>(weight + col), scale);
    }
    for (int col = (KEPT * NORM_THREADS + threadIdx.x) * 4; col < hidden; col += NORM_THREADS * 4)
        store4(out + start + col, *reinterpret_cast<const float4 *>(residual + start + col),
               *reinterpret_cast<const float4 *>(weight + col), scale);
}

template <typename T>
__device__ void silu_mul(T *out, const T *gate_up, uint64_t groups) {
    wait_for_predecessor();
    release_successor();
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t group = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
         group += stride) {
        const Vec8<T> gate = reinterpret_cast<const Vec8<T> *>(gate_up)[2 * group];
        const Vec8<T> up = reinterpret_cast<const Vec8<T> *>(gate_up)[2 * group + 1];
        Vec8<T> result;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float x = to_f32(gate.at[i]);
            result.at[i] = from_f32<T>(to_f32(up.at[i]) * (x / (1.0f + __expf(-x))));
        }
        reinterpret_cast<Vec8<T> *>(out)[group] = result;
    }
}

} // namespace

extern "C" {

__global__ void __launch_bounds__(256) embed_bf16(float *residual, const bf16 *table,
                                                  uint32_t *token_ids, const uint32_t *drawn,
                                                  int hidden) {
    embed(residual, table, token_ids, drawn, hidden);
}

__global__ void __launch_bounds__(256) embed_f16(float *residual, const f16 *table,
                                                 uint32_t *token_ids, const uint32_t *drawn,
                                                 int hidden) {
    embed(residual, table, token_ids, drawn, hidden);
}

__global__ void __launch_bounds__(NORM_THREADS)
    add_norm_bf16(bf16 *out, float *residual, const float *delta, const float *weight,
                  float epsilon, int hidden) {
    add_norm(out, residual, delta, weight, epsilon, hidden);
}

__global__ void __launch_bounds__(NORM_THREADS)
    add_norm_f16(f16 *out, float *residual, const float *delta, const float *weight, float epsilon,
                 int hidden) {
    add_norm(out, residual, delta, weight, epsilon, hidden);
}

__global__ void __launch_bounds__(256) silu_mul_bf16(bf16 *out, const bf16 *gate_up,
                                                     uint64_t groups) {
    silu_mul(out, gate_up, groups);
}

__global__ void __launch_bounds__(256) silu_mul_f16(f16 *out, const f16 *gate_up,
                                                    uint64_t groups) {
    silu_mul(out, gate_up, groups);
}

__global__ void __launch_bounds__(256) gather_rows(float *out, const float *x,
                                                   const uint32_t *rows, int cols) {
    wait_for_predecessor();
    release_successor();
    const float *from = x + size_t(rows[blockIdx.x]) * cols;
    float *to = out + size_t(blockIdx.x) * cols;
    for (int col = threadIdx.x * 4; col < cols; col += blockDim.x * 4)
        *reinterpret_cast<float4 *>(to + col) = *reinterpret_cast<const float4 *>(from + col);
}
}
