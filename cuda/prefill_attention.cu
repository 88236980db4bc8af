// Causal attention of many new rows a sequence over the paged KV cache (prefill, chunked or not),
// for any GPU with mma.sync and cp.async. prefill_attention_sm90.cu is the faster one for Hopper.
//
//   out[row, h] = sum_key p[key] v[key, g] / sum_key p[key],  p[key] = exp(q[row, h] . k[key, g] /
//   sqrt(D))
//
// over the keys 0..=position of the row's sequence, g = h * num_kv_heads / num_heads. An earlier
// kernel has rotated, scaled and rounded the queries in place in the qkv rows and has written the
// new keys and values to the cache: every key and value is read from the pages, so a chunk of a
// prompt is computed exactly like the whole (same bits, tests/cuda/prefill_attention.cu).
//
// prefill_attention_{bf16,f16}_{128,64}(out, qkv, cache, cu_seqlens, context_lens, block_table,
//                                       max_pages, num_seqs, num_heads, num_kv_heads, flags)
//   out          T [rows, num_heads * D], 16-byte aligned
//   qkv          T [rows, (num_heads + 2 num_kv_heads) * D]; only the query heads are read
//   cache        T [pages][2 (K, V)][num_kv_heads][16][D], one layer
//   cu_seqlens   u32 [num_seqs + 1]; rows of sequence s are cu_seqlens[s] .. cu_seqlens[s + 1]
//   context_lens u32 [num_seqs]; tokens in the cache, new ones included; 0: nothing to do
//   block_table  u32 [num_seqs, max_pages]; entries past the context are not read
//   flags        u32; 1 (FLAG_SINGLE_ROWS): also do sequences of one new row, left out otherwise
// Rows of sequences that are left out are not written. Cache slots past a context may hold
// anything, NaN too.
//
// Launch: grid (ceil(rows / 128) + num_seqs, num_heads, 1), any upper bound of the first will do;
// block 128 threads; dynamic shared memory 512 D bytes (64 KiB at D = 128; above 48 KiB the
// function attribute has to be raised). sm_80 and later, two blocks a multiprocessor where 128 KiB
// of shared memory allow it.
//
//   grid.x, one sequence after the other:  | tiles of seq 0: last rows ... first rows | seq 1 | ...
//   block = 128 query rows x all keys they see, right to left in tiles of 64
//   warp = 32 query rows (two m16 tiles) x 64 keys: scores, softmax and output stay in registers
//   time:  copy values | scores | copy next keys | softmax, values | copy values | ...
//
// FLOPs: 4 D sum over rows and heads of (position + 1). Bytes: 2 D of queries and 2 D of output a
// row and head; 4 D a key, head and row tile, mostly from the L2.
// Accumulates in f32; probabilities are rounded to T for the second product. No atomics: the same
// input gives the same bits.
//
// Roofline: mma.sync runs at about 62 % of the wgmma rate, 415 of 670 TFLOP/s sustained. Measured
// on an H200, 2026-11-24, bf16, 64 heads of 128, TFLOP/s:
//   n =                            2048   6144  14336  30720
//   this kernel                     244    316    338    345   (83 % of the roofline)
//   PyTorch's FlashAttention-2      239    314    335    348   (same job)
//
// Ladder:
//   1. 4 warps x 32 rows, keys 64 a tile, one buffer each for keys and values, two blocks a
//      multiprocessor; expected about FlashAttention-2's rate:      216  282  304  314
//   2. one swizzled offset for all copies of a thread instead of eight; the accumulators are only
//      rescaled when a maximum of the warp has moved (no spills any more, on any target); expected
//      a few percent, got 8 to 13:                                  244  319  337  338
//   3. rescaling only when a maximum grows by more than 2^8: nothing (243 317 337 332), left out.
#include "prefill_attention.cuh"

#include <type_traits>

namespace qwen::prefill::any_gpu {

constexpr int KEY_TILE = 64;
constexpr int NUM_WARPS = 4;
constexpr int THREADS = 32 * NUM_WARPS;
constexpr int WARP_ROWS = ROW_TILE / NUM_WARPS;
static_assert(WARP_ROWS == 32, "a warp owns two m16 tiles: each key fragment is used twice");
static_assert(KEY_TILE % PAGE_TOKENS == 0, "a key tile is whole pages");

template <int D> constexpr int shared_bytes() { return (ROW_TILE + 2 * KEY_TILE) * D * 2; }

// Byte offset of 16-byte chunk `chunk` of row `row`: chunks are permuted within groups of eight so
// that the eight rows an ldmatrix reads lie in eight different bank groups.
template <int D> __device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
    return row * D * 2 + (chunk ^ (row & 7)) * 16;
}

