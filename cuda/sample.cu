// Sampling: logits -> one token a row, without a sort; the steps and their order are those of
// src/sample.rs, but the draw goes in order of id also under top-p.
//
//   x = penalised logit; greedy: the lowest id of the largest x
//   w = exp((x - max x) / temperature); of those kept by top-k, top-p and min-p the first id, in
//   order, at which the running sum of w passes uniform * (sum of w)
//
// One kernel, sample_tokens, with one parameter: SampleArguments (below) by value. Logits that hold
// NaN or +infinity, or nothing but -infinity, give 0xffffffff; -infinity is never drawn.
//
// Launch: grid 8 * groups; block 512; dynamic shared memory SHARED_BYTES = 98,992 (raise the
// function's limit); workspace workspace_bytes(SMs) = SMs / 8 * 135,424, zeroed once. Groups: on
// sm_90 one a row (the kernel is compiled for clusters of 8, needs no launch attribute, and leaves
// the workspace alone); where other code runs at most SMs / 8, all of them resident together.
// Programmatic dependent launch may be on or off. At least 8 SMs.
//
//   row --> group of 8 blocks --> block r: ids r * share .. (r + 1) * share, in shared memory
//   load, penalties | max --meet--> top-k: counts --meet--> .. --> top-p: weights --meet--> ..
//   --> sums in order of id --meet--> the block, warp and lane that the random number falls into
//
// Determinism and precision: weights are integers in units of 2^-40 of the largest one, so sums are
// exact in any order. A weight is off by at most w * (3 * 2^-24 * |x - max| / T + 2^-22) + 2^-41
// (three roundings of the exponent, exp2, fixed point); a temperature below 5e-39 counts as that.
//
// Bytes: 4 * num_ids + 8 * seen a row, read once; a pass over the copy is 4 * num_ids of shared
// memory. FLOPs: about 20 an id and pass of weights. 64 rows of 151,851 ids are 39 MB, 9 us at an
// assumed 4.3 TB/s; bound by the latency of meetings (1 row) and by instructions (64 rows): at best
// 43 % of that (greedy, 64 rows, 21 us; 2026-11-24, H200).
//
// Ladder (H200, 2026-11-24; us in a graph at 1 and 64 rows of 151,851 ids: greedy; top_p 0.8 with
// penalties of 2000 ids)
//   1024 threads, persistent groups SMs / 8, 64 KB of peers' bins read a step; expected 10 and 45:
//     greedy 6.0, 46; top-p 38, 286. A cluster of 8 does not fit 16 times: half the groups waited.
//   Sums of 32 bins published, so 4 KB are read a step; four neighbours a lane, one vote for all:
//     greedy 5.6, 43; top-p 20.5, 165. A group a row: 34; 113.
//   512 threads, two blocks an SM, a group a row: greedy 5.1, 22; top-p 21.4, 81.
//   Stop when a bin holds one element; edges of coarse bins from arithmetic; no 64-bit conversion
//     (XU pipe): greedy 5.0, 22; top-p 16.4, 65. T 1 alone got slower (9.9 to 10.9): branches.
//   The same with helpers out of line (64 KB of code for 118): 3 % slower, although it starts cold.
//   Weights without branches: expected 2 us less for T 1; not timed, and run so far only by the
//     harness over an emulation of the kernel on the host, like two fixes of rare cases before it
//     (a bin that spans zero; top-k's floor under a nucleus that stopped at a bin).
// Flat logits (top-p 53 us at 1 row) and many equals (72) queue for one bin's address.

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
    uint32_t state;      // 36  a RowState
    double uniform;      // 40  [0, 1), the random number of the draw
};

enum RowState : uint32_t {
    ROW_PADDING = 0, // nothing is written
    ROW_DRAWN = 1,
    ROW_FED = 2, // drawn; `seen` does not have the last token of the sequence yet, it counts once more
};
static_assert(sizeof(SampleRow) == 48 && offsetof(SampleRow, uniform) == 40, "the host's layout");

