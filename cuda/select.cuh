// Where a running sum over a row's logits, from the largest, reaches a target: radix selection by
// the blocks of a group. What is summed is a Measure: a count for top-k, weights for top-p.
// No kernels here.
//
//   block r:  slice r of the row --fill_coarse--> 1024 sums --publish_bins--> cross: the bin in
//   which the eight blocks' sums reach the target --narrow: bins within it, till one logit is left
#pragma once

#include "row_group.cuh"

namespace sampling {

// ---- the logits of a block ---------------------------------------------------------------------

struct Four {
    float at[4];
};

// The logits of ids first .. first + count: a copy in shared memory, or, where that is too small,
// the row itself.
struct Slice {
    float *values;
    uint32_t first;
    uint32_t count;
    bool vectors; // `values` is aligned to 16 bytes

    // Elements i .. i + 4, i a multiple of 4; -infinity where there are none.
    __device__ __forceinline__ Four four(uint32_t i) const {
        if (vectors && i + 4 <= count) {
            const float4 x = *reinterpret_cast<const float4 *>(values + i);
            return {x.x, x.y, x.z, x.w};
        }
        Four x;
#pragma unroll
        for (uint32_t c = 0; c < 4; c++)
            x.at[c] = i + c < count ? values[i + c] : -INFINITY;
        return x;
    }
};

// Calls visit(i, four) over the slice, by whole warps, four neighbours a lane. Large bodies are not
// unrolled: code comes from far away at every launch.
template <int UNROLL = 1, class Visit>
__device__ __forceinline__ void each_four(const Slice &slice, Visit visit) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll UNROLL
    for (uint32_t base = threadIdx.x / 32 * WARP_STEP; base < slice.count;
         base += WARPS * WARP_STEP)
        visit(base + lane * 4, slice.four(base + lane * 4));
}

// ---- bins --------------------------------------------------------------------------------------

// Four elements a lane, each with a bin (-1: none) and an amount.
struct Adding {
    int bin[4];
    uint64_t amount[4];
    bool ones; // all amounts are 1
};

// Adds for a whole warp. If all agree on one bin they add up first: ties and flat logits would
// otherwise queue for one address.
__device__ __forceinline__ void add_to_bins(uint64_t *bins, const Adding &adding) {
    const int high = max(max(adding.bin[0], adding.bin[1]), max(adding.bin[2], adding.bin[3]));
    const uint32_t lanes = __ballot_sync(ALL_LANES, high >= 0);
    if (__popc(lanes) > 4) {
        const int top = __reduce_max_sync(ALL_LANES, high);
        uint64_t sum = 0;
        bool agree = true;
#pragma unroll
        for (uint32_t c = 0; c < 4; c++) {
            agree &= adding.bin[c] == top || adding.bin[c] < 0;
            sum += adding.bin[c] < 0 ? 0 : adding.amount[c];
        }
        if (__all_sync(ALL_LANES, agree)) {
            sum = warp_total(sum);
            if (threadIdx.x % 32 == 0)
                add_exact(bins + top, sum);
            return;
        }
    }
#pragma unroll
    for (uint32_t c = 0; c < 4; c++) {
        if (adding.bin[c] < 0)
            continue;
        if (adding.ones) // the hardware counts lanes that agree; no carry below 2^32
            atomicAdd(reinterpret_cast<uint32_t *>(bins + adding.bin[c]), 1u);
        else
            add_exact(bins + adding.bin[c], adding.amount[c]);
    }
}

__device__ __forceinline__ void clear_bins(Group &group) {
#pragma unroll 1
    for (uint32_t word = threadIdx.x; word < WORDS; word += THREADS)
        group.mine()[word] = 0;
    __syncthreads();
}

// Sums of 32 bins each, so that readers need not fetch all bins of all peers; then the meeting.
__device__ __forceinline__ void publish_bins(Group &group) {
    const uint32_t lane = threadIdx.x % 32;
    __syncthreads();
#pragma unroll 1
    for (uint32_t set = threadIdx.x / 32; set < 32; set += WARPS) {
        const uint64_t sum = warp_total(group.mine()[set * 32 + lane]);
        if (lane == 0)
            group.mine()[COARSE_WORD + set] = sum;
    }
    group.meet(WORDS);
}