// Asynchronous 16-byte copy to shared memory; with `valid` false it writes zeros and reads
// nothing, so keys and values that were never written cannot bring in a NaN.
__device__ __forceinline__ void copy16(uint32_t shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
}

// Four 8 x 8 matrices, one row address a lane; `trans` hands each one over transposed, which
// turns values [key][d] into the column-major B operand.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_trans(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

// c += a b on 16 x 8 x 16, f32 accumulate.
template <typename T>
__device__ __forceinline__ void mma(float *c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same<T, f16>::value)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// How the block's threads share a tile's 16-byte chunks: ROWS rows at a time, a whole number of
// swizzle periods, so that one offset serves all passes.
template <int D> struct CopyPlan {
    static constexpr int CHUNKS = D / 8, ROWS = THREADS / CHUNKS;
    static_assert(ROWS % 8 == 0 && PAGE_TOKENS % ROWS == 0, "a pass stays within one page");
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    uint32_t offset = swizzled<D>(row, chunk);
};

// The tile's query rows; rows past its end are zero.
template <typename T, int D>
__device__ __forceinline__ void copy_queries(uint32_t shared, const T *q, size_t row_stride,
                                             int num_rows) {
    const CopyPlan<D> plan;
#pragma unroll
    for (int first = 0; first < ROW_TILE; first += plan.ROWS) {
        const bool valid = first + plan.row < num_rows;
        const T *source = q + (valid ? first + plan.row : 0) * row_stride + plan.chunk * 8;
        copy16(shared + plan.offset + first * D * 2, source, valid);
    }
}

// Keys (or values) first_key .. first_key + KEY_TILE of one head, page by page; those past the
// context are zero. `heads` points at the head's slice in page 0.
template <typename T, int D>
__device__ __forceinline__ void copy_keys(uint32_t shared, const T *heads, uint32_t page_stride,
                                          const uint32_t *pages, int first_key, int context) {
    const CopyPlan<D> plan;
    const T *source = heads + plan.row * D + plan.chunk * 8;
#pragma unroll
    for (int first = 0; first < KEY_TILE; first += plan.ROWS) {
        const bool valid = first_key + first + plan.row < context;
        const uint32_t page = valid ? pages[first_key / PAGE_TOKENS + first / PAGE_TOKENS] : 0;
        copy16(shared + plan.offset + first * D * 2,
               source + uint64_t(page) * page_stride + first % PAGE_TOKENS * D, valid);
    }
}

// s = q k^T for the warp's 32 rows and the tile's keys, raw scores.
template <typename T, int D>
__device__ __forceinline__ void score_tile(float (&s)[2][KEY_TILE / 2], uint32_t q, uint32_t k) {
    const int lane = lane_index();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < KEY_TILE / 2; ++i)
            s[m][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
            load_matrices(a[m], q + swizzled<D>(16 * m + (lane & 15), 2 * step + (lane >> 4)));
#pragma unroll
        for (int pair = 0; pair < KEY_TILE / 16; ++pair) {
            uint32_t b[4];
            const int key = 16 * pair + (lane & 7) + 8 * (lane >> 4);
            load_matrices(b, k + swizzled<D>(key, 2 * step + ((lane >> 3) & 1)));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma<T>(&s[m][8 * pair], a[m], b[0], b[1]);
                mma<T>(&s[m][8 * pair + 4], a[m], b[2], b[3]);
            }
        }
    }
}

