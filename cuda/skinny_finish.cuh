// How the skinny linear kernel finishes a group of tiles: the warps' sums added, then the epilogue.
// No kernels here; linear_arguments.cuh lists the epilogues.
#pragma once

#include "skinny_operand.cuh"

namespace skinny {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ inline float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ inline float4 operator*(float4 a, float b) {
    return make_float4(a.x * b, a.y * b, a.z * b, a.w * b);
}
__device__ inline float square_sum(float4 a) {
    return a.x * a.x + a.y * a.y + (a.z * a.z + a.w * a.w);
}

__device__ inline void narrow(float v, __nv_bfloat16 *to) { *to = __float2bfloat16_rn(v); }
__device__ inline void narrow(float v, __half *to) { *to = __float2half_rn(v); }

template <typename T> __device__ inline void store_rounded(void *out, uint64_t at, float4 v) {
    uint2 bits;
    T *parts = reinterpret_cast<T *>(&bits);
    narrow(v.x, parts), narrow(v.y, parts + 1), narrow(v.z, parts + 2), narrow(v.w, parts + 3);
    *reinterpret_cast<uint2 *>(static_cast<T *>(out) + at) = bits;
}

// What a thread finishes: four weight rows of one tile and the four rows 8 further on (the up rows,
// if the first are gate rows), for one row of x.
struct Item {
    uint32_t tile, row, r;
    template <int MT> __device__ static Item number(uint32_t i) {
        return {i / (MT * 16), i / 2 % (MT * 8), i % 2 * 4};
    }
};

// Where an item's outputs go: [row][n] and [row][n + 8]; the last tile may lack the second.
struct Place {
    uint32_t n;
    uint64_t at;
    bool has_second;
    __device__ Place(const Arguments &m, uint32_t tile, Item item)
        : n(tile * TILE_ROWS + item.r), at(static_cast<uint64_t>(item.row) * m.n + n),
          has_second(n + 8 < m.n) {}
};

// What the epilogue adds to and multiplies by, loaded while the weights still come.
struct Ahead {
    float4 stream[2], gain[2];
    uint32_t call; // of SEND

    __device__ void load(const Arguments &m, uint32_t tile, Item item, bool wanted) {
        call = next_call(m);
        stream[0] = stream[1] = gain[0] = gain[1] = make_float4(0, 0, 0, 0);
        if (!wanted || (m.epilogue != ADD_F32 && m.epilogue != ADD_NORM))
            return;
        Place place(m, tile, item);
        const float *from = static_cast<const float *>(m.out) + place.at;
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (half == 0 || place.has_second) {
                stream[half] = __ldcg(reinterpret_cast<const float4 *>(from + 8 * half));
                if (m.epilogue == ADD_NORM)
                    gain[half] =
                        __ldg(reinterpret_cast<const float4 *>(m.gain + place.n + 8 * half));
            }
    }
};

// Four neighbouring outputs of a row; returns the sum of their squares, for ADD_NORM.
template <typename T>
__device__ inline float store(const Arguments &m, uint64_t at, uint32_t n, float4 y, float4 stream,
                              float4 gain, uint32_t call) {
    if (m.epilogue == BIAS) {
        if (m.bias)
            y = y + __ldg(reinterpret_cast<const float4 *>(m.bias + n));
        store_rounded<T>(m.out, at, y);
        return 0;
    }
    y = stream + y; // zero, for STORE_F32 and SEND
    *reinterpret_cast<float4 *>(static_cast<float *>(m.out) + at) = y;
    if (m.epilogue == SEND)
        send(m, call, {y.x, y.y, y.z, y.w}, at);
    if (m.epilogue == ADD_NORM)
        store_rounded<T>(m.weighted, at,
                         make_float4(weigh<T>(y.x, gain.x), weigh<T>(y.y, gain.y),
                                     weigh<T>(y.z, gain.z), weigh<T>(y.w, gain.w)));
    return square_sum(y);
}

template <typename T>
__device__ inline void finish(const Arguments &m, uint32_t tile, Item item, const float4 (&y)[2],
                              const Ahead &ahead) {
    if (m.epilogue == GATE_UP) {
        uint64_t at = static_cast<uint64_t>(item.row) * (m.n / 2) + tile * 8 + item.r;
        store_rounded<T>(m.out, at,
                         make_float4(gated(y[0].x, y[1].x), gated(y[0].y, y[1].y),
                                     gated(y[0].z, y[1].z), gated(y[0].w, y[1].w)));
        return;
    }
    Place place(m, tile, item);
    float sum = 0;
#pragma unroll 1
    for (int half = 0; half <= place.has_second; half++)
        sum += store<T>(m, place.at + 8 * half, place.n + 8 * half, half ? y[1] : y[0],
                        half ? ahead.stream[1] : ahead.stream[0],
                        half ? ahead.gain[1] : ahead.gain[0], ahead.call);
    if (m.epilogue == ADD_NORM)
        m.squares[squares_at(item.row, tile * TILE_ROWS, m.n) + item.r / 4] = sum;
}

// An item's outputs: the warps' sums, always added in the same order. A warp's accumulators of a
// tile lie as mma has them: lane (g, t) has rows g and g + 8 of W times rows 2t and 2t + 1 of x.
template <int MT> __device__ inline void add_warps(const float *sums, Item item, float4 (&y)[2]) {
    const float *from = sums + (item.tile * MT + item.row / 8) * (SUMS_BYTES / 4) +
                        (item.r * 4 + item.row % 8 / 2) * 4 + item.row % 2;
    y[0] = y[1] = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int w = 0; w < NUM_WARPS; w++, from += GROUP_TILES * MT * (SUMS_BYTES / 4)) {
        y[0] = y[0] + make_float4(from[0], from[16], from[32], from[48]);
        y[1] = y[1] + make_float4(from[2], from[18], from[34], from[50]);
    }
}

// The epilogue of a group. `ahead` is that of the thread's first item.
template <typename T, int MT>
__device__ inline void finish_group(const Arguments &m, const Shared &s, uint32_t first,
                                    uint32_t tiles, Ahead &ahead) {
    consumers_sync();
#pragma unroll 1
    for (int j = 0; j < MT; j++) {
        Item item = Item::number<MT>(threadIdx.x + j * NUM_WARPS * 32);
        if (item.tile >= tiles || item.row >= m.rows)
            continue;
        if (j > 0)
            ahead.load(m, first + item.tile, item, true);
        float4 y[2];
        add_warps<MT>(s.sums_at, item, y);
        if (m.normalised)
            y[0] = y[0] * s.scales[item.row], y[1] = y[1] * s.scales[item.row];
        finish<T>(m, first + item.tile, item, y, ahead);
    }
}

#endif

} // namespace skinny