// The bin of the group's sums in which the running sum, from bin 0, reaches `target`; the last one
// if none does.
__device__ __forceinline__ Crossing cross(const Group &group, uint64_t target) {
    const uint32_t lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        uint64_t sum = peers_total(group, COARSE_WORD + lane);
        uint32_t found = reaching_lane(sum, target);
        target += found == 32 ? __shfl_sync(ALL_LANES, sum, 31) : 0;
        const uint32_t set = min(found, 31u);
        sum = peers_total(group, set * 32 + lane);
        found = reaching_lane(sum, target);
        target += found == 32 ? __shfl_sync(ALL_LANES, sum, 31) : 0;
        const uint32_t at = min(found, 31u);
        if (lane == at)
            group.shared->crossing = {target, sum, set * 32 + at};
    }
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

// 10 bits of the interval at a time, until one key is left or done() says so. may(keys, x) is a
// quick no for most elements;
// add(i, x, keys, key, amount) sets key and amount, and says whether the element counts.
template <class Done, class May, class Add>
__device__ void narrow(Group &group, const Slice &slice, Threshold &t, bool ones, const Done &done,
                       const May &may, const Add &add) {
    while (t.keys.low < t.keys.high && !done()) {
        const Interval keys = t.keys;
        const uint32_t shift = max(0, 32 - __clz(keys.high - keys.low) - int(BIN_BITS));
        clear_bins(group);
        each_four(slice, [&](uint32_t i, const Four &x) {
            const bool any = may(keys, x.at[0]) || may(keys, x.at[1]) || may(keys, x.at[2]) ||
                             may(keys, x.at[3]);
            if (!__any_sync(ALL_LANES, any))
                return;
            Adding adding;
            adding.ones = ones;
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                uint32_t key;
                const bool counts = add(i + c, x.at[c], keys, key, adding.amount[c]);
                adding.bin[c] = counts ? int((keys.high - key) >> shift) : -1;
            }
            add_to_bins(group.mine(), adding);
        });
        publish_bins(group);
        const Crossing crossing = cross(group, t.target);
        const uint32_t high = keys.high - (crossing.bin << shift);
        const uint32_t width = (1u << shift) - 1;
        t = {{high - keys.low > width ? high - width : keys.low, high},
             crossing.target,
             crossing.amount};
    }
}

// ---- weights -----------------------------------------------------------------------------------

// A weight from 0 to 1 in units of 2^-40, to nearest. Adding a power of two (or 1.5 of it) leaves
// the steps of its last place in the low bits: first 2^-17, then 2^-40. The conversion instruction
// to 64 bits goes through a slow unit.
__device__ __forceinline__ uint64_t to_fixed(float weight) {
    const float coarse = __fadd_rn(weight, 64.0f);
    const float rest = __fsub_rn(weight, __fsub_rn(coarse, 64.0f));
    const float fine = __fadd_rn(rest, 0x1.8p-17f);
    const uint32_t high = __float_as_uint(coarse) - __float_as_uint(64.0f);
    const int32_t low = __float_as_int(fine) - __float_as_int(0x1.8p-17f);
    return (uint64_t(high) << 23) + int64_t(low);
}

// exp((x - max) / temperature), in (0, 1], by one instruction with a relative error of 2^-22.
struct Weights {
    float max;
    float slope; // log2(e) / temperature

    __device__ float of(float x) const {
        float weight;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"(__fmul_rn(x - max, slope)));
        return weight;
    }

    __device__ uint64_t fixed(float x) const { return to_fixed(of(x)); }
};

__device__ Weights weights_of(float max, float temperature) {
    // A temperature so small that the quotient overflows: only the largest logits keep weight.
    const double slope = 1.4426950408889634 / double(temperature);
    return {max, float(fmin(slope, 3.0e38))};
}

// What is summed over logits: their weights from `least` up, or how many they are.
struct Measure {
    Weights weights;
    float least;
    bool counts;

    __device__ __forceinline__ uint64_t of(float x) const {
        return counts ? 1 : to_fixed(x >= least ? weights.of(x) : 0.0f);
    }

