// What a block of the quantised linear computes, its shared memory and barriers, and who keeps the
// ring of weights full. No kernels here; quant_linear.cu has the story.
#pragma once

#include "quant_operand.cuh"

namespace quant {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

using skinny::barrier_arrive, skinny::barrier_expect, skinny::barrier_init, skinny::barrier_wait;

// Which tiles a block computes, or shares with the other block of its pair; and which of their
// chunks.
struct Share {
    uint32_t first, tiles, begin, end;
    __device__ Share(const Arguments &a, uint32_t slice_chunks) {
        const uint32_t all = (a.n + TILE_ROWS - 1) / TILE_ROWS, chunks = a.k / CHUNK_K;
        first = min(blockIdx.x / a.split * a.tiles, all);
        tiles = min(a.tiles, all - first);
        const uint32_t slices = (chunks + slice_chunks - 1) / slice_chunks;
        const uint32_t half = a.split == 2 ? (slices + 1) / 2 * slice_chunks : chunks;
        begin = rank(a) == 0 ? 0 : half, end = rank(a) == 0 ? min(half, chunks) : chunks;
        end = max(begin, end);
    }
    __device__ static uint32_t rank(const Arguments &a) { return blockIdx.x % a.split; }
};

struct Ring {
    uint32_t size, at = 0, parity = 0;
    __device__ explicit Ring(uint32_t size) : size(size) {}
    __device__ void next() {
        if (++at == size)
            at = 0, parity ^= 1;
    }
};

// Two rings, of weights and of x, with a full and an empty barrier for each place. Between
// two passes the parts' sums lie in the place of x; `pass_done` gives it back.
template <int BITS, int NT, bool ANY> struct Shared {
    using Slice = XSlice<BITS, NT>;
    uint32_t x, weights, full, empty, x_ready, x_empty, pass_done, scaled, may_write, written,
        scales;
    __device__ explicit Shared(const unsigned char *base) {
        x = skinny::shared_address(base);
        weights = x + x_bytes<NT>;
        full = weights + ring_bytes<NT>;
        empty = full + MAX_STAGES * 8, x_ready = empty + MAX_STAGES * 8;
        x_empty = x_ready + MAX_STAGES * 8, pass_done = x_empty + MAX_STAGES * 8;
        scaled = pass_done + 8, may_write = scaled + 8, written = may_write + 8;
        scales = written + 8;
    }
    template <typename T> __device__ static T *at(uint32_t address) {
        return static_cast<T *>(__cvta_shared_to_generic(address));
    }
    // One thread.
    __device__ void init_barriers(uint32_t stages) const {
        for (uint32_t i = 0; i < stages; i++)
            barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, PARTS);
#pragma unroll
        for (uint32_t i = 0; i < x_slices<BITS, NT>; i++)
            barrier_init(x_ready + 8 * i, X_FEEDERS * 32), barrier_init(x_empty + 8 * i, PARTS);
        barrier_init(pass_done, PARTS), barrier_init(scaled, 1);
        barrier_init(may_write, PARTS), barrier_init(written, 2 * PARTS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    // Weights of a stage, and how many stages there are.
    __device__ static uint32_t stage_bytes(const Packed &packed) {
        return Slice::CHUNKS * packed.chunk_bytes;
    }
    __device__ static uint32_t num_stages(const Packed &packed) {
        // Where it is known there is nothing to divide before the first request.
        constexpr uint32_t KNOWN = Slice::CHUNKS * (TILE_ROWS * CHUNK_K * BITS / 8 + TILE_ROWS * 2);
        return min(ring_bytes<NT> / (ANY ? stage_bytes(packed) : KNOWN), MAX_STAGES);
    }
};

// One thread: keeps the ring of weights full.
template <int BITS, int NT, bool ANY> struct Feeder {
    const Shared<BITS, NT, ANY> &s;
    const Packed packed;
    const Share share;
    const uint32_t group, stage_bytes;
    const uint64_t tile_bytes, policy;
    const char *weights;
    Ring at;
    // Of the next unit: the group's first tile and its tiles, chunk, tile of the group.
    uint32_t done = 0, tiles, chunk, tile = 0;

    __device__ Feeder(const Arguments &a, const Shared<BITS, NT, ANY> &s)
        : s(s), packed(BITS, a.k, ANY ? a.groups : 1, ANY && a.has_zeros),
          share(a, XSlice<BITS, NT>::CHUNKS), group(a.group), stage_bytes(s.stage_bytes(packed)),
          tile_bytes(uint64_t(packed.chunks) * packed.chunk_bytes),
          policy(skinny::evict_first_policy()),
          weights(static_cast<const char *>(a.weights) + share.first * tile_bytes),
          at(s.num_stages(packed)), tiles(min(share.tiles, group)), chunk(share.begin) {}

    __device__ bool is_done() const { return done >= share.tiles || share.begin == share.end; }
    __device__ void copy() {
        constexpr uint32_t CHUNKS = XSlice<BITS, NT>::CHUNKS;
        const uint32_t bytes = min(CHUNKS, share.end - chunk) * packed.chunk_bytes;
        barrier_expect(s.full + 8 * at.at, bytes);
        skinny::copy_row(s.weights + at.at * stage_bytes,
                         weights + (done + tile) * tile_bytes + chunk * packed.chunk_bytes, bytes,
                         s.full + 8 * at.at, policy);
        at.next();
        if (++tile < tiles)
            return;
        tile = 0, chunk += CHUNKS;
        if (chunk < share.end)
            return;
        chunk = share.begin, done += group, tiles = min(share.tiles - done, group);
    }
    __device__ void begin() {
#pragma unroll 1
        for (uint32_t i = 0; i < IN_FLIGHT && !is_done(); i++)
            copy();
    }
    // Never more than IN_FLIGHT stages are on their way: x would wait for all of them.
    __device__ void run() {
        Ring oldest(at.size);
        uint32_t unit = IN_FLIGHT;
#pragma unroll 1
        for (; !is_done(); unit++, oldest.next()) {
            if (unit >= at.size)
                barrier_wait(s.empty + 8 * at.at, at.parity ^ 1);
            barrier_wait(s.full + 8 * oldest.at, oldest.parity);
            copy();
        }
    }
};

#endif

} // namespace quant
