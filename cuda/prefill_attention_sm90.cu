// Causal attention of many new rows a sequence over the paged KV cache, for Hopper (sm_90a): the
// copy engine (TMA) brings the tiles, the asynchronous matrix units (wgmma) multiply them. The same
// function as prefill_attention.cu, which says what it computes; here only what differs.
//
// prefill_attention_sm90_{bf16,f16}_{128,64}(q_map, kv_map, out, cu_seqlens, context_lens,
//         block_table, work_counter, max_pages, num_seqs, num_heads, num_kv_heads, flags)
//   q_map        CUtensorMap (128 bytes, by value) over the qkv rows: T matrix of
//                (num_heads + 2 num_kv_heads) * D columns and as many rows as the buffer has (rows
//                past a step's may hold anything), box 64 columns x 128 rows
//   kv_map       CUtensorMap over one layer of the cache: T matrix of D columns and
//                pages * 2 * num_kv_heads * 16 rows, box 64 columns x 16 rows
//                Both: cuTensorMapEncodeTiled, rank 2, row stride columns * 2 bytes, element
//                strides 1, INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_L2_256B, OOB_FILL_NONE.
//   work_counter u32 [2], zero before the first launch; every launch leaves it zero. Launches that
//                may overlap need one each.
//   the others   as in prefill_attention.cu
//
// Launch: grid (multiprocessors, 1, 1), any number will do; block 384 threads; dynamic shared
// memory 1552 D bytes (1024-byte aligned, as it is when there is no static shared memory). Compute
// capability 9.0 exactly: the code for other GPUs is empty.
//
//   unit = (sequence, section of heads, row tile, head); blocks take units in this order from the
//   counter. A section is as many heads as fit in the L2 together; in it, the row tiles with most
//   keys come first.
//
//   block   warp 0             producer: queries, keys, values of unit after unit into rings of two
//           warps 4-7, 8-11    consumers: 64 of the tile's 128 rows each, 128 keys a step
//
//   consumer 0  matrix units |q k(i+1), p(i) v(i)|                   |q k(i+2), p(i+1) v(i+1)|
//               softmax      |         |  p(i+1)              |      |          |  p(i+2)
//   consumer 1  matrix units |                   |q k(i+1), p(i) v(i)|                       | q k
//               softmax              p(i)     |            |  p(i+1)              |
//
//   They take turns by named barriers. The stream runs on across units: a unit's first scores run
//   beside the last values of the unit before, whose output is stored while the other multiplies.
//
// A page is 16 rows, two swizzle periods of 8, so 8 pages copied one under the other make the same
// 128-row swizzled tile that one copy would. Values past the context are zeroed in shared memory by
// the producer (their probabilities are zero, but zero times a NaN is not).
//
// FLOPs: as in prefill_attention.cu. Bytes from the L2: 4 D a key, head and tile of 128 rows, that
// is 128 FLOPs a byte; at 570 TFLOP/s about 4.5 TB/s.
// Accumulates in f32; probabilities are rounded to T for the second product. Which block computes a
// unit varies, what it computes does not: the same input gives the same bits.
//
// Roofline: the GEMM rate, 670 TFLOP/s sustained on an H200. Measured there, 2026-11-24, bf16, 64
// heads of 128, median over 150 TFLOP of work (the card slows down under load: the fastest 5 % of
// runs are 5 to 9 % better). TFLOP/s:
//   n =                                  2048        6144        14336       30720
//   this kernel                           445 (66 %)  553 (83 %)  584 (87 %)  591 (88 %)
//   PyTorch, cuDNN (an earlier job)       419         527         575         589
//   PyTorch, FlashAttention-2 (same)      239         314         335         348
//
// Ladder, TFLOP/s at the same four lengths; expectation first:
//   1. this structure, a drain at the end of each unit; 450 or more hoped for.  425  520  547  564
//      ptxas had drawn the wait for the second product up over the softmax; a branch between them
//      (Consumer::weigh) keeps them apart. That was seen in the machine code, never timed.
//   2. no turns between the consumers: expected worse, no difference.           424  524  547  561
//   3. rescaling the output only when a maximum moves: nothing.                 419  523  540  558
//   4. sections of 8 MB instead of 24: nothing; all heads in one: worse.        420  485  501  487
//   5. three stages of keys and values: expected to hide latency, nothing.      423  515  534  545
//   6. the stream runs on across units: +5 % at 2048 expected. Worse at first,  412  497  505  545
//      probably as the producer got slower, whose copies went out lane by lane in a loop. Without
//      any copies the kernel ran at 519 666 687 690, without softmax at 518 658 691 659.
//   7. all copies issued by one elected lane, no loop:                          445  553  584  591
//      (there, a drain at the end of each unit gives 432 552 586 593: the stream helps the short.)
// Not tried: two blocks of a cluster sharing keys and values by multicast (half the L2 reads);
// three consumers with 192 rows (needs a key tile under 128 for its registers).
#include "prefill_attention_producer.cuh"

