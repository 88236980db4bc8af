// Decode attention: one launch does a layer's attention for every sequence that has exactly one new
// row, over paged keys and values, together with the rotary embedding and the append to the cache.
// Sequences with another number of rows are left alone (prefill attention does them), and so is
// padding (context length 0).
//
//     q = T(rotate(q_row) * query_scale)      k_new = T(rotate(k_row))      v_new = v_row
//     out = sum_t softmax_t(q . k_t / sqrt(D)) v_t,        t = 0 .. context - 1
//
// In and out: struct DecodeAttention in decode_attention.cuh, with shapes and layouts. T is bf16 or
// f16, D is 64 or 128, the sums are f32. The newest token is at position context - 1: its key and
// value are computed here, used from shared memory, and stored at slots[row]. num_heads may be a
// multiple of num_kv_heads; the query heads of a group then each read the pages (right, not tuned).
//
// Launch (decode_attention_{bf16,f16}_{64,128}, one parameter: the struct, by value):
//     grid = BLOCKS_PER_SM (1) x SMs, any grid is right      block = 256 threads
//     dynamic shared memory = shared_bytes(D) = 1024 D + 32 (D + 4) + 24 (6 D + 32):
//         154,496 bytes for D = 128 (more than sm_86 and sm_89 have), 77,696 for D = 64
//     workspace = workspace_bytes(grid, D) = 32 grid, rounded up to 128, + 64 grid (D + 4) bytes
// The workspace is zeroed once, when it is allocated; a launch leaves its counters zero. One serves
// all layers and batch sizes of a stream. num_heads x all pages must stay below 2^32. Nothing in a
// launch depends on the lengths, so one captured graph serves every context.
//
// Who does what (decode_division.cuh), from the lengths on the device. An item is a sequence and a
// query head; each has its pages in a row:
//
//     items            | head 0: pages 0 ..       | head 1: pages 0 ..       | head 2 ..
//     much work        |  w0  |  w1  |  w2  |   w3   |  w4  |  w5  | ..    a range a warp
//     little work      |  b0: w0 .. w7  |  b1  |  b2: w0 .. w7  |  b3  | ..  a piece a block
//
// Each warp asks for its pages itself, STAGES ahead, and waits for no other warp. A piece that is a
// whole item is written at once; the others leave (max, weight, sum[D]) in the workspace, and
// whoever completes the item, by a counter, adds them in page order: the same bits on every run.
//
// Dependent launch: before griddepcontrol.wait the kernel reads cu_seqlens, context_lens and
// block_table, and requests the first pages. That is safe if a full dependency (the start of a
// graph, a kernel launched without the attribute) lies between this launch and whatever wrote
// those, and the old pages: the previous step, prefill, page copies. Only this step's rows (qkv,
// cosines, sines, query_scale, slots) may come from the predecessor. In the last page the slot of
// the newest token may be written while it is read: what was read there is not used.
//
// Bytes: 2 D sizeof(T) num_kv_heads (sum of contexts), and little else. FLOPs: 4 D num_heads (sum
// of contexts), 1 a byte: the bus is the limit. Scores and sums are f32, on the tensor cores; of
// their 8 columns the scores use one and the sums two (a weight is split into two numbers of T,
// which together have twice its bits).
//
// Measured on an H200 (2026-11-24), 64 heads, D = 128, bf16, the caches of many layers in turn so
// that none is in the L2, against 4.55 TB/s of streaming read in the same run. "In a chain" is what
// it adds after a kernel that reads 64 MB.
//
//     sequences x context   plain             dependent launch   in a chain
//     1 x 1                   5.4 us            3.4 us             3.7 us
//     1 x 64                  5.9 us            3.4 us             4.4 us
//     1 x 1024               16.3 us  45.3 %   12.1 us  61.2 %    10.8 us  68.4 %
//     1 x 6144               56.4 us  78.5 %   52.6 us  84.1 %    49.3 us  89.7 %
//     1 x 30720             239.5 us  92.4 %  235.9 us  93.8 %   233.0 us  95.0 %
//     8 x 6144              372.6 us  95.0 %  369.3 us  95.9 %   366.5 us  96.6 %
//     64 x 512              259.4 us  91.0 %  254.9 us  92.6 %   252.7 us  93.4 %
//     30720, 7 x 64, 2 x 1000
//                           257.5 us  92.8 %  253.2 us  94.4 %   251.7 us  94.9 %
//     1 x 6144, 8 heads      14.7 us  37.6 %   12.6 us  43.9 %     9.4 us  58.7 %
//
// What was tried: percent of the read at 1 x 6144 plain / dependent, then 1 x 30720 and the mixed
// batch, dependent. (Runs 1 to 4 were on a card that reads 4.65 TB/s.)
//  1. Blocks of 4 warps that share every piece, two blocks an SM, pages by cp.async.bulk and
//     mbarrier, 3 stages a warp: 192 KB an SM in flight. Expected 88 to 92 at 6144. Got 72 / 80,
//     94, 66: a short item cost 4 us, reads of its row, each waited for behind the queued pages.
//  2. The row loaded one item ahead. Expected short items to be bound by the bus. Got 75 / 82, 94,
//     73: less, but not yet.
//  3. 16-byte cp.async instead of bulk copies. Got 78 / 85, 95, 73: 1 to 3 percent better on long
//     contexts, so the bulk copies went.
//  4. 8 warps x 2 stages, one block an SM. Expected less queueing. Got 80 / 87, 95, 53: long items
//     gain, short ones lose, for a block takes them one at a time. (4 x 2, two blocks an SM, gave
//     78 / 66, 73, 63: a block of the next launch fits beside them, and then they are spread
//     unevenly. A block with more than half the shared memory is spread evenly.)
//  5. A piece a warp, and a piece a block only for short contexts; all partials of a merge asked
//     for at once. Expected short items to overlap. They do: 78 / 84, 93, 94, and 64 x 100 rose
//     from 53 to 73; but the single sequence pays for merging 17 pieces an item.
//  6. Scores and sums on the tensor cores. Expected a shorter tail. Got 79 / 84, 94, 94: the
//     instructions were not the limit.
//  7. On top of 6: at most 128 registers, to fit beside another kernel: 75 / 82, 92, 92. 4 warps
//     x 4 stages: 77 / 84, 93, 94, yet 1.6 us instead of 4 in a chain of short contexts, as it does
//     fit beside the predecessor. 4 x 3, two blocks: 77 / 83, 94, 95, and 7.6 us in that chain.
// A trace of 1 x 6144, plain: the first page is requested at 2.2 us and there at 6.6, blocks have
// their last page between 38 and 51 us, the last merge ends at 55. Untried: handing out the last
// fifth of the pages as warps become free, and groups of query heads in the idle columns.
#include "decode_merge.cuh"

