// What the two prefill attention kernels share: how rows are cut into tiles, the running softmax in
// the layout that the tensor cores accumulate in, and the store of a finished tile. No kernels
// here.
#pragma once

#include "common.cuh"

namespace qwen::prefill {

constexpr int PAGE_TOKENS = 16;          // tokens of one cache page
constexpr int ROW_TILE = 128;            // query rows of one block
constexpr uint32_t FLAG_SINGLE_ROWS = 1; // also do sequences of exactly one new row

// One row tile of one sequence.
struct Tile {
    int first_row; // row of qkv and out where the tile starts
    int num_rows;  // rows of the tile that exist, 1..ROW_TILE
    int position;  // position of the first row in its sequence
    int sequence;  // -1: no such tile
    int num_keys;  // keys that the last row of the tile sees
    int context;   // tokens of the sequence in the cache
    int head;      // query head
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ int lane_index() { return threadIdx.x & 31; }

// New rows of sequence s that this kernel has to do.
__device__ __forceinline__ int new_rows(const uint32_t *cu_seqlens, const uint32_t *context_lens,
                                        int s, uint32_t flags) {
    const int rows = int(cu_seqlens[s + 1]) - int(cu_seqlens[s]);
    const bool skip = context_lens[s] == 0 || (rows == 1 && !(flags & FLAG_SINGLE_ROWS));
    return skip ? 0 : rows;
}

// The sequence that a unit of work belongs to.
struct Owner {
    int sequence; // -1: no sequence is that far
    int within;   // the unit's number within the sequence
    int rows, tiles;
};

// Who owns a unit of work, where each sequence has units_per_tile units a row tile. All 32 lanes
// of a warp call it together: each looks at one sequence of 32 and a prefix sum places it.
__device__ __forceinline__ Owner find_owner(const uint32_t *cu_seqlens,
                                            const uint32_t *context_lens, int num_seqs,
                                            uint32_t flags, int units_per_tile, int unit) {
    int before = 0;
    for (int base = 0; base < num_seqs; base += 32) {
        const int s = base + lane_index();
        const int rows = s < num_seqs ? new_rows(cu_seqlens, context_lens, s, flags) : 0;
        const int units = ceil_div(rows, ROW_TILE) * units_per_tile;
        int end = units;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(~0u, end, step);
            if (lane_index() >= step)
                end += other;
        }
        end += before;
        const unsigned hit = __ballot_sync(~0u, unit >= end - units && unit < end);
        before = __shfl_sync(~0u, end, 31);
        if (!hit)
            continue;
        const int lane = __ffs(hit) - 1;
        const int total = __shfl_sync(~0u, rows, lane);
        return Owner{base + lane, unit - __shfl_sync(~0u, end - units, lane), total,
                     ceil_div(total, ROW_TILE)};
    }
    return Owner{-1, 0, 0, 0};
}

__device__ __forceinline__ Tile make_tile(const uint32_t *cu_seqlens, const uint32_t *context_lens,
                                          const Owner &owner, int row_tile, int head) {
    const int row = row_tile * ROW_TILE;
    Tile tile;
    tile.sequence = owner.sequence;
    tile.first_row = int(cu_seqlens[owner.sequence]) + row;
    tile.num_rows = min(ROW_TILE, owner.rows - row);
    tile.context = int(context_lens[owner.sequence]);
    tile.position = tile.context - owner.rows + row;
    tile.num_keys = tile.position + tile.num_rows;
    tile.head = head;
    return tile;
}

// log2(e) / sqrt(D): raw scores times this are exponents of two.
template <int D> __device__ __forceinline__ constexpr float score_scale_log2() {
    static_assert(D == 64 || D == 128, "head dimensions of the family");
    return 1.4426950408889634f / (D == 128 ? 11.313708498984761f : 8.0f);
}

template <typename T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
template <> __device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// 2^x in one instruction; exp2(-inf) is exactly 0, which is what makes masked keys vanish.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to the last place but one, without the slow path that a division brings.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The running softmax of the two rows (r and r + 8) that a thread holds parts of.
struct RowState {
    float max[2]; // largest raw score so far, over the quad
    float sum[2]; // sum of 2^((score - max) * scale), this thread's columns only
};

__device__ __forceinline__ RowState empty_rows() {
    return RowState{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
}

// Scores of N keys in the accumulator layout: s[4 j + e] is key 8 j + 2 (lane % 4) + (e & 1) of
// row r + 8 (e >> 1). Keys above the row's own position become -inf. `offset` is the position of
// row r less the first key of the tile.
template <int N> __device__ __forceinline__ void mask_scores(float (&s)[N / 2], int offset) {
    const int column = 2 * (lane_index() & 3);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        const int key = 8 * (i / 4) + column + (i & 1);
        if (key > offset + 8 * ((i >> 1) & 1))
            s[i] = -INFINITY;
    }
}

// Turns raw scores into probabilities relative to the running maximum, updates sum and maximum
// and returns in `rescale` the factors for what was accumulated before. A row with no visible key
// in the tile keeps its state exactly, so the result of a row depends on its own keys only and
// not on how the rows were cut into tiles.
template <int N>
__device__ __forceinline__ void softmax_step(float (&s)[N / 2], RowState &state, float scale_log2,
                                             float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = state.max[half];
#pragma unroll
        for (int i = 2 * half; i < N / 2; i += 4)
            top = fmaxf(top, fmaxf(s[i], s[i + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float shift = top == -INFINITY ? 0.0f : top * scale_log2;
        rescale[half] = exp2_approx(__fmaf_rn(state.max[half], scale_log2, -shift));
        state.max[half] = top;
        float sum = 0.0f;
#pragma unroll
        for (int i = 2 * half; i < N / 2; i += 4) {
            s[i] = exp2_approx(__fmaf_rn(s[i], scale_log2, -shift));
            s[i + 1] = exp2_approx(__fmaf_rn(s[i + 1], scale_log2, -shift));
            sum += s[i] + s[i + 1];
        }
        state.sum[half] = __fmaf_rn(state.sum[half], rescale[half], sum);
    }
}

template <int D>
__device__ __forceinline__ void rescale_rows(float (&o)[D / 2], const float (&rescale)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i)
        o[i] *= rescale[(i >> 1) & 1];
}

// 4 x 4 words across the four lanes of a quad: word k of lane t becomes word t of lane k.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = lane_index() & step;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int low = step == 1 ? 2 * j : j, high = low + step;
            const uint32_t got = __shfl_xor_sync(~0u, upper ? w[low] : w[high], step);
            (upper ? w[low] : w[high]) = got;
        }
    }
}

// Divides by the softmax sum and writes row r (and r + 8) where they exist. The quad transposes
// its words first so that each lane stores 16 bytes and a quad 64 contiguous ones.
template <typename T, int D>
__device__ __forceinline__ void store_rows(const float (&o)[D / 2], const RowState &state, T *row,
                                           size_t stride8, int rows_left) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = state.sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = reciprocal(sum);
#pragma unroll
        for (int block = 0; block < D / 32; ++block) {
            uint32_t words[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int i = 4 * (4 * block + j) + 2 * half;
                words[j] = pack<T>(o[i] * inverse, o[i + 1] * inverse);
            }
            transpose_quad(words);
            T *target = row + half * stride8 + 32 * block + 8 * (lane_index() & 3);
            if (8 * half < rows_left)
                *reinterpret_cast<uint4 *>(target) =
                    make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

} // namespace qwen::prefill
