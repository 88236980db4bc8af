// How the skinny linear kernel gets at x, as mma operands in registers ahead of their use, and the
// product with a stage. No kernels here.
#pragma once

#include "skinny_ring.cuh"

namespace skinny {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// What one warp multiplies by in a slice: its 128 k of every row of x. The lane of row g and place
// t holds x[g][32 b + 8 t .. + 8]: the k of an mma are permuted alike in both operands, so that one
// 16-byte load of W serves two mma. Beyond the rows and k it is 0, and not the last row again: then
// eight lanes of every SM ask the L2 for the same lines (see step 12 in skinny_linear.cu).
template <int MT> struct Operand {
    uint4 v[MT][WARP_BLOCKS];
};

// The slices of x on their way: each lane asks for its own part of the operands, some slices ahead,
// and nobody else reads it.
template <int MT> struct Slices {
    static constexpr int AHEAD = x_slices<MT>;
    const Arguments &a;
    uint32_t memory;     // the lane's part of the first place
    uint32_t place = 0;  // the next to be read, then filled again
    uint32_t slice = 0;  // the next to be asked for
    uint32_t left;       // to be asked for
    const char *row[MT]; // where the lane's part of each row begins
    uint32_t k;          // of the warp's part

    __device__ Slices(const Arguments &a_, uint32_t x, uint32_t count)
        : a(a_), memory(x + threadIdx.x * 16), left(count),
          k(threadIdx.x / 32 * WARP_K + threadIdx.x % 4 * 8) {
#pragma unroll
        for (int i = 0; i < MT; i++)
            row[i] = static_cast<const char *>(a.x) +
                     (static_cast<uint64_t>(min(row_of(i), a.rows - 1)) * a.k + k) * 2;
#pragma unroll 1
        for (int i = 0; i < AHEAD; i++)
            ask(i);
    }
    __device__ static uint32_t row_of(uint32_t m) { return m * 8 + threadIdx.x % 32 / 4; }
    // For the next slice, if one is left; else for nothing, which counts as well.
    __device__ void ask(uint32_t where) {
        uint32_t to = memory + where * MT * X_BYTES, at = slice * SLICE_K;
        if (left > 0) {
            left--;
#pragma unroll
            for (int i = 0; i < MT * WARP_BLOCKS; i++) {
                uint32_t m = i / WARP_BLOCKS, b = i % WARP_BLOCKS;
                bool wanted = k + at + 32 * b < a.k && row_of(m) < a.rows;
                copy_16(to + i * NUM_WARPS * 512, row[m] + (wanted ? (at + 32 * b) * 2 : 0),
                        wanted);
            }
            slice = (slice + 1) * SLICE_K < a.k ? slice + 1 : 0;
        }
        copy_commit();
    }
    __device__ Operand<MT> take() {
        Operand<MT> x;
        copy_wait<AHEAD - 1>();
#pragma unroll
        for (int i = 0; i < MT * WARP_BLOCKS; i++)
            x.v[i / WARP_BLOCKS][i % WARP_BLOCKS] =
                load_shared(memory + place * MT * X_BYTES + i * NUM_WARPS * 512);
        return x;
    }
    // The slice that was taken is used.
    __device__ void next() {
        ask(place);
        place = place + 1 == AHEAD ? 0 : place + 1;
    }
};

// What the rows of a normalised x must still be multiplied by.
template <typename T> __device__ inline void row_scales(const Arguments &a, float *scales) {
#pragma unroll 1
    for (uint32_t row = threadIdx.x / 32; row < a.rows; row += NUM_WARPS) {
        const float scale = row_scale<T>(a, row);
        if (threadIdx.x % 32 == 0)
            scales[row] = scale;
    }
}

__device__ inline uint4 choose(bool first, uint4 a, uint4 b) {
    return make_uint4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
}

// A warp's part of a stage: 128 k of rows g (lo) and g + 8 (hi) of W. Rows lie 1 KiB apart, in the
// same banks, so that two rows of one access would collide: odd rows take their blocks of 32 k in
// pairs the other way round.
struct Tile {
    uint4 lo[WARP_BLOCKS], hi[WARP_BLOCKS];

    __device__ void load(uint32_t stage, uint32_t blocks) {
        const bool even = threadIdx.x / 4 % 2 == 0;
        const uint32_t first = stage + (even ? 0 : 64), second = stage + (even ? 64 : 0);
#pragma unroll
        for (int b = 0; b < WARP_BLOCKS; b += 2) {
            uint4 parts[4] = {};
            if (b < blocks) {
                parts[0] = load_shared(first + 64 * b);
                parts[1] = load_shared(second + 64 * b);
                parts[2] = load_shared(first + 64 * b + 8 * STAGE_PITCH);
                parts[3] = load_shared(second + 64 * b + 8 * STAGE_PITCH);
            }
            lo[b] = choose(even, parts[0], parts[1]), lo[b + 1] = choose(even, parts[1], parts[0]);
            hi[b] = choose(even, parts[2], parts[3]), hi[b + 1] = choose(even, parts[3], parts[2]);
        }
    }
    // Depends on every load.
    __device__ uint32_t loaded() const {
        uint32_t bits = 0;
#pragma unroll
        for (int b = 0; b < WARP_BLOCKS; b++)
            bits |= lo[b].x | hi[b].x;
        return bits;
    }
};

// sums += tile times rows m * 8 .. of x. Two chains of mma, for half the latency.
template <typename T, int MT>
__device__ inline void multiply(float (&sums)[4], const Tile &w, const Operand<MT> &x, int m) {
    float odd[4] = {};
#pragma unroll
    for (int b = 0; b < WARP_BLOCKS; b++) {
        const uint4 &lo = w.lo[b], &hi = w.hi[b], &v = x.v[m][b];
        mma(sums, lo.x, hi.x, lo.y, hi.y, v.x, v.y, T());
        mma(odd, lo.z, hi.z, lo.w, hi.w, v.z, v.w, T());
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        sums[i] += odd[i];
}

#endif

} // namespace skinny
