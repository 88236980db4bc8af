// The shared-memory side of the skinny linear kernel: its sizes, the ring of stages that
// the copy engine fills, its barriers, and the matrix instruction. No kernels here;
// skinny_linear.cu has the story.
#pragma once

#include "linear_arguments.cuh"

namespace skinny {

constexpr int TILE_ROWS = 16; // weight rows of one mma: the m of m16n8k16
constexpr int SLICE_K = 512;  // k of one stage
constexpr int STAGE_PITCH =
    SLICE_K * 2; // no padding: off 128 bytes the copy engine slows by a quarter
constexpr int STAGE_BYTES = TILE_ROWS * STAGE_PITCH;
constexpr int NUM_WARPS = 4;   // that multiply
constexpr int NUM_FEEDERS = 2; // warps that request weights, each its rows of every tile
constexpr int NUM_THREADS = (NUM_WARPS + NUM_FEEDERS) * 32;
constexpr int FEEDER_ROWS = TILE_ROWS / NUM_FEEDERS;
constexpr int WARP_K = SLICE_K / NUM_WARPS;
constexpr int WARP_BLOCKS = WARP_K / 32; // one 16-byte load of a lane covers 32 k of its row
constexpr uint32_t IN_FLIGHT = 4;        // stages on their way, at most: x waits for all of them
constexpr int GROUP_TILES = 8;           // most tiles that share one pass over x
constexpr int CONSUMER_BARRIER = 1;
constexpr int FEW_TILES = 4;                 // in groups up to this, x is loaded further ahead
constexpr int SCRATCH_PITCH = TILE_ROWS + 4; // of one row of x; a warp's stores do not conflict
constexpr int SCRATCH_TILE = 8 * SCRATCH_PITCH;

using namespace qwen::linear;

// Divides the tiles among the blocks of a grid; for the host.
inline void divide(Arguments &a, uint32_t grid) {
    uint32_t all = (a.n + TILE_ROWS - 1) / TILE_ROWS;
    a.tiles = (all + grid - 1) / grid;
    uint32_t passes = (a.tiles + GROUP_TILES - 1) / GROUP_TILES;
    a.group = (a.tiles + passes - 1) / passes;
}

// Shared memory of a block with MT tiles of eight rows of x: ring, slices of x, accumulators, the
// rows' scales, barriers.
template <int MT> constexpr int num_stages = 12 - MT;
template <int MT> constexpr int x_slices = 4 / MT;         // on their way or in use
constexpr int X_BYTES = NUM_WARPS * WARP_BLOCKS * 32 * 16; // of a slice and eight rows
template <int MT> constexpr int x_bytes = x_slices<MT> * MT * X_BYTES;
constexpr int SUMS_BYTES = 32 * 16; // a warp's accumulators of a tile and eight rows of x
template <int MT> constexpr int sums_bytes = NUM_WARPS * GROUP_TILES * MT * SUMS_BYTES;
constexpr int SCALES_BYTES = 16 * 4;
template <int MT>
constexpr int shared_bytes =
    num_stages<MT> * (STAGE_BYTES + 16) + x_bytes<MT> + sums_bytes<MT> + SCALES_BYTES;

static_assert(STAGE_PITCH % 128 == 0, "the copy engine writes whole 128-byte lines");
static_assert(GROUP_TILES * 16 <= NUM_WARPS * 32, "a thread finishes one item of eight outputs");
static_assert(WARP_K % 64 == 0, "k ends at a multiple of 64");
static_assert(shared_bytes<1> == 229616 && shared_bytes<2> == 229600, "the launch contract");
static_assert(shared_bytes<1> <= 227 * 1024, "what a block may have");

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

// 16 bytes past the registers and the L1; zeros unless `wanted`.
__device__ inline void copy_16(uint32_t to, const void *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ inline void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ inline uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}

__device__ inline void load_sums(float (&v)[4], uint32_t address) {
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void store_sums(uint32_t address, const float (&v)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
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

// How a matrix is cut. A unit is one stage: 16 rows x 512 k. A block owns whole tiles of 16 rows,
// so no sum crosses blocks; all blocks but the last own as many, which may leave some idle: the
// bus does not mind. Units go group by group, in a group slice by slice, in a slice tile by tile.
struct Share {
    uint32_t first, tiles, slices;
    uint32_t group; // tiles of every group but the last
    __device__ explicit Share(const Arguments &m) {
        uint32_t all = (m.n + TILE_ROWS - 1) / TILE_ROWS;
        first = min(blockIdx.x * m.tiles, all);
        tiles = min(m.tiles, all - first);
        slices = (m.k + SLICE_K - 1) / SLICE_K;
        group = m.group;
    }
    __device__ uint32_t units() const { return tiles * slices; }
};

// A place in a ring and the parity of its current turn.
template <int STAGES> struct Ring {
    uint32_t stage = 0, parity = 0;
    __device__ void next() {
        if (++stage == STAGES)
            stage = 0, parity ^= 1;
    }
};

struct Shared {
    uint32_t ring, x, sums, full, empty;
    const float *sums_at;
    float *scales;

    template <int MT> __device__ static Shared carve(unsigned char *base) {
        Shared s;
        s.ring = shared_address(base);
        s.x = s.ring + num_stages<MT> * STAGE_BYTES;
        unsigned char *sums = base + num_stages<MT> * STAGE_BYTES + x_bytes<MT>;
        s.sums = shared_address(sums);
        s.sums_at = reinterpret_cast<const float *>(sums);
        s.scales = reinterpret_cast<float *>(sums + sums_bytes<MT>);
        s.full = shared_address(sums + sums_bytes<MT> + SCALES_BYTES);
        s.empty = s.full + num_stages<MT> * 8;
        return s;
    }
    template <int MT> __device__ void init_barriers() const {
        if (threadIdx.x < num_stages<MT>) {
            barrier_init(full + 8 * threadIdx.x, NUM_FEEDERS);
            barrier_init(empty + 8 * threadIdx.x, NUM_WARPS);
            barrier_init_fence();
        }
    }
};

#endif

} // namespace skinny
