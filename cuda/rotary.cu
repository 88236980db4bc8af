// Rotary embedding and the write of keys and values to the paged cache.
//
//   rope_angles    cos, sin of position * inv_freq                         f64 inside, f32 out
//   rope_kv_write  (a, b) -> (a cos - b sin, b cos + a sin) for the pairs (d, d + D/2) of every
//                  query and key head; queries times query_scale; rounded to T; queries back in
//                  place, keys and values to the row's cache slot
//
// Shapes: positions, row_sequence [rows] u32; inv_freq [sequences, D/2] f32; cos, sin [rows, D/2]
// f32; qkv [rows, (num_heads + 2 * num_kv_heads) * D] T; query_scale [rows] f32; slots [rows] i32
// (page * 16 + offset; negative: the row is written nowhere, and left as it is);
// kv [pages, 2 (K, V), num_kv_heads, 16, D] T: one layer of the cache.
//
// The angle is position * inv_freq rounded to f32, as the model was trained with it; its cosine is
// taken in f64, so that it does not depend on a library's range reduction.
//
// Grid: rope_angles one thread an angle. rope_kv_write: one block of 256 threads a row:
//
//   block row:  | head 0: D/16 threads | head 1 | ... | q heads | k heads | v heads |   (strided)
//
// a thread owns eight pairs (or, of a value head, twice eight elements): two 16-byte loads, two
// 16-byte stores.
// Bytes: 4 * rows * qkv_cols (read and written once). Bound by memory; at one row by latency.
//
// Ladder
//   2026-11-24  first version.

#include "common.cuh"

using namespace qwen;

namespace {

constexpr int PAGE_TOKENS = 16;

template <typename T>
__device__ void rope_kv_write(T *qkv, T *kv, const float *cos, const float *sin,
                              const float *query_scale, const int32_t *slots, int num_heads,
                              int num_kv_heads, int dim) {
    wait_for_predecessor();
    release_successor();
    const size_t row = blockIdx.x;
    const int slot = slots[row];
    if (slot < 0)
        return;
    const int half = dim / 2, lanes = half / 8, heads = num_heads + 2 * num_kv_heads;
    T *base = qkv + row * heads * dim;
    const size_t head_size = size_t(PAGE_TOKENS) * dim;
    T *page = kv + size_t(slot / PAGE_TOKENS) * 2 * num_kv_heads * head_size;
    for (int item = threadIdx.x; item < heads * lanes; item += blockDim.x) {
        const int head = item / lanes, at = item % lanes * 8;
        T *from = base + head * dim + at;
        Vec8<T> a = *reinterpret_cast<const Vec8<T> *>(from);
        Vec8<T> b = *reinterpret_cast<const Vec8<T> *>(from + half);
        if (head < num_heads + num_kv_heads) {
            const float scale = head < num_heads ? query_scale[row] : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float c = cos[row * half + at + i], s = sin[row * half + at + i];
                const float x = to_f32(a.at[i]), y = to_f32(b.at[i]);
                a.at[i] = from_f32<T>((x * c - y * s) * scale);
                b.at[i] = from_f32<T>((y * c + x * s) * scale);
            }
        }
        // Queries stay, keys and values go to their head's lines of the page (keys first).
        T *to = head < num_heads
                    ? from
                    : page + (head - num_heads) * head_size + slot % PAGE_TOKENS * dim + at;
        *reinterpret_cast<Vec8<T> *>(to) = a;
        *reinterpret_cast<Vec8<T> *>(to + half) = b;
    }
}

} // namespace

extern "C" {

__global__ void __launch_bounds__(256)
    rope_angles(float *cos, float *sin, const float *inv_freq, const uint32_t *positions,
                const uint32_t *row_sequence, int rows, int half) {
    wait_for_predecessor();
    release_successor();
    const int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= rows * half)
        return;
    const int row = item / half, pair = item % half;
    const float angle = float(positions[row]) * inv_freq[row_sequence[row] * half + pair];
    double s, c;
    sincos(double(angle), &s, &c);
    cos[item] = float(c);
    sin[item] = float(s);
}

__global__ void __launch_bounds__(256)
    rope_kv_write_bf16(bf16 *qkv, bf16 *kv, const float *cos, const float *sin,
                       const float *query_scale, const int32_t *slots, int num_heads,
                       int num_kv_heads, int dim) {
    rope_kv_write(qkv, kv, cos, sin, query_scale, slots, num_heads, num_kv_heads, dim);
}

__global__ void __launch_bounds__(256)
    rope_kv_write_f16(f16 *qkv, f16 *kv, const float *cos, const float *sin,
                      const float *query_scale, const int32_t *slots, int num_heads,
                      int num_kv_heads, int dim) {
    rope_kv_write(qkv, kv, cos, sin, query_scale, slots, num_heads, num_kv_heads, dim);
}
}
