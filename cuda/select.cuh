// Where a running sum over a row's logits, from the largest, reaches a target: radix selection by
// the eight blocks of a group. What is summed is up to the caller: counts for top-k, weights for
// top-p. No kernels here; sample.cu has the one that uses it.
//
//   block r of a group:  slice r of the row --fill_bins--> 1024 sums --meet--> cross: all add the
//   eight blocks' sums, bin by bin, and find the bin that the target is in --> narrow: its keys
//   again
//
// Sums are 64-bit integers: exact, so that their order, and who else is on the GPU, changes
// nothing.
#pragma once

#include "common.cuh"

namespace sampling {

constexpr uint32_t BLOCKS = 8; // of a group, which does one row at a time; a cluster on sm_90
constexpr uint32_t THREADS = 1024;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t BINS = THREADS; // one thread finds the sum of one bin
constexpr uint32_t BIN_BITS = 10;
constexpr uint32_t LAST_BIN = BINS - 1;
constexpr uint32_t WORDS = BINS + 1; // what blocks tell each other: bins, then a total
constexpr uint32_t SLICE_CAPACITY = 20480;
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr uint32_t LOWEST_KEY = 0x007fffffu; // ordered(-infinity)
static_assert(BINS == 1u << BIN_BITS && BINS == THREADS, "cross() gives each thread a bin");
static_assert(WARPS == 32, "one lane a warp in the second step of scans");

struct Crossing {
    uint64_t above;  // the sum of the bins before
    uint64_t amount; // the sum of this one
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
__device__ uint64_t peers_total(const Group &group, uint32_t word) {
    const uint32_t lane = threadIdx.x % 32;
    return warp_total(lane < BLOCKS ? group.peer(lane, word) : 0);
}

// The logits of ids first .. first + count: a copy in shared memory, or, where that is too small,
// the row itself.
struct Slice {
    float *values;
    uint32_t first;
    uint32_t count;
};

// Adds amounts to bins (-1: none), for a whole warp. Lanes that agree on one bin add up first: ties
// and flat logits would otherwise queue for one address.
__device__ __forceinline__ void add_to_bins(uint64_t *bins, int bin, uint64_t amount) {
    const uint32_t lanes = __ballot_sync(ALL_LANES, bin >= 0);
    if (lanes == 0)
        return;
    const int first = __shfl_sync(ALL_LANES, bin, __ffs(lanes) - 1);
    if (__popc(lanes) > 2 && __all_sync(ALL_LANES, bin < 0 || bin == first)) {
        amount = warp_total(bin < 0 ? 0 : amount);
        if (threadIdx.x % 32 == 0)
            add_exact(bins + first, amount);
    } else if (bin >= 0) {
        add_exact(bins + bin, amount);
    }
}

// Calls bin_of(i, x, amount) for the slice and adds up what it says.
template <class BinOf>
__device__ void fill_bins(Group &group, const Slice &slice, const BinOf &bin_of) {
    uint64_t *bins = group.mine();
    bins[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        bins[BINS] = 0;
    __syncthreads();
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t base = threadIdx.x - lane; base < slice.count; base += THREADS) {
        const uint32_t i = base + lane;
        uint64_t amount = 0;
        const int bin = i < slice.count ? bin_of(i, slice.values[i], amount) : -1;
        add_to_bins(bins, bin, amount);
    }
}

// The bin of the group's sums in which the running sum, from bin 0, reaches `target`; the last one
// if none does.
__device__ Crossing cross(const Group &group, uint64_t target) {
    uint64_t sum = 0;
#pragma unroll
    for (uint32_t block = 0; block < BLOCKS; block++)
        sum += group.peer(block, threadIdx.x);
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32;
    uint64_t through = warp_scan(sum);
    if (lane == 31)
        group.shared->scratch[warp] = through;
    __syncthreads();
    through += warp_total(lane < warp ? group.shared->scratch[lane] : 0);
    const uint64_t above = through - sum;
    if (above < target && (target <= through || threadIdx.x == LAST_BIN))
        group.shared->crossing = {above, sum, threadIdx.x};
    __syncthreads();
    return group.shared->crossing;
}

// The keys among which a threshold is, both ends included.
struct Interval {
    uint32_t low;
    uint32_t high;
};

// Where a running sum over keys, from the highest, reaches a target.
struct Threshold {
    Interval keys;
    uint64_t target; // what is left of it for these keys
    uint64_t amount; // what these keys sum to
};

// The other steps: 10 bits of the interval at a time, until one key is left. amount_of(i, x, key)
// sets the key of element i and returns what it adds.
template <class AmountOf>
__device__ void narrow(Group &group, const Slice &slice, Threshold &t, const AmountOf &amount_of) {
    while (t.keys.low < t.keys.high) {
        const Interval keys = t.keys;
        const uint32_t shift = max(0, 32 - __clz(keys.high - keys.low) - int(BIN_BITS));
        fill_bins(group, slice, [&](uint32_t i, float x, uint64_t &amount) {
            uint32_t key;
            if (!amount_of(i, x, keys, key, amount))
                return -1;
            return int((keys.high - key) >> shift);
        });
        group.meet(BINS);
        const Crossing crossing = cross(group, t.target);
        const uint32_t high = keys.high - (crossing.bin << shift);
        const uint32_t width = (1u << shift) - 1;
        t = {{high - keys.low > width ? high - width : keys.low, high},
             t.target - crossing.above,
             crossing.amount};
    }
}

} // namespace sampling