namespace decode_attention {

// A softmax-weighted sum under way: the largest score (base 2) so far, the lane's share of the sum
// of the weights relative to it, and the weighted values, 16 dimensions a step. Even columns of the
// sums hold the values times the weights rounded to T, odd ones times what that rounding left over:
// together the weights have twice the bits of T.
template <class S> struct State {
    float largest = -INFINITY, weight = 0, sums[S::D / 16][4] = {};
};

// Scores of tokens g and g + 8, in base 2.
template <class S>
__device__ float2 score_page(uint32_t keys, const Query<S> &query, uint32_t lane) {
    const uint32_t row = keys + S::chunk_offset(lane % 16, lane / 16);
    float sums[4][4] = {}; // four chains: an mma's result takes long
#pragma unroll
    for (uint32_t i = 0; i < S::D / 16; i++) {
        multiply<typename S::T>(sums[i % 4], load_matrices(row ^ i * 32), query.steps[i].x,
                                query.steps[i].y);
    }
    const float to_exponent = LOG2_E * (S::D == 128 ? 0.08838834764831845f : 0.125f);
    return {((sums[0][0] + sums[1][0]) + (sums[2][0] + sums[3][0])) * to_exponent,
            ((sums[0][2] + sums[1][2]) + (sums[2][2] + sums[3][2])) * to_exponent};
}

// The weights of a page as mma wants its second operand, from those of tokens g and g + 8: rounded
// to T in even columns, what the rounding left over in odd ones.
template <class T> __device__ uint2 spread_weights(float low, float high, uint32_t lane) {
    uint32_t pairs[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const float first = __shfl_sync(ALL_LANES, i == 0 ? low : high, lane % 4 * 8);
        const float second = __shfl_sync(ALL_LANES, i == 0 ? low : high, lane % 4 * 8 + 4);
        pairs[i] = pack_pair<T>(first, second);
        const float2 rounded = unpack_pair<T>(pairs[i]);
        if (lane / 4 % 2 == 1)
            pairs[i] = pack_pair<T>(first - rounded.x, second - rounded.y);
    }
    return {pairs[0], pairs[1]};
}

// Adds the first `tokens` (at least one) tokens of the page in `stage`.
template <class S>
__device__ void add_page(State<S> &state, const unsigned char *stage, const Query<S> &query,
                         uint32_t tokens, uint32_t lane) {
    using T = typename S::T;
    const uint32_t keys = shared_address(stage);
    const float2 scores = score_page<S>(keys, query, lane);
    const float low = lane / 4 < tokens ? scores.x : -INFINITY;
    const float high = lane / 4 + 8 < tokens ? scores.y : -INFINITY;
    float largest = fmaxf(state.largest, fmaxf(low, high));
#pragma unroll
    for (uint32_t step = 4; step < 32; step *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    if (largest > state.largest) { // in all lanes or none
        const float shrink = exp2_fast(state.largest - largest);
        state.largest = largest;
        state.weight *= shrink;
#pragma unroll
        for (auto &block : state.sums) {
#pragma unroll
            for (float &x : block)
                x *= shrink;
        }
    }
    const float low_weight = exp2_fast(low - largest), high_weight = exp2_fast(high - largest);
    state.weight += low_weight + high_weight;
    const uint2 weights = spread_weights<T>(low_weight, high_weight, lane);
    const uint32_t token = lane % 8 + lane / 16 * 8;
    const uint32_t row = keys + S::HALF_BYTES + S::chunk_offset(token, lane / 8 % 2);
#pragma unroll
    for (uint32_t i = 0; i < S::D / 16; i++) {
        multiply<T>(state.sums[i], load_matrices_transposed(row ^ i * 32), weights.x, weights.y);
    }
}

// Leaves the warp's state in shared memory, laid out as a partial.
template <class S> __device__ void publish(const State<S> &state, float *partial, uint32_t lane) {
    float weight = state.weight;
#pragma unroll
    for (uint32_t step = 4; step < 32; step *= 2)
        weight += __shfl_xor_sync(ALL_LANES, weight, step);
    if (lane % 4 == 0) {
#pragma unroll
        for (uint32_t i = 0; i < S::D / 16; i++) {
            partial[i * 16 + lane / 4] = state.sums[i][0] + state.sums[i][1];
            partial[i * 16 + 8 + lane / 4] = state.sums[i][2] + state.sums[i][3];
        }
    }
    if (lane == 0)
        *reinterpret_cast<float2 *>(partial + S::D) = {state.largest, weight};
}

// One warp's share of a piece. Returns with every lane's part of the sum.
template <class S>
__device__ State<S> attend_piece(Producer<S> &producer, PieceSlot<S> &slot, uint32_t &taken) {
    const Piece &piece = slot.piece;
    const uint32_t lane = producer.lane, stride = producer.stride, pages = piece.extent.pages;
    State<S> state;
    uint32_t page = piece.page + producer.first;
    if (page >= piece.end)
        return state;
    const bool has_last = piece.end == pages && (pages - 1 - page) % stride == 0;
    Newest newest;
    if (has_last)
        newest = load_newest<S>(producer.a, piece, lane);
    copy_wait<STAGES - 1>(); // the first page's group brings the row
    const Query<S> query = make_query<S>(slot, lane);
    for (; page < piece.end; page += stride) {
        copy_wait<STAGES - 1>();
        unsigned char *stage = producer.stages + taken * S::STAGE_BYTES;
        const bool is_last = page + 1 == pages;
        if (is_last)
            complete<S>(producer.a, slot, newest, stage, lane);
        const uint32_t tokens =
            is_last ? (piece.extent.context - 1) % PAGE_TOKENS + 1 : PAGE_TOKENS;
        add_page<S>(state, stage, query, tokens, lane);
        __syncwarp(); // all lanes have read the stage
        taken = taken + 1 == STAGES ? 0 : taken + 1;
        producer.step();
    }
    return state;
}

template <class S> __device__ void run(const DecodeAttention &a) {
    extern __shared__ __align__(256) unsigned char shared[]; // rows are found by XOR
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    qwen::release_successor();
    const Extent extent = extent_of(a, lane);
    const Division division = divide(a, extent, lane);
    const uint32_t worker = division.shared_pieces() ? blockIdx.x : blockIdx.x * WARPS + warp;
    Producer<S> producer(a, division, walk_of(a, division, worker, extent, lane), shared, warp,
                         lane);
#pragma unroll 1 // one copy of the code: a short context pays for every instruction fetched
    for (uint32_t stage = 0; stage < STAGES; stage++)
        producer.step();
    qwen::wait_for_predecessor();
    producer.request_rows();
    copy_wait<0>();
    float *partials = reinterpret_cast<float *>(shared + ring_bytes(S::D));
    float *partial = partials + warp * S::PARTIAL_FLOATS;
    uint32_t taken = 0, slot = 0;
    for (uint32_t piece = 0; piece < producer.begun; piece++) {
        const State<S> state = attend_piece<S>(producer, producer.slots[slot], taken);
        publish<S>(state, partial, lane);
        if (division.shared_pieces()) {
            __syncthreads();
            if (warp > 0)
                return;
        }
        __syncwarp();
        const Quad quad = merge_warps<S>(partial, division.shared_pieces() ? WARPS : 1, lane);
        finish_piece<S>(a, division, producer.slots[slot].piece, quad, worker, lane);
        slot = slot + 1 == PIECES ? 0 : slot + 1;
        __syncwarp(); // all lanes have read the partial
    }
}

} // namespace decode_attention

#define DECODE_ATTENTION_BOUNDS                                                                    \
    __launch_bounds__(decode_attention::THREADS, decode_attention::BLOCKS_PER_SM)

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_bf16_64(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__nv_bfloat16, 64>>(arguments);
}

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_bf16_128(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__nv_bfloat16, 128>>(arguments);
}

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_f16_64(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__half, 64>>(arguments);
}

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_f16_128(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__half, 128>>(arguments);
}
