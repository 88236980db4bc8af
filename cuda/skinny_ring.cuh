// The shared-memory side of the skinny linear kernel: sizes, the ring of stages that the copy engine
// fills, its barriers, and the matrix instruction. No kernels here; skinny_linear.cu has the story.
#pragma once

#include "common.cuh"

namespace skinny {

constexpr int TILE_ROWS = 16; // weight rows of one mma: the m of m16n8k16
constexpr int SLICE_K = 512;  // k of one stage
constexpr int STAGE_PITCH =
    SLICE_K * 2; // no padding: off 128 bytes the copy engine slows by a quarter
constexpr int STAGE_BYTES = TILE_ROWS * STAGE_PITCH;
constexpr int NUM_STAGES = 11;
constexpr int NUM_WARPS = 4;   // that multiply
constexpr int NUM_FEEDERS = 2; // warps that request weights, each its rows of every tile
constexpr int NUM_THREADS = (NUM_WARPS + NUM_FEEDERS) * 32;
constexpr int FEEDER_ROWS = TILE_ROWS / NUM_FEEDERS;
constexpr int WARP_K = SLICE_K / NUM_WARPS;
constexpr int WARP_BLOCKS = WARP_K / 32; // one 16-byte load of a lane covers 32 k of its row
constexpr int GROUP_TILES = 8;           // most tiles that share one pass over x
constexpr int CONSUMER_BARRIER = 1;
constexpr int SCRATCH_PITCH = TILE_ROWS + 4; // of one row of x; a warp's stores do not conflict
constexpr int SCRATCH_TILE = 8 * SCRATCH_PITCH;

enum Epilogue : uint32_t { BIAS = 0, STORE_F32 = 1, ADD_F32 = 2, GATE_UP = 3 };

struct Arguments {
    const void *weights, *x;
    const float *bias;
    void *out;
    uint32_t rows, n, k, epilogue;
};

// Shared memory of a block with MT tiles of eight rows of x: ring, reduction scratch, barriers.
template <int MT> constexpr int scratch_bytes = NUM_WARPS * GROUP_TILES * MT * SCRATCH_TILE * 4;
template <int MT>
constexpr int shared_bytes = NUM_STAGES * STAGE_BYTES + scratch_bytes<MT> + NUM_STAGES * 16;

static_assert(STAGE_PITCH % 128 == 0, "the copy engine writes whole 128-byte lines");
static_assert(WARP_K % 64 == 0, "k ends at a multiple of 64");
static_assert(shared_bytes<1> == 200880 && shared_bytes<2> == 221360, "the launch contract");
static_assert(shared_bytes<2> <= 227 * 1024, "the most a block may have");

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ inline uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void barrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

// The fence makes initialised barriers visible to the copy engine, which is another proxy.
__device__ inline void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void barrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ inline void barrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

// Returns when the phase with this parity is over; try_wait sleeps in hardware between polls.
__device__ inline void barrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

__device__ inline uint64_t evict_first_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// One row segment, by the copy engine: no registers are held while it is on its way. Weights are
// read once, so they leave the L2 first and x stays.
__device__ inline void copy_row(uint32_t to, const void *from, uint32_t bytes, uint32_t bar,
                                uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}

// One lane of the warp, in a way that lets the compiler keep addresses in uniform registers.
__device__ inline bool elect() {
    uint32_t elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(elected));
    return elected;
}

__device__ inline void consumers_sync() {
    asm volatile("bar.sync %0, %1;" ::"n"(CONSUMER_BARRIER), "n"(NUM_WARPS * 32) : "memory");
}

__device__ inline uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}

__device__ inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void narrow(float v, __nv_bfloat16 *to) { *to = __float2bfloat16_rn(v); }
__device__ inline void narrow(float v, __half *to) { *to = __float2half_rn(v); }

// How a matrix is cut. A unit is one stage: 16 rows x 512 k. A block owns whole tiles of 16 rows,
// so no sum crosses blocks; all blocks but the last own as many, which may leave some idle: the
// bus does not mind. Units go group by group, in a group slice by slice, in a slice tile by tile.
struct Share {
    uint32_t first, tiles, slices;
    uint32_t group; // tiles of every group but the last
    __device__ Share(const Arguments &m) {
        uint32_t all = (m.n + TILE_ROWS - 1) / TILE_ROWS;
        uint32_t most = (all + gridDim.x - 1) / gridDim.x;
        first = min(blockIdx.x * most, all);
        tiles = min(most, all - first);
        slices = (m.k + SLICE_K - 1) / SLICE_K;
        uint32_t passes = max((most + GROUP_TILES - 1) / GROUP_TILES, 1);
        group = (most + passes - 1) / passes;
    }
    __device__ uint32_t units() const { return tiles * slices; }
};

// A place in the ring and the parity of its current turn.
struct Ring {
    uint32_t stage = 0, parity = 0;
    __device__ void next() {
        if (++stage == NUM_STAGES)
            stage = 0, parity ^= 1;
    }
};

struct Shared {
    uint32_t ring, full, empty;
    float *scratch;

    template <int MT> __device__ static Shared carve(unsigned char *base) {
        Shared s;
        s.ring = shared_address(base);
        unsigned char *after = base + NUM_STAGES * STAGE_BYTES;
        s.scratch = reinterpret_cast<float *>(after);
        s.full = shared_address(after + scratch_bytes<MT>);
        s.empty = s.full + NUM_STAGES * 8;
        return s;
    }
    __device__ void init_barriers() const {
        for (int i = 0; i < NUM_STAGES; i++) {
            barrier_init(full + 8 * i, NUM_FEEDERS);
            barrier_init(empty + 8 * i, NUM_WARPS);
        }
        barrier_init_fence();
    }
};

#endif

} // namespace skinny