namespace qwen::prefill::sm90 {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Named barriers 1 and 2 hand the matrix units from one consumer group to the other.
__device__ __forceinline__ void turn_wait(int group) {
    named_barrier_sync(1 + group, 128 * CONSUMERS);
}
__device__ __forceinline__ void turn_pass(int group) {
    named_barrier_arrive(1 + group, 128 * CONSUMERS);
}

// Starts s = q k^T for the group's 64 rows and the tile's 128 keys.
template <typename T, int D>
__device__ __forceinline__ void start_scores(float (&s)[KEY_TILE / 2], const uint8_t *q,
                                             const uint8_t *k) {
    const uint64_t a = descriptor(shared_address(q), 0), b = descriptor(shared_address(k), 0);
    mma_shared<T, false>(s, a, b);
#pragma unroll
    for (int step = 1; step < D / 16; ++step) {
        const uint64_t column = step % 4 * 32 / 16; // 16 elements within a swizzled row
        mma_shared<T, true>(s, a + step / 4 * (ROW_TILE * SWIZZLED_ROW_BYTES / 16) + column,
                            b + step / 4 * (KEY_TILE * SWIZZLED_ROW_BYTES / 16) + column);
    }
    mma_commit();
}

// Starts o += p v.
template <typename T, int D>
__device__ __forceinline__ void start_values(float (&o)[D / 2], const uint32_t (&p)[KEY_TILE / 4],
                                             const uint8_t *v) {
    const uint64_t b = descriptor(shared_address(v), KEY_TILE * SWIZZLED_ROW_BYTES);
#pragma unroll
    for (int step = 0; step < KEY_TILE / 16; ++step)
        mma_registers<T>(o, p + 4 * step, b + step * (16 * SWIZZLED_ROW_BYTES / 16));
    mma_commit();
}

// Probabilities from the accumulator layout to the A operand's: neighbours packed, in order.
template <typename T>
__device__ __forceinline__ void pack_probabilities(uint32_t (&p)[KEY_TILE / 4],
                                                   const float (&s)[KEY_TILE / 2]) {
#pragma unroll
    for (int i = 0; i < KEY_TILE / 4; ++i)
        p[i] = pack<T>(s[2 * i], s[2 * i + 1]);
}

// One warpgroup's 64 rows. The stream of key tiles runs on from one row tile to the next: while
// the tensor cores multiply the probabilities of one step with its values, the scores of the
// next step, be it another tile's, are turned into probabilities.
template <typename T, int D> struct Consumer {
    Shared<D> &shared;
    T *out;
    int num_heads, group, warp_row, row;
    Ring queries, keys, values;
    RowState rows = empty_rows();
    float o[D / 2], s[KEY_TILE / 2], rescale[2];
    uint32_t p[KEY_TILE / 4];

    __device__ __forceinline__ Tile next_tile() {
        barrier_wait(shared.q_full[queries.stage], queries.phase);
        return shared.tile[queries.stage];
    }
    __device__ __forceinline__ void wait_keys() {
        barrier_wait(shared.k_full[keys.stage], keys.phase);
    }
    __device__ __forceinline__ void start_next_scores() {
        const uint8_t *q = shared.q[queries.stage] + group * GROUP_ROWS * SWIZZLED_ROW_BYTES;
        mma_fence();
        start_scores<T, D>(s, q, shared.k[keys.stage]);
    }
    __device__ __forceinline__ void start_last_values() {
        barrier_wait(shared.v_full[values.stage], values.phase);
        mma_fence();
        start_values<T, D>(o, p, shared.v[values.stage]);
    }
    __device__ __forceinline__ void release_queries() {
        release(shared.q_empty[queries.stage]);
        queries.advance();
    }
    __device__ __forceinline__ void release_keys() {
        release(shared.k_empty[keys.stage]);
        keys.advance();
    }
    __device__ __forceinline__ void release_values() {
        release(shared.v_empty[values.stage]);
        values.advance();
    }

    // Scores to probabilities, and the wait for the tile's next keys.
    __device__ __forceinline__ void weigh(const Tile &tile, int first_key) {
        const int offset = tile.position + row - first_key;
        if (tile.position + warp_row - first_key < KEY_TILE - 1)
            mask_scores<KEY_TILE>(s, offset);
        softmax_step<KEY_TILE>(s, rows, score_scale_log2<D>(), rescale);
        // The branches of this wait also keep ptxas from drawing the wait for the second
        // product up over the softmax, which has to run beside it.
        if (first_key > 0)
            wait_keys();
    }

    // The very first key tile: there are no values to go with it yet.
    __device__ __forceinline__ void first_step(const Tile &tile, int first_key) {
        wait_keys();
        start_next_scores();
        clear();
        mma_wait<0>();
        release_keys();
        weigh(tile, first_key);
        pack_probabilities<T>(p, s);
    }
    // Values of the last key tile beside scores and softmax of this one.
    __device__ __forceinline__ void step(const Tile &tile, int first_key) {
        turn_wait(group);
        start_next_scores();
        start_last_values();
        turn_pass(group ^ 1);
        mma_wait<1>();
        release_keys();
        weigh(tile, first_key);
        mma_wait<0>();
        release_values();
    }
    __device__ __forceinline__ void last_step() {
        start_last_values();
        mma_wait<0>();
        release_values();
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < D / 2; ++i)
            o[i] = 0.0f;
    }
    __device__ __forceinline__ void store(const Tile &tile, const RowState &state) {
        const size_t stride = size_t(num_heads) * D;
        store_rows<T, D>(o, state, out + (tile.first_row + row) * stride + size_t(tile.head) * D,
                         8 * stride, tile.num_rows - row);
    }
};