    // Is it one element that `t` sums up? Two would weigh twice what the lowest of its keys does.
    __device__ __forceinline__ bool one(const Threshold &t) const {
        return counts ? t.amount == 1 : 2 * t.amount < 3 * weights.fixed(from_ordered(t.keys.low));
    }
};

// ---- searches ----------------------------------------------------------------------------------

// Bins of equal width in logits, so that a bell of them spreads over many bins.
struct CoarseBins {
    float max;
    float slope; // bins a logit

    // Adding 2^23 rounds to an integer in the low bits, without the slow conversion unit.
    __device__ __forceinline__ uint32_t of(float x) const {
        const float bin = fminf(__fmul_rn(max - x, slope), float(LAST_BIN));
        return __float_as_uint(__fadd_rn(bin, 8388608.0f)) - __float_as_uint(8388608.0f);
    }

    // The highest key beyond bin `bin`, exactly, whatever the rounding: bins fall as keys rise.
    // Arithmetic gives two keys around it, one warp the rest, a base-32 digit at a time.
    __device__ uint32_t below(uint32_t bin) const {
        if (bin == LAST_BIN)
            return LOWEST_KEY - 1;
        const float width = __fdiv_rn(1.0f, slope);
        uint32_t found = ordered(max - (float(bin) + 0.75f) * width) - 1;
        const uint32_t above = ordered(max - (float(bin) + 0.25f) * width) + 1;
#pragma unroll 1
        for (int shift = (31 - __clz(above - found)) / 5 * 5; shift >= 0; shift -= 5) {
            const uint64_t key = found + (uint64_t(threadIdx.x % 32) << shift);
            const bool beyond =
                key < LOWEST_KEY || (key < above && of(from_ordered(uint32_t(key))) > bin);
            found += (__popc(__ballot_sync(ALL_LANES, beyond)) - 1) << shift;
        }
        return found;
    }

    // The keys of a bin.
    __device__ Interval keys(Shared *shared, uint32_t bin) const {
        const uint32_t warp = threadIdx.x / 32;
        if (warp < 2) {
            const uint32_t edge = warp == 0  ? below(bin) + 1
                                  : bin == 0 ? ordered(max)
                                             : below(bin - 1);
            if (threadIdx.x % 32 == 0)
                shared->edges[warp] = edge;
        }
        __syncthreads();
        return {shared->edges[0], shared->edges[1]};
    }
};

// The first step of a search, in coarse bins. What falls into the last one is not worth an atomic:
// nothing comes after it. Returns, to the first warp, the sum over everything.
__device__ uint64_t fill_coarse(Group &group, const Slice &slice, const Measure &measure,
                                const CoarseBins &coarse) {
    uint64_t total = 0;
    clear_bins(group);
    each_four(slice, [&](uint32_t, const Four &x) {
        Adding adding;
        adding.ones = measure.counts;
#pragma unroll
        for (uint32_t c = 0; c < 4; c++) {
            adding.amount[c] = measure.of(x.at[c]);
            total += adding.amount[c];
            const uint32_t bin = coarse.of(x.at[c]);
            adding.bin[c] = adding.amount[c] == 0 || bin == LAST_BIN ? -1 : int(bin);
        }
        add_to_bins(group.mine(), adding);
    });
    total = warp_total(total);
    if (threadIdx.x % 32 == 0)
        add_exact(group.mine() + TOTAL_WORD, total);
    publish_bins(group);
    return threadIdx.x < 32 ? peers_total(group, TOTAL_WORD) : 0;
}

__device__ void narrow_keys(Group &group, const Slice &slice, const Measure &measure,
                            Threshold &t) {
    narrow(
        group, slice, t, measure.counts, [&] { return measure.one(t); },
        [](Interval keys, float x) {
            return x >= from_ordered(keys.low) && x <= from_ordered(keys.high);
        },
        [&](uint32_t, float x, Interval keys, uint32_t &key, uint64_t &amount) {
            key = ordered(x);
            amount = measure.of(x);
            return key >= keys.low && key <= keys.high && amount != 0;
        });
}

} // namespace sampling
