// Sampling: logits -> one token a row, without a sort; the steps and their order are those of
// src/sample.rs.
//
//   sample_tokens   repetition penalty, presence and frequency penalties, temperature, top-k,
//   top-p,
//                   min-p, softmax, draw; or, at temperature 0, the largest logit after penalties
//
// One kernel, one parameter: SampleArguments (below) by value.
//
// Launch: grid 8 * num_groups(SMs, max_rows) = 8 * min(max_rows, SMs / 8), at least 8 SMs; block
// 1024; dynamic shared memory SHARED_BYTES = 98,608 (raise the function's limit); workspace
// workspace_bytes(groups) = 131,328 * groups, zeroed once. On sm_90 the kernel is compiled for
// clusters of 8 (no launch attribute is needed) and leaves the workspace alone. Programmatic
// dependent launch may be on or off.
#include "common.cuh"
#include "select.cuh"

#include <cstddef>
#include <cuda_pipeline.h>

using namespace qwen;

// How one row's token is chosen.
struct SampleRow {
    float temperature;   //  0  0: greedy
    uint32_t top_k;      //  4  0: off
    float top_p;         //  8  1: off
    float min_p;         // 12  0: off
    float repetition;    // 16  1: off
    float presence;      // 20  0: off
    float frequency;     // 24  0: off
    uint32_t seen_start; // 28  first entry of the row in `seen`
    uint32_t seen_count; // 32
    uint32_t active;     // 36  0: padding, nothing is written
    double uniform;      // 40  [0, 1), the random number of the draw
};
static_assert(sizeof(SampleRow) == 48 && offsetof(SampleRow, uniform) == 40, "the host's layout");

// What a launch is given, by value. Every pointer is device memory.
struct SampleArguments {
    float *logits;         //  0  [num_rows, stride], the first num_ids of a row; may be overwritten
    const SampleRow *rows; //  8  [num_rows]
    const uint2 *seen;     // 16  (id, how often the reply has it), an id at most once a row
    uint32_t *tokens;      // 24  [num_rows], out
    void *workspace;       // 32  workspace_bytes(groups), zeroed once, before the first launch
    uint32_t num_rows;     // 40
    uint32_t num_ids;      // 44  1 to 2^23
    uint32_t stride;       // 48
};
static_assert(sizeof(SampleArguments) == 56 && offsetof(SampleArguments, stride) == 48, "as above");