// o += p v; the probabilities go from accumulator to operand layout by packing alone.
template <typename T, int D>
__device__ __forceinline__ void accumulate_tile(float (&o)[2][D / 2],
                                                const float (&p)[2][KEY_TILE / 2], uint32_t v) {
    const int lane = lane_index();
#pragma unroll
    for (int step = 0; step < KEY_TILE / 16; ++step) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[m][i] = pack<T>(p[m][8 * step + 2 * i], p[m][8 * step + 2 * i + 1]);
#pragma unroll
        for (int pair = 0; pair < D / 16; ++pair) {
            uint32_t b[4];
            const int key = 16 * step + (lane & 15);
            load_matrices_trans(b, v + swizzled<D>(key, 2 * pair + (lane >> 4)));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma<T>(&o[m][8 * pair], a[m], b[0], b[1]);
                mma<T>(&o[m][8 * pair + 4], a[m], b[2], b[3]);
            }
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void
attend(T *out, const T *qkv, const T *cache, const uint32_t *cu_seqlens,
       const uint32_t *context_lens, const uint32_t *block_table, uint32_t max_pages,
       uint32_t num_seqs, uint32_t num_heads, uint32_t num_kv_heads, uint32_t flags) {
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t q_tile = uint32_t(__cvta_generic_to_shared(shared));
    const uint32_t k_tile = q_tile + ROW_TILE * D * 2, v_tile = k_tile + KEY_TILE * D * 2;
    const Owner owner = find_owner(cu_seqlens, context_lens, num_seqs, flags, 1, blockIdx.x);
    if (owner.sequence < 0)
        return;
    // the last rows see the most keys: the heaviest tiles of a head start first
    const Tile tile =
        make_tile(cu_seqlens, context_lens, owner, owner.tiles - 1 - owner.within, blockIdx.y);

    const int head = tile.head, kv_head = head * num_kv_heads / num_heads;
    const size_t qkv_stride = size_t(num_heads + 2 * num_kv_heads) * D;
    const uint32_t page_stride = 2 * num_kv_heads * PAGE_TOKENS * D;
    const uint32_t *pages = block_table + size_t(tile.sequence) * max_pages;
    const T *keys = cache + size_t(kv_head) * PAGE_TOKENS * D;
    const T *values = keys + page_stride / 2;
    const float scale_log2 = score_scale_log2<D>();

    int block = ceil_div(tile.num_keys, KEY_TILE) - 1;
    copy_queries<T, D>(q_tile, qkv + tile.first_row * qkv_stride + size_t(head) * D, qkv_stride,
                       tile.num_rows);
    copy_keys<T, D>(k_tile, keys, page_stride, pages, block * KEY_TILE, tile.context);
    commit_copies();

    const int warp_row = threadIdx.x / 32 * WARP_ROWS, lane_row = lane_index() / 4;
    const uint32_t q_warp = q_tile + warp_row * D * 2;
    float o[2][D / 2];
#pragma unroll
    for (int i = 0; i < D; ++i)
        o[i / (D / 2)][i % (D / 2)] = 0.0f;
    RowState rows[2] = {empty_rows(), empty_rows()};

    for (; block >= 0; --block) {
        const int first_key = block * KEY_TILE;
        wait_copies<0>();
        __syncthreads(); // keys are here, and everyone is done with the last values
        copy_keys<T, D>(v_tile, values, page_stride, pages, first_key, tile.context);
        commit_copies();
        float s[2][KEY_TILE / 2], rescale[2];
        score_tile<T, D>(s, q_warp, k_tile);
        wait_copies<0>();
        __syncthreads(); // values are here, and everyone is done with the keys
        if (block > 0)
            copy_keys<T, D>(k_tile, keys, page_stride, pages, first_key - KEY_TILE, tile.context);
        commit_copies();
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const int offset = tile.position + warp_row + 16 * m + lane_row - first_key;
            if (tile.position + warp_row + 16 * m - first_key < KEY_TILE)
                mask_scores<KEY_TILE>(s[m], offset);
            softmax_step<KEY_TILE>(s[m], rows[m], scale_log2, rescale);
            if (__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f))
                rescale_rows<D>(o[m], rescale);
        }
        accumulate_tile<T, D>(o, s, v_tile);
    }

    const size_t out_stride = size_t(num_heads) * D;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const int row = warp_row + 16 * m + lane_row;
        store_rows<T, D>(o[m], rows[m],
                         out + (tile.first_row + row) * out_stride + size_t(head) * D,
                         8 * out_stride, tile.num_rows - row);
    }
}

} // namespace qwen::prefill::any_gpu

#define PREFILL_ATTENTION(NAME, T, D)                                                              \
    extern "C" __global__ void __launch_bounds__(qwen::prefill::any_gpu::THREADS, 2)               \
        NAME(T *out, const T *qkv, const T *cache, const uint32_t *cu_seqlens,                     \
             const uint32_t *context_lens, const uint32_t *block_table, uint32_t max_pages,        \
             uint32_t num_seqs, uint32_t num_heads, uint32_t num_kv_heads, uint32_t flags) {       \
        qwen::wait_for_predecessor();                                                              \
        qwen::prefill::any_gpu::attend<T, D>(out, qkv, cache, cu_seqlens, context_lens,            \
                                             block_table, max_pages, num_seqs, num_heads,          \
                                             num_kv_heads, flags);                                 \
    }

PREFILL_ATTENTION(prefill_attention_bf16_128, qwen::bf16, 128)
PREFILL_ATTENTION(prefill_attention_bf16_64, qwen::bf16, 64)
PREFILL_ATTENTION(prefill_attention_f16_128, qwen::f16, 128)
PREFILL_ATTENTION(prefill_attention_f16_64, qwen::f16, 64)
