// Eight blocks that share a row of logits: how they meet, and what they read of each other. A
// cluster and its shared memory on sm_90; counters and copies in device memory before. No kernels
// here.
//
// Also what all parts of sampling have in common: sizes, keys that compare as floats do, and sums.
// Sums are 64-bit integers: exact, so that neither their order nor who else is on the GPU changes
// anything.
#pragma once

#include "common.cuh"

namespace sampling {

constexpr uint32_t BLOCKS = 8; // of a group, which does one row at a time; a cluster on sm_90
constexpr uint32_t THREADS = 512;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t BIN_BITS = 10;
constexpr uint32_t BINS = 1 << BIN_BITS;
constexpr uint32_t LAST_BIN = BINS - 1;
// What blocks tell each other: bins, sums of 32 bins each, the sum of everything.
constexpr uint32_t COARSE_WORD = BINS;
constexpr uint32_t TOTAL_WORD = BINS + BINS / 32;
constexpr uint32_t WORDS = TOTAL_WORD + 1;
constexpr uint32_t SLICE_CAPACITY = 20480;
constexpr uint32_t WARP_STEP = 128; // a lane takes four neighbours at a time
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr uint32_t LOWEST_KEY = 0x007fffffu; // ordered(-infinity)
static_assert(BINS == 32 * 32, "cross() goes by two warp-wide steps");
static_assert(WARPS <= 32, "a warp's lane for each warp");

// Where a running sum over bins reaches a target.
struct Crossing {
    uint64_t target; // what is left of it at the start of the bin
    uint64_t amount; // the sum of the bin
    uint32_t bin;
};

struct Shared {
    uint64_t exchange[2][WORDS];
    uint64_t scratch[WARPS];
    Crossing crossing;
    uint32_t edges[2];
    alignas(16) float slice[SLICE_CAPACITY];
};

// A group's place in the workspace: a counter, then [2][BLOCKS][WORDS].
constexpr size_t BOARD_BYTES = 128 + sizeof(uint64_t) * 2 * BLOCKS * WORDS;
static_assert(BOARD_BYTES % 128 == 0, "a counter has its own line");

// ---- numbers -----------------------------------------------------------------------------------

// Keys compare as the floats do, 0 and -0 being equal; NaN (of either sign) is above +infinity.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    const uint32_t key = bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
    return x == x ? key : 0xffffffffu;
}

__device__ __forceinline__ float from_ordered(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

__device__ __forceinline__ uint64_t warp_total(uint64_t x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

// The sum over this lane and those before it.
__device__ __forceinline__ uint64_t warp_scan(uint64_t x) {
#pragma unroll
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint64_t before = __shfl_up_sync(ALL_LANES, x, step);
        x += threadIdx.x % 32 >= step ? before : 0;
    }
    return x;
}

// The lane in which the sum over lanes reaches `target` (1 or more), which becomes what is left of
// it there; 32 if none does.
__device__ __forceinline__ uint32_t reaching_lane(uint64_t sum, uint64_t &target) {
    const uint64_t through = warp_scan(sum);
    const uint32_t reached = __ballot_sync(ALL_LANES, through >= target);
    const uint32_t lane = reached == 0 ? 32 : __ffs(reached) - 1;
    target -= __shfl_sync(ALL_LANES, lane == 32 ? through : through - sum, min(lane, 31u));
    return lane;
}

// A 64-bit sum in shared memory from two 32-bit atomics (the 64-bit one is a loop of compare and
// swap): who sees the low word overflow carries. Integers, so the order does not matter.
__device__ __forceinline__ void add_exact(uint64_t *sum, uint64_t amount) {
    uint32_t *words = reinterpret_cast<uint32_t *>(sum);
    const uint32_t low = uint32_t(amount);
    const uint32_t before = atomicAdd(words, low);
    const uint32_t high = uint32_t(amount >> 32) + (before + low < low);
    if (high != 0)
        atomicAdd(words + 1, high);
}

// ---- the blocks of a group ---------------------------------------------------------------------

// Blocks that share a row speak in rounds: each fills mine(), all meet, each reads its peers. Two
// buffers in turn: by the next meeting, everybody has read what is overwritten after it.
struct Group {
    Shared *shared;
    uint32_t *counter; // arrivals, ever; only before sm_90
    uint64_t *board;   // [2][BLOCKS][WORDS] copies of the buffers; only before sm_90
    uint32_t rank;
    uint32_t round;

    __device__ uint64_t *mine() { return shared->exchange[round % 2]; }

#if __CUDA_ARCH__ >= 900
    // The hardware's barrier of a cluster; it orders what the blocks exchange.
    __device__ void meet(uint32_t) {
        __cluster_barrier_arrive();
        __cluster_barrier_wait();
        round++;
    }

    // Reads the shared memory of another block of the cluster.
    __device__ uint64_t peer(uint32_t block, uint32_t word) const {
        const uint64_t *here = &shared->exchange[(round - 1) % 2][word];
        return *static_cast<const volatile uint64_t *>(__cluster_map_shared_rank(here, block));
    }

    // Nobody's shared memory may go while a peer still reads it.
    __device__ void leave() { meet(0); }
#else
    // Copies the first `words` to device memory and counts arrivals there. The group's blocks are
    // resident together, because the launch has no more blocks than the GPU has SMs.
    __device__ void meet(uint32_t words) {
        __syncthreads();
        uint64_t *copy = board + (round % 2 * BLOCKS + rank) * WORDS;
        for (uint32_t word = threadIdx.x; word < words; word += THREADS)
            __stcg(reinterpret_cast<unsigned long long *>(copy) + word, mine()[word]);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            const uint32_t all = (atomicAdd(counter, 1) / BLOCKS + 1) * BLOCKS;
            while (int32_t(*reinterpret_cast<volatile uint32_t *>(counter) - all) < 0) {
            }
            __threadfence();
        }
        __syncthreads();
        round++;
    }

    __device__ uint64_t peer(uint32_t block, uint32_t word) const {
        const uint64_t *copy = board + ((round - 1) % 2 * BLOCKS + block) * WORDS;
        return __ldcg(reinterpret_cast<const unsigned long long *>(copy) + word);
    }

    __device__ void leave() {}
#endif
};

__device__ Group join_group(Shared *shared, void *workspace) {
    unsigned char *own =
        static_cast<unsigned char *>(workspace) + blockIdx.x / BLOCKS * BOARD_BYTES;
    return {shared, reinterpret_cast<uint32_t *>(own), reinterpret_cast<uint64_t *>(own + 128),
            blockIdx.x % BLOCKS, 0};
}

// The sum of one word over the group; every thread gets it.
__device__ __forceinline__ uint64_t peers_total(const Group &group, uint32_t word) {
    uint64_t sum = 0;
#pragma unroll
    for (uint32_t block = 0; block < BLOCKS; block++)
        sum += group.peer((group.rank + block) % BLOCKS, word);
    return sum;
}

} // namespace sampling