namespace sampling {

constexpr uint32_t NO_TOKEN = 0xffffffffu;
constexpr uint32_t INFINITY_KEY = 0xff800000u; // ordered(+infinity)
constexpr float WEIGHT_ONE = 1099511627776.0f; // 2^40: weight 1 in fixed point
constexpr float COUNT_RANGE = 16.0f; // logits below the largest that coarse bins tell apart

// The launch. Groups go round the rows, so more rows than groups are fine.
constexpr uint32_t SHARED_BYTES = sizeof(Shared);
constexpr uint32_t num_groups(uint32_t num_sms, uint32_t max_rows) {
    const uint32_t most = num_sms / BLOCKS;
    return max_rows < most ? max_rows : most;
}
constexpr size_t workspace_bytes(uint32_t groups) { return groups * BOARD_BYTES; }

// ---- the logits of a block ---------------------------------------------------------------------

template <uint32_t BYTES> __device__ void copy_async(float *to, const float *from, uint32_t count) {
    constexpr uint32_t STEP = BYTES / sizeof(float);
    for (uint32_t i = threadIdx.x * STEP; i + STEP <= count; i += THREADS * STEP)
        __pipeline_memcpy_async(to + i, from + i, BYTES);
    const uint32_t rest = count / STEP * STEP + threadIdx.x;
    if (STEP > 1 && rest < count)
        __pipeline_memcpy_async(to + rest, from + rest, sizeof(float));
}

__device__ Slice open_slice(const Group &group, const SampleArguments &a, uint32_t row) {
    const uint32_t share = ((a.num_ids + BLOCKS - 1) / BLOCKS + 3) / 4 * 4;
    const uint32_t first = min(group.rank * share, a.num_ids);
    float *logits = a.logits + size_t(row) * a.stride + first;
    Slice slice = {logits, first, min(share, a.num_ids - first)};
    if (share <= SLICE_CAPACITY) {
        slice.values = group.shared->slice;
        if (reinterpret_cast<uintptr_t>(logits) % 16 == 0)
            copy_async<16>(slice.values, logits, slice.count);
        else
            copy_async<4>(slice.values, logits, slice.count);
    }
    return slice;
}

// The penalties, rounded as the definition's f32 steps are.
__device__ float penalised(float logit, const SampleRow &p, uint32_t count) {
    if (p.repetition != 1.0f)
        logit = logit < 0.0f ? __fmul_rn(logit, p.repetition) : __fdiv_rn(logit, p.repetition);
    if (count > 0)
        logit = __fsub_rn(logit, __fadd_rn(p.presence, __fmul_rn(p.frequency, float(count))));
    return logit;
}

__device__ void penalise(const Slice &slice, const SampleRow &p, const uint2 *seen) {
    if (p.repetition == 1.0f && p.presence == 0.0f && p.frequency == 0.0f)
        return;
    for (uint32_t i = threadIdx.x; i < p.seen_count; i += THREADS) {
        const uint2 entry = seen[p.seen_start + i];
        const uint32_t at = entry.x - slice.first;
        if (at < slice.count)
            slice.values[at] = penalised(slice.values[at], p, entry.y);
    }
}

struct Best {
    uint32_t key;
    uint32_t id;
};

__device__ __forceinline__ Best warp_best(Best best) {
    const uint32_t key = __reduce_max_sync(ALL_LANES, best.key);
    return {key, __reduce_min_sync(ALL_LANES, best.key == key ? best.id : NO_TOKEN)};
}

// The largest logit of the row, of equals the one with the lowest id.
__device__ Best find_best(Group &group, const Slice &slice) {
    const uint32_t lane = threadIdx.x % 32;
    Best best = {0, NO_TOKEN};
    for (uint32_t i = threadIdx.x; i < slice.count; i += THREADS) {
        const uint32_t key = ordered(slice.values[i]);
        if (key > best.key)
            best = {key, slice.first + i};
    }
    best = warp_best(best);
    if (lane == 0)
        group.shared->scratch[threadIdx.x / 32] = uint64_t(best.key) << 32 | best.id;
    __syncthreads();
    if (threadIdx.x < 32) {
        const uint64_t word = group.shared->scratch[lane];
        best = warp_best({uint32_t(word >> 32), uint32_t(word)});
        if (lane == 0)
            group.mine()[0] = uint64_t(best.key) << 32 | best.id;
    }
    group.meet(1);
    const uint64_t word = lane < BLOCKS ? group.peer(lane, 0) : NO_TOKEN;
    return warp_best({uint32_t(word >> 32), uint32_t(word)});
}

// ---- weights -----------------------------------------------------------------------------------

// exp((x - max) / temperature), in (0, 1], by one instruction with a relative error of 2^-22.
struct Weights {
    float max;
    float slope; // log2(e) / temperature

    __device__ float of(float x) const {
        float weight;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"(__fmul_rn(x - max, slope)));
        return weight;
    }

    __device__ uint64_t fixed(float x) const { return __float2ull_rn(of(x) * WEIGHT_ONE); }
};

__device__ Weights weights_of(float max, float temperature) {
    // A temperature so small that the quotient overflows: only the largest logits keep weight.
    const double slope = 1.4426950408889634 / double(temperature);
    return {max, float(fmin(slope, 3.0e38))};
}

// What is summed over keys: their weights from the key `least` up, or how many they are.
struct Measure {
    Weights weights;
    uint32_t least;
    bool counts;

    __device__ uint64_t of(float x, uint32_t key) const {
        return counts ? 1 : key >= least ? weights.fixed(x) : 0;
    }
};

// ---- thresholds --------------------------------------------------------------------------------

// Bins of equal width in logits, so that a bell of them spreads over many bins.
struct CoarseBins {
    float max;
    float slope; // bins a logit

    __device__ uint32_t of(float x) const {
        return min(uint32_t(__float2int_rz(__fmul_rn(max - x, slope))), LAST_BIN);
    }

