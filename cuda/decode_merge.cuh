// How the parts of an item become one: the warps of a block through shared memory, the workers of a
// grid through the workspace, in an order that depends on the division alone.
#pragma once

#include "decode_pieces.cuh"

namespace decode_attention {

__device__ inline float warp_max(float x) {
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

// Four dimensions a lane of a weighted sum, as the warps and blocks exchange it.
struct Quad {
    float largest = -INFINITY, weight = 0;
    float4 sum = {0, 0, 0, 0};

    // Adds another sum. An empty one (largest -inf, weight 0) adds nothing to a non-empty one.
    __device__ void add(float other_largest, float other_weight, float4 other) {
        const float top = fmaxf(largest, other_largest);
        const float own = largest == top ? 1.0f : exp2_fast(largest - top);
        const float theirs = other_largest == top ? 1.0f : exp2_fast(other_largest - top);
        largest = top;
        weight = weight * own + other_weight * theirs;
        sum.x = sum.x * own + other.x * theirs;
        sum.y = sum.y * own + other.y * theirs;
        sum.z = sum.z * own + other.z * theirs;
        sum.w = sum.w * own + other.w * theirs;
    }
};

// The states of a piece's warps, merged. Lanes past the head dimension repeat.
template <class S>
__device__ Quad merge_warps(const float *partials, uint32_t warps, uint32_t lane) {
    Quad quad;
    for (uint32_t warp = 0; warp < warps; warp++) {
        const float *partial = partials + warp * S::PARTIAL_FLOATS;
        const float2 scale = *reinterpret_cast<const float2 *>(partial + S::D);
        quad.add(scale.x, scale.y, reinterpret_cast<const float4 *>(partial)[lane % (S::D / 4)]);
    }
    return quad;
}

template <class S>
__device__ void write_attended(const DecodeAttention &a, const Piece &piece, const Quad &quad,
                               uint32_t lane) {
    using T = typename S::T;
    const float share = 1.0f / quad.weight;
    const uint2 packed = {pack_pair<T>(quad.sum.x * share, quad.sum.y * share),
                          pack_pair<T>(quad.sum.z * share, quad.sum.w * share)};
    const size_t head = size_t(piece.extent.row) * a.num_heads + piece.head;
    if (lane < S::D / 4) {
        reinterpret_cast<uint2 *>(static_cast<T *>(a.attended) + head * S::D)[lane] = packed;
    }
}

// A worker has at most two unfinished pieces: the one it begins with (0), the one it ends with (1).
template <class S>
__device__ float *partial_of(const DecodeAttention &a, uint32_t worker, bool starts_item) {
    float *partials = reinterpret_cast<float *>(static_cast<unsigned char *>(a.workspace) +
                                                counter_bytes(gridDim.x));
    return partials + (size_t(worker) * 2 + starts_item) * S::PARTIAL_FLOATS;
}

// Adds the partials of up to 32 workers, one a lane: first their scales all at once, then the sums
// eight loads at a time, in the workers' order.
template <class S>
__device__ void add_partials(Quad &quad, const float *partial, bool present, uint32_t lane) {
    const float2 scale =
        present ? __ldcg(reinterpret_cast<const float2 *>(partial + S::D)) : float2{-INFINITY, 0};
    const float largest = fmaxf(quad.largest, warp_max(scale.x));
    const float shrink = exp2_fast(quad.largest - largest), factor = exp2_fast(scale.x - largest);
    quad.largest = largest;
    quad.weight = quad.weight * shrink + qwen::warp_sum(scale.y * factor);
    quad.sum = {quad.sum.x * shrink, quad.sum.y * shrink, quad.sum.z * shrink, quad.sum.w * shrink};
    uint32_t left = __ballot_sync(ALL_LANES, present);
    while (left) {
        float4 sums[8];
        float factors[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t source = left ? __ffs(left) - 1 : 0;
            const float *from = reinterpret_cast<const float *>(
                __shfl_sync(ALL_LANES, reinterpret_cast<unsigned long long>(partial), source));
            factors[i] = __shfl_sync(ALL_LANES, factor, source);
            sums[i] = {0, 0, 0, 0};
            if (left)
                sums[i] = __ldcg(reinterpret_cast<const float4 *>(from) + lane % (S::D / 4));
            left &= left - 1;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            quad.sum.x = fmaf(sums[i].x, factors[i], quad.sum.x);
            quad.sum.y = fmaf(sums[i].y, factors[i], quad.sum.y);
            quad.sum.z = fmaf(sums[i].z, factors[i], quad.sum.z);
            quad.sum.w = fmaf(sums[i].w, factors[i], quad.sum.w);
        }
    }
}

// All pieces of an item, first page first whoever came last: the same bits every time.
template <class S>
__device__ Quad merge_pieces(const DecodeAttention &a, const Division &division, const Piece &piece,
                             uint32_t first, uint32_t lane) {
    const uint32_t pages = piece.extent.pages;
    Quad quad;
    for (uint32_t page = 0; page < pages; first += 32) {
        const uint32_t worker = first + lane;
        const uint32_t begin = division.first_page(worker, piece.base, pages);
        const uint32_t end = worker + 1 < division.workers
                                 ? division.first_page(worker + 1, piece.base, pages)
                                 : pages;
        const bool present = worker < division.workers && begin < end;
        add_partials<S>(quad, partial_of<S>(a, worker, begin == 0), present, lane);
        page = __shfl_sync(ALL_LANES, end, 31);
    }
    return quad;
}

// One warp ends a piece: writes the item if it is whole, else leaves a partial, and merges them all
// if no other piece is missing.
template <class S>
__device__ void finish_piece(const DecodeAttention &a, const Division &division, const Piece &piece,
                             Quad quad, uint32_t worker, uint32_t lane) {
    if (!piece.whole()) {
        float *partial = partial_of<S>(a, worker, piece.page == 0);
        if (lane < S::D / 4)
            reinterpret_cast<float4 *>(partial)[lane] = quad.sum;
        if (lane == 0) {
            *reinterpret_cast<float2 *>(partial + S::D) = {quad.largest, quad.weight};
        }
        const uint32_t first = division.first_worker(piece.base, piece.extent.pages);
        uint32_t *counter = static_cast<uint32_t *>(a.workspace) + first;
        const uint32_t pages = piece.end - piece.page;
        uint32_t before = 0;
        __syncwarp();
        if (lane == 0)
            before = count_in(counter, pages);
        if (__shfl_sync(ALL_LANES, before, 0) + pages != piece.extent.pages)
            return;
        __syncwarp(); // what lane 0 acquired, all may read
        if (lane == 0)
            *counter = 0;
        quad = merge_pieces<S>(a, division, piece, first, lane);
    }
    write_attended<S>(a, piece, quad, lane);
}

} // namespace decode_attention