template <typename T, int D>
__device__ __forceinline__ void consume(Shared<D> &shared, T *out, int num_heads, int group) {
    const int warp_row = group * GROUP_ROWS + threadIdx.x % 128 / 32 * 16;
    Consumer<T, D> c{shared, out, num_heads, group, warp_row, warp_row + lane_index() / 4};
    if (group == 1)
        turn_pass(0);
    Tile tile = c.next_tile();
    if (tile.sequence < 0)
        return;
    int first_key = last_key_tile(tile);
    c.first_step(tile, first_key);
    for (;;) {
        while (first_key > 0) {
            first_key -= KEY_TILE;
            c.step(tile, first_key);
            pack_probabilities<T>(c.p, c.s);
            rescale_rows<D>(c.o, c.rescale);
        }
        c.release_queries();
        const Tile following = c.next_tile();
        if (following.sequence < 0)
            break;
        const RowState done = c.rows;
        c.rows = empty_rows();
        first_key = last_key_tile(following);
        c.wait_keys();
        c.step(following, first_key);
        c.store(tile, done);
        c.clear();
        pack_probabilities<T>(c.p, c.s);
        tile = following;
    }
    c.last_step();
    c.store(tile, c.rows);
}

#endif // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T, int D>
__device__ __forceinline__ void attend(const CUtensorMap *q_map, const CUtensorMap *kv_map, T *out,
                                       const Work &work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared<D> &shared = *reinterpret_cast<Shared<D> *>(memory);
    if (threadIdx.x == 0) {
        barrier_init(shared.tail_full, 1);
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(shared.q_full[stage], 1);
            barrier_init(shared.q_empty[stage], CONSUMER_WARPS);
            barrier_init(shared.k_full[stage], 1);
            barrier_init(shared.v_full[stage], 1);
            barrier_init(shared.k_empty[stage], CONSUMER_WARPS);
            barrier_init(shared.v_empty[stage], CONSUMER_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    wait_for_predecessor();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        if (threadIdx.x < 32)
            produce<T, D>(shared, q_map, kv_map, work);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        consume<T, D>(shared, out, work.num_heads,
                      __shfl_sync(~0u, threadIdx.x / 128, 0) - 1); // uniform to the compiler
    }
#endif
}

} // namespace qwen::prefill::sm90

#define PREFILL_ATTENTION_SM90(NAME, T, D)                                                         \
    extern "C" __global__ void __launch_bounds__(qwen::prefill::sm90::THREADS, 1) NAME(            \
        const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap kv_map,     \
        T *out, const uint32_t *cu_seqlens, const uint32_t *context_lens,                          \
        const uint32_t *block_table, uint32_t *work_counter, uint32_t max_pages,                   \
        uint32_t num_seqs, uint32_t num_heads, uint32_t num_kv_heads, uint32_t flags) {            \
        qwen::prefill::sm90::attend<T, D>(&q_map, &kv_map, out,                                    \
                                          {cu_seqlens, context_lens, block_table, work_counter,    \
                                           int(max_pages), int(num_seqs), int(num_heads),          \
                                           int(num_kv_heads), flags});                             \
    }

PREFILL_ATTENTION_SM90(prefill_attention_sm90_bf16_128, qwen::bf16, 128)
PREFILL_ATTENTION_SM90(prefill_attention_sm90_bf16_64, qwen::bf16, 64)
PREFILL_ATTENTION_SM90(prefill_attention_sm90_f16_128, qwen::f16, 128)
PREFILL_ATTENTION_SM90(prefill_attention_sm90_f16_64, qwen::f16, 64)