// What a launch is given, by value. Every pointer is device memory.
struct SampleArguments {
    float *logits;         //  0  [num_rows, stride], the first num_ids of a row; may be overwritten
    const SampleRow *rows; //  8  [num_rows]
    const uint2 *seen;     // 16  (id, how often the reply has it), an id at most once a row
    uint32_t *tokens;      // 24  [num_rows], out
    void *workspace;       // 32  workspace_bytes(SMs), zeroed once, before the first launch
    const uint32_t *token_ids;   // 40  of the step; resolved, no row of another step
    const uint32_t *logits_rows; // 48  [num_rows], which of token_ids the row of logits follows
    uint32_t num_rows;     // 56
    uint32_t num_ids;      // 60  1 to 2^23
    uint32_t stride;       // 64
};
static_assert(sizeof(SampleArguments) == 72 && offsetof(SampleArguments, stride) == 64, "as above");

namespace sampling {

constexpr uint32_t NO_TOKEN = 0xffffffffu;
constexpr uint32_t INFINITY_KEY = 0xff800000u; // ordered(+infinity)
constexpr uint32_t NAN_KEY = 0xffffffffu;
constexpr float COUNT_RANGE = 16.0f; // logits below the largest that coarse bins tell apart

// The launch. Groups go round the rows, so any number of them is right, but before sm_90 the blocks
// wait for each other and must all be resident.
[[maybe_unused]] constexpr uint32_t SHARED_BYTES = sizeof(Shared);
constexpr uint32_t num_groups(bool clusters, uint32_t num_sms, uint32_t max_rows) {
    const uint32_t most = clusters ? max_rows : num_sms / BLOCKS;
    return max_rows < most ? max_rows : most;
}
constexpr size_t workspace_bytes(uint32_t num_sms) { return num_sms / BLOCKS * BOARD_BYTES; }

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
    Slice slice = {logits, first, min(share, a.num_ids - first),
                   reinterpret_cast<uintptr_t>(logits) % 16 == 0};
    if (share <= SLICE_CAPACITY) {
        slice.values = group.shared->slice;
        if (slice.vectors)
            copy_async<16>(slice.values, logits, slice.count);
        else
            copy_async<4>(slice.values, logits, slice.count);
        slice.vectors = true;
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

__device__ void penalise_id(const Slice &slice, const SampleRow &p, uint32_t id, uint32_t count) {
    const uint32_t at = id - slice.first;
    if (at < slice.count)
        slice.values[at] = penalised(slice.values[at], p, count);
}

__device__ void penalise(const Slice &slice, const SampleArguments &a, const SampleRow &p,
                         uint32_t row) {
    if (p.repetition == 1.0f && p.presence == 0.0f && p.frequency == 0.0f)
        return;
    const bool is_fed = p.state == ROW_FED;
    const uint32_t fed = is_fed ? a.token_ids[a.logits_rows[row]] : 0;
    bool is_known = false;
    for (uint32_t i = threadIdx.x; i < p.seen_count; i += THREADS) {
        const uint2 entry = a.seen[p.seen_start + i];
        const bool again = is_fed && entry.x == fed;
        is_known |= again;
        penalise_id(slice, p, entry.x, entry.y + again);
    }
    if (!__syncthreads_or(is_known) && is_fed && threadIdx.x == 0)
        penalise_id(slice, p, fed, 1);
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
    float largest = -INFINITY;
    uint32_t id = NO_TOKEN;
    bool is_nan = false;
    each_four<2>(slice, [&](uint32_t i, const Four &x) {
#pragma unroll
        for (uint32_t c = 0; c < 4; c++) {
            is_nan |= x.at[c] != x.at[c];
            if (x.at[c] > largest) {
                largest = x.at[c];
                id = slice.first + i + c;
            }
        }
    });
    Best best = {is_nan ? NAN_KEY : ordered(largest), id};
    best = warp_best(best);
    if (lane == 0)
        group.shared->scratch[threadIdx.x / 32] = uint64_t(best.key) << 32 | best.id;
    __syncthreads();
    if (threadIdx.x < 32) {
        const uint64_t word = lane < WARPS ? group.shared->scratch[lane] : NO_TOKEN;
        best = warp_best({uint32_t(word >> 32), uint32_t(word)});
        if (lane == 0)
            group.mine()[0] = uint64_t(best.key) << 32 | best.id;
    }
    group.meet(1);
    const uint64_t word = lane < BLOCKS ? group.peer(lane, 0) : NO_TOKEN;
    return warp_best({uint32_t(word >> 32), uint32_t(word)});
}

// ---- thresholds --------------------------------------------------------------------------------

// What may be drawn: logits above `least`, and of those equal to it the ids up to `last_id`.
struct Kept {
    float least;
    uint32_t last_id;
};

// From the k-th largest logit up all stay.
__device__ Kept keep_top_k(Group &group, const Slice &slice, const Weights &weights, uint32_t k) {
    const Measure measure = {weights, -INFINITY, true};
    const CoarseBins coarse = {weights.max, BINS / COUNT_RANGE};
    fill_coarse(group, slice, measure, coarse);
    const Crossing crossing = cross(group, k);
    Threshold t = {coarse.keys(group.shared, crossing.bin), crossing.target, crossing.amount};
    narrow_keys(group, slice, measure, t);
    return {from_ordered(t.keys.low), NO_TOKEN};
}

// The id of the n-th of the tokens whose logit is `logit`, in order of id.
__device__ uint32_t nth_of_equals(Group &group, const Slice &slice, float logit, uint64_t n,
                                  uint32_t num_ids) {
    const uint32_t top = num_ids - 1;
    Threshold t = {{0, top}, n, 0};
    narrow(
        group, slice, t, true, [] { return false; },
        [&](Interval, float x) { return x == logit; },
        [&](uint32_t i, float x, Interval ids, uint32_t &id, uint64_t &amount) {
            id = top - (slice.first + i);
            amount = 1;
            return x == logit && id >= ids.low && id <= ids.high;
        });
    return top - t.keys.low;
}

// The most likely tokens while those before them weigh less than top_p of all that `kept` has.
__device__ Kept keep_nucleus(Group &group, const Slice &slice, const Weights &weights, Kept kept,
                             float top_p, uint32_t num_ids) {
    const Measure measure = {weights, kept.least, false};
    // Tokens below (1 - top_p) / num_ids of the largest are never in the nucleus, because all of
    // them together weigh less than 1 - top_p: the bins need reach no further.
    const float range = log2f(float(num_ids) / (1.0f - top_p)) + 0.01f;
    const CoarseBins coarse = {weights.max, fminf(weights.slope * (LAST_BIN / range), 3.0e38f)};
    const uint64_t total = fill_coarse(group, slice, measure, coarse);
    const uint64_t mass = uint64_t(ceil(double(top_p) * double(total)));
    const Crossing crossing = cross(group, mass);
    Threshold t = {coarse.keys(group.shared, crossing.bin), crossing.target, crossing.amount};
    narrow_keys(group, slice, measure, t);
    kept = {fmaxf(kept.least, from_ordered(t.keys.low)), NO_TOKEN};
    const uint64_t weight = weights.fixed(kept.least);
    if (t.keys.low == t.keys.high && t.amount > weight) { // equals, of which some may go
        const uint64_t wanted = (t.target + weight - 1) / weight;
        if (wanted * weight < t.amount)
            kept.last_id = nth_of_equals(group, slice, kept.least, wanted, num_ids);
    }
    return kept;
}

// ---- the draw ----------------------------------------------------------------------------------

// The weights of four neighbours as the draw sees them: 0 for what was dropped.
struct Drawable {
    Weights weights;
    Kept kept;
    float min_p;

    __device__ __forceinline__ uint64_t of(float x, uint32_t id) const {
        const float weight = weights.of(x);
        const bool in = x > kept.least || (x == kept.least && id <= kept.last_id);
        return to_fixed(in && weight >= min_p ? weight : 0.0f);
    }

    __device__ __forceinline__ uint64_t sum(const Four &x, uint32_t id) const {
        return of(x.at[0], id) + of(x.at[1], id + 1) + of(x.at[2], id + 2) + of(x.at[3], id + 3);
    }
};

// The weight of a block's warps into scratch, of the block to its peers. Each warp has neighbouring
// ids; returns how many.
__device__ uint32_t sum_weights(Group &group, const Slice &slice, const Drawable &drawable) {
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t share = (slice.count + THREADS * 4 - 1) / (THREADS * 4) * WARP_STEP;
    const uint32_t end = min((warp + 1) * share, slice.count);
    uint64_t sum = 0;
#pragma unroll 2
    for (uint32_t base = warp * share; base < end; base += WARP_STEP) {
        const Four x = slice.four(base + lane * 4);
        const float most = fmaxf(fmaxf(x.at[0], x.at[1]), fmaxf(x.at[2], x.at[3]));
        if (__any_sync(ALL_LANES, most >= drawable.kept.least))
            sum += drawable.sum(x, slice.first + base + lane * 4);
    }
    sum = warp_total(sum);
    if (lane == 0)
        group.shared->scratch[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = warp_total(lane < WARPS ? group.shared->scratch[lane] : 0);
        if (lane == 0)
            group.mine()[0] = sum;
    }
    group.meet(1);
    return share;
}

// The first id, in order, at which the running sum of weights passes uniform * total: all find the
// block, its warps the warp, and that one the id.
__device__ void draw(Group &group, const Slice &slice, const Drawable &drawable, double uniform,
                     uint32_t *token) {
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t share = sum_weights(group, slice, drawable);
    const uint64_t block_sum = lane < BLOCKS ? group.peer(lane, 0) : 0;
    const uint64_t total = warp_total(block_sum);
    uint64_t target = min(uint64_t(uniform * double(total)), total - 1) + 1;
    if (reaching_lane(block_sum, target) != group.rank)
        return;
    if (reaching_lane(lane < WARPS ? group.shared->scratch[lane] : 0, target) != warp)
        return;
#pragma unroll 1
    for (uint32_t base = warp * share; base < slice.count; base += WARP_STEP) {
        const uint32_t i = base + lane * 4;
        const Four x = slice.four(i);
        const uint32_t found = reaching_lane(drawable.sum(x, slice.first + i), target);
        if (found == 32)
            continue;
        if (lane == found) {
            uint32_t c = 0;
            uint64_t through = 0;
            for (; c < 3; c++) {
                through += drawable.of(x.at[c], slice.first + i + c);
                if (through >= target)
                    break;
            }
            *token = slice.first + i + c;
        }
        return;
    }
}

__device__ void sample_row(Group &group, const SampleArguments &a, uint32_t row) {
    const SampleRow p = a.rows[row];
    if (p.state == ROW_PADDING)
        return;
    const Slice slice = open_slice(group, a, row);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    penalise(slice, a, p, row);
    __syncthreads();
    const Best best = find_best(group, slice);
    const bool usable = best.key > LOWEST_KEY && best.key < INFINITY_KEY;
    if (!usable || p.temperature == 0.0f) {
        if (group.rank == 0 && threadIdx.x == 0)
            a.tokens[row] = usable ? best.id : NO_TOKEN;
        return;
    }
    const Weights weights = weights_of(from_ordered(best.key), p.temperature);
    Kept kept = {-INFINITY, NO_TOKEN};
    if (p.top_k > 0 && p.top_k < a.num_ids)
        kept = keep_top_k(group, slice, weights, p.top_k);
    if (p.top_p < 1.0f)
        kept = keep_nucleus(group, slice, weights, kept, p.top_p, a.num_ids);
    draw(group, slice, {weights, kept, p.min_p}, p.uniform, a.tokens + row);
}

} // namespace sampling

// Two blocks share an SM on sm_90; before, the shared memory is too small for that.
#if __CUDA_ARCH__ >= 900
#define SAMPLE_BOUNDS __cluster_dims__(sampling::BLOCKS) __launch_bounds__(sampling::THREADS, 2)
#else
#define SAMPLE_BOUNDS __launch_bounds__(sampling::THREADS, 1)
#endif

extern "C" __global__ void SAMPLE_BOUNDS sample_tokens(const __grid_constant__ SampleArguments a) {
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