    // The highest key below bin `bin` and all before it, a base-32 digit at a time by one warp:
    // bins fall as keys rise, whatever the rounding.
    __device__ uint32_t below(uint32_t bin) const {
        const uint32_t max_key = ordered(max);
        uint32_t found = 0;
        for (int shift = 30; shift >= 0; shift -= 5) {
            const uint32_t digit = threadIdx.x % 32 & (shift == 30 ? 3 : 31);
            const uint32_t key = found + (digit << shift);
            const bool later = key < LOWEST_KEY || (key < max_key && of(from_ordered(key)) > bin);
            found += (__popc(__ballot_sync(ALL_LANES, later) & (shift == 30 ? 15 : ~0u)) - 1)
                     << shift;
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
// nothing comes after it. Returns the sum over everything.
__device__ uint64_t fill_coarse(Group &group, const Slice &slice, const Measure &measure,
                                const CoarseBins &coarse) {
    uint64_t total = 0;
    fill_bins(group, slice, [&](uint32_t, float x, uint64_t &amount) {
        amount = measure.of(x, ordered(x));
        total += amount;
        const uint32_t bin = coarse.of(x);
        return amount == 0 || bin == LAST_BIN ? -1 : int(bin);
    });
    total = warp_total(total);
    if (threadIdx.x % 32 == 0)
        add_exact(group.mine() + BINS, total);
    group.meet(WORDS);
    return peers_total(group, BINS);
}

__device__ void narrow_keys(Group &group, const Slice &slice, const Measure &measure,
                            Threshold &t) {
    narrow(group, slice, t, [&](uint32_t, float x, Interval keys, uint32_t &key, uint64_t &amount) {
        key = ordered(x);
        if (key < keys.low || key > keys.high)
            return false;
        amount = measure.of(x, key);
        return amount != 0;
    });
}

// What may be drawn: keys above `key`, and of that key the ids up to `last_id`.
struct Kept {
    uint32_t key;
    uint32_t last_id;
};

// The k-th largest key: all from there up stay.
__device__ Kept keep_top_k(Group &group, const Slice &slice, const Weights &weights, uint32_t k) {
    const Measure measure = {weights, 0, true};
    const CoarseBins coarse = {weights.max, BINS / COUNT_RANGE};
    fill_coarse(group, slice, measure, coarse);
    const Crossing crossing = cross(group, k);
    Threshold t = {coarse.keys(group.shared, crossing.bin), k - crossing.above, crossing.amount};
    narrow_keys(group, slice, measure, t);
    return {t.keys.low, NO_TOKEN};
}

// The id of the n-th of the tokens that have the key `key`, in order of id.
__device__ uint32_t nth_of_key(Group &group, const Slice &slice, uint32_t key, uint64_t n,
                               uint32_t num_ids) {
    Threshold t = {{0, num_ids - 1}, n, 0};
    const uint32_t top = t.keys.high;
    narrow(group, slice, t, [&](uint32_t i, float x, Interval ids, uint32_t &id, uint64_t &amount) {
        id = top - (slice.first + i);
        amount = 1;
        return ordered(x) == key && id >= ids.low && id <= ids.high;
    });
    return top - t.keys.low;
}

// The most likely tokens while those before them weigh less than top_p of all that `kept` has.
__device__ Kept keep_nucleus(Group &group, const Slice &slice, const Weights &weights, Kept kept,
                             float top_p, uint32_t num_ids) {
    const Measure measure = {weights, kept.key, false};
    // Tokens below (1 - top_p) / num_ids of the largest are never in the nucleus, because all of
    // them together weigh less than 1 - top_p: the bins need reach no further.
    const float range = log2f(float(num_ids) / (1.0f - top_p)) + 0.01f;
    const CoarseBins coarse = {weights.max, fminf(weights.slope * (LAST_BIN / range), 3.0e38f)};
    const uint64_t total = fill_coarse(group, slice, measure, coarse);
    const uint64_t mass = uint64_t(ceil(double(top_p) * double(total)));
    const Crossing crossing = cross(group, mass);
    Threshold t = {coarse.keys(group.shared, crossing.bin), mass - crossing.above, crossing.amount};
    narrow_keys(group, slice, measure, t);
    const uint64_t weight = weights.fixed(from_ordered(t.keys.low));
    const uint64_t wanted = (t.target + weight - 1) / weight;
    kept = {t.keys.low, NO_TOKEN};
    if (wanted * weight < t.amount)
        kept.last_id = nth_of_key(group, slice, kept.key, wanted, num_ids);
    return kept;
}

// ---- the draw ----------------------------------------------------------------------------------

// The weight of element i as the draw sees it: 0 for what was dropped.
struct Drawable {
    Weights weights;
    Kept kept;
    float min_p;

    __device__ uint64_t of(const Slice &slice, uint32_t i) const {
        const float x = slice.values[i];
        const uint32_t key = ordered(x);
        if (key < kept.key || (key == kept.key && slice.first + i > kept.last_id))
            return 0;
        const float weight = weights.of(x);
        return weight >= min_p ? __float2ull_rn(weight * WEIGHT_ONE) : 0;
    }
};

// The lane in which a running sum passes `target`, and what is left of the target there; 32 if
// none.
__device__ __forceinline__ uint32_t passing_lane(uint64_t sum, uint64_t &target) {
    const uint64_t through = warp_scan(sum);
    const uint32_t passed = __ballot_sync(ALL_LANES, through > target);
    if (passed == 0) {
        target -= __shfl_sync(ALL_LANES, through, 31);
        return 32;
    }
    const uint32_t lane = __ffs(passed) - 1;
    target -= __shfl_sync(ALL_LANES, through - sum, lane);
    return lane;
}

// The first id, in order, at which the running sum of weights passes uniform * total. Each warp
// sums neighbouring ids; then all find the block, its warps the warp, and that one the id.
__device__ void draw(Group &group, const Slice &slice, const Drawable &drawable, double uniform,
                     uint32_t *token) {
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t share = (slice.count + THREADS - 1) / THREADS * 32;
    const uint32_t begin = min(warp * share, slice.count);
    const uint32_t end = min(begin + share, slice.count);
    uint64_t sum = 0;
    for (uint32_t i = begin + lane; i < end; i += 32)
        sum += drawable.of(slice, i);
    sum = warp_total(sum);
    if (lane == 0)
        group.shared->scratch[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = warp_total(group.shared->scratch[lane]);
        if (lane == 0)
            group.mine()[0] = sum;
    }
    group.meet(1);
    const uint64_t block_sum = lane < BLOCKS ? group.peer(lane, 0) : 0;
    const uint64_t total = warp_total(block_sum);
    uint64_t target = min(uint64_t(uniform * double(total)), total - 1);
    if (passing_lane(block_sum, target) != group.rank)
        return;
    if (passing_lane(group.shared->scratch[lane], target) != warp)
        return;
    for (uint32_t i = begin; i < end; i += 32) {
        const uint64_t weight = i + lane < end ? drawable.of(slice, i + lane) : 0;
        const uint32_t found = passing_lane(weight, target);
        if (found == 32)
            continue;
        if (lane == found)
            *token = slice.first + i + lane;
        return;
    }
}

__device__ void sample_row(Group &group, const SampleArguments &a, uint32_t row) {
    const SampleRow p = a.rows[row];
    if (p.active == 0)
        return;
    const Slice slice = open_slice(group, a, row);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    penalise(slice, p, a.seen);
    __syncthreads();
    const Best best = find_best(group, slice);
    const bool usable = best.key > LOWEST_KEY && best.key < INFINITY_KEY;
    if (!usable || p.temperature == 0.0f) {
        if (group.rank == 0 && threadIdx.x == 0)
            a.tokens[row] = usable ? best.id : NO_TOKEN;
        return;
    }
    const Weights weights = weights_of(from_ordered(best.key), p.temperature);
    Kept kept = {0, NO_TOKEN};
    if (p.top_k > 0 && p.top_k < a.num_ids)
        kept = keep_top_k(group, slice, weights, p.top_k);
    if (p.top_p < 1.0f)
        kept = keep_nucleus(group, slice, weights, kept, p.top_p, a.num_ids);
    draw(group, slice, {weights, kept, p.min_p}, p.uniform, a.tokens + row);
}

} // namespace sampling

#if __CUDA_ARCH__ >= 900
#define SAMPLE_CLUSTER __cluster_dims__(sampling::BLOCKS, 1, 1)
#else
#define SAMPLE_CLUSTER
#endif

extern "C" __global__ void SAMPLE_CLUSTER __launch_bounds__(sampling::THREADS, 1)
    sample_tokens(const __grid_constant__ SampleArguments a) {
    using namespace sampling;
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    Group group = join_group(reinterpret_cast<Shared *>(shared_bytes), a.workspace);
    wait_for_predecessor();
    release_successor();
    for (uint32_t row = blockIdx.x / BLOCKS; row < a.num_rows; row += gridDim.x / BLOCKS) {
        sample_row(group, a, row);
        __syncthreads(); // the slice is free
    }
    group.leave();
}
