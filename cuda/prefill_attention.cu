// Causal attention of many new rows a sequence over the paged KV cache (prefill, chunked or not).
//
//   out[row, h] = sum_key p[key] v[key, g] / sum_key p[key],   p[key] = exp(q[row, h] . k[key, g] / sqrt(D))
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
// block 128 threads; dynamic shared memory 256 D bytes * 2 = 512 D (65,536 at D = 128, 32,768 at
// D = 64; above 48 KiB the function attribute has to be raised). sm_80 and later.
//
//   grid.x, one sequence after the other:   | tiles of seq 0: last rows ... first rows | seq 1 | ..
//   block = 128 query rows x all keys they see, right to left in tiles of 64
//   warp = 32 query rows (two m16 tiles) x 64 keys: scores, softmax and output stay in registers
//
// FLOPs: 4 D sum over rows and heads of (position + 1). Bytes: D elements * 2 of queries and
// output a row and head; 4 D bytes a key, head and row tile, mostly from the L2.
// Accumulates in f32; probabilities are rounded to T for the second product. No atomics.
//
// Roofline: mma.sync runs at about 62 % of the wgmma rate. Measured on an H200, 2026-11-24, bf16,
// 64 heads of 128, n = 2048 / 6144 / 14336 / 30720: 216 / 282 / 304 / 314 TFLOP/s (PyTorch's
// FlashAttention-2 in the same job: 227 / 315 / 337 / 349; cuDNN 374 / 581 / 650 / 614).
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

namespace prefill {

constexpr int PAGE_TOKENS = 16;  // tokens of one cache page
constexpr int ROW_TILE = 128;    // query rows of one block
constexpr uint32_t FLAG_SINGLE_ROWS = 1;  // also do sequences of exactly one new row

// One row tile of one sequence.
struct Tile {
    int first_row;   // row of qkv and out where the tile starts
    int num_rows;    // rows of the tile that exist, 1..ROW_TILE
    int position;    // position of the first row in its sequence
    int sequence;    // -1: no such tile
    int num_keys;    // keys that the last row of the tile sees
    int context;     // tokens of the sequence in the cache
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ int lane_index() { return threadIdx.x & 31; }

// New rows of sequence s that this kernel has to do.
__device__ __forceinline__ int new_rows(const uint32_t *cu_seqlens, const uint32_t *context_lens,
                                        int s, uint32_t flags) {
    const int rows = int(cu_seqlens[s + 1]) - int(cu_seqlens[s]);
    const bool skip = context_lens[s] == 0 || (rows == 1 && !(flags & FLAG_SINGLE_ROWS));
    return skip ? 0 : rows;
}

// The sequence that a unit of work belongs to.
struct Owner {
    int sequence;  // -1: no sequence is that far
    int within;    // the unit's number within the sequence
    int rows, tiles;
};

// Who owns a unit of work, where each sequence has units_per_tile units a row tile. All 32 lanes
// of a warp call it together: each looks at one sequence of 32 and a prefix sum places it.
__device__ __forceinline__ Owner find_owner(const uint32_t *cu_seqlens,
                                            const uint32_t *context_lens, int num_seqs,
                                            uint32_t flags, int units_per_tile, int unit) {
    int before = 0;
    for (int base = 0; base < num_seqs; base += 32) {
        const int s = base + lane_index();
        const int rows = s < num_seqs ? new_rows(cu_seqlens, context_lens, s, flags) : 0;
        const int units = ceil_div(rows, ROW_TILE) * units_per_tile;
        int end = units;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(~0u, end, step);
            if (lane_index() >= step) end += other;
        }
        end += before;
        const unsigned hit = __ballot_sync(~0u, unit >= end - units && unit < end);
        before = __shfl_sync(~0u, end, 31);
        if (!hit) continue;
        const int lane = __ffs(hit) - 1;
        const int total = __shfl_sync(~0u, rows, lane);
        return Owner{base + lane, unit - __shfl_sync(~0u, end - units, lane), total,
                     ceil_div(total, ROW_TILE)};
    }
    return Owner{-1, 0, 0, 0};
}

__device__ __forceinline__ Tile make_tile(const uint32_t *cu_seqlens, const uint32_t *context_lens,
                                          const Owner &owner, int row_tile) {
    const int row = row_tile * ROW_TILE;
    Tile tile;
    tile.sequence = owner.sequence;
    tile.first_row = int(cu_seqlens[owner.sequence]) + row;
    tile.num_rows = min(ROW_TILE, owner.rows - row);
    tile.context = int(context_lens[owner.sequence]);
    tile.position = tile.context - owner.rows + row;
    tile.num_keys = tile.position + tile.num_rows;
    return tile;
}

// ---- arithmetic shared by both implementations ------------------------------------------------

// log2(e) / sqrt(D): raw scores times this are exponents of two.
template <int D> __device__ __forceinline__ constexpr float score_scale_log2() {
    static_assert(D == 64 || D == 128, "head dimensions of the family");
    return 1.4426950408889634f / (D == 128 ? 11.313708498984761f : 8.0f);
}

template <typename T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
template <> __device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// 2^x in one instruction; exp2(-inf) is exactly 0, which is what makes masked keys vanish.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The running softmax of the two rows (r and r + 8) that a thread holds parts of.
struct RowState {
    float max[2];  // largest raw score so far, over the quad
    float sum[2];  // sum of 2^((score - max) * scale), this thread's columns only
};

__device__ __forceinline__ RowState empty_rows() {
    return RowState{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
}

// Scores of N keys in the accumulator layout: s[4 j + e] is key 8 j + 2 (lane % 4) + (e & 1) of
// row r + 8 (e >> 1). Keys above the row's own position become -inf. `offset` is the position of
// row r less the first key of the tile.
template <int N> __device__ __forceinline__ void mask_scores(float (&s)[N / 2], int offset) {
    const int column = 2 * (lane_index() & 3);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        const int key = 8 * (i / 4) + column + (i & 1);
        if (key > offset + 8 * ((i >> 1) & 1)) s[i] = -INFINITY;
    }
}

// Turns raw scores into probabilities relative to the running maximum, updates sum and maximum
// and returns in `rescale` the factors for what was accumulated before. A row with no visible key
// in the tile keeps its state exactly, so the result of a row depends on its own keys only and
// not on how the rows were cut into tiles.
template <int N>
__device__ __forceinline__ void softmax_step(float (&s)[N / 2], RowState &state, float scale_log2,
                                             float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = state.max[half];
#pragma unroll
        for (int i = 2 * half; i < N / 2; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float shift = top == -INFINITY ? 0.0f : top * scale_log2;
        rescale[half] = exp2_approx(__fmaf_rn(state.max[half], scale_log2, -shift));
        state.max[half] = top;
        float sum = 0.0f;
#pragma unroll
        for (int i = 2 * half; i < N / 2; i += 4) {
            s[i] = exp2_approx(__fmaf_rn(s[i], scale_log2, -shift));
            s[i + 1] = exp2_approx(__fmaf_rn(s[i + 1], scale_log2, -shift));
            sum += s[i] + s[i + 1];
        }
        state.sum[half] = __fmaf_rn(state.sum[half], rescale[half], sum);
    }
}

template <int D>
__device__ __forceinline__ void rescale_rows(float (&o)[D / 2], const float (&rescale)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] *= rescale[(i >> 1) & 1];
}

// 4 x 4 words across the four lanes of a quad: word k of lane t becomes word t of lane k.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = lane_index() & step;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int low = step == 1 ? 2 * j : j, high = low + step;
            const uint32_t got = __shfl_xor_sync(~0u, upper ? w[low] : w[high], step);
            (upper ? w[low] : w[high]) = got;
        }
    }
}

// Divides by the softmax sum and writes row r (and r + 8) where they exist. The quad transposes
// its words first so that each lane stores 16 bytes and a quad 64 contiguous ones.
template <typename T, int D>
__device__ __forceinline__ void store_rows(const float (&o)[D / 2], const RowState &state, T *row,
                                           size_t stride8, int rows_left) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = state.sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int block = 0; block < D / 32; ++block) {
            uint32_t words[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int i = 4 * (4 * block + j) + 2 * half;
                words[j] = pack<T>(o[i] * inverse, o[i + 1] * inverse);
            }
            transpose_quad(words);
            T *target = row + half * stride8 + 32 * block + 8 * (lane_index() & 3);
            if (8 * half < rows_left)
                *reinterpret_cast<uint4 *>(target) =
                    make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// ---- mma.sync and cp.async (sm_80 and later) --------------------------------------------------

namespace warp_mma {

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
    if constexpr (sizeof(T) == 2 && std::is_same<T, __half>::value)
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

// The tile's query rows; rows past its end are zero.
template <typename T, int D>
__device__ __forceinline__ void copy_queries(uint32_t shared, const T *q, size_t row_stride,
                                             int num_rows) {
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < ROW_TILE * CHUNKS / THREADS; ++i) {
        const int row = (i * THREADS + threadIdx.x) / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const bool valid = row < num_rows;
        copy16(shared + swizzled<D>(row, chunk), q + (valid ? row : 0) * row_stride + chunk * 8,
               valid);
    }
}

// Keys (or values) first_key .. first_key + KEY_TILE of one head, page by page; those past the
// context are zero. `heads` points at the head's slice in page 0.
template <typename T, int D>
__device__ __forceinline__ void copy_keys(uint32_t shared, const T *heads, uint32_t page_stride,
                                          const uint32_t *pages, int first_key, int context) {
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < KEY_TILE * CHUNKS / THREADS; ++i) {
        const int row = (i * THREADS + threadIdx.x) / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const int key = first_key + row;
        const bool valid = key < context;
        const uint32_t page = valid ? pages[key / PAGE_TOKENS] : 0;
        const T *source = heads + (key % PAGE_TOKENS) * D + chunk * 8;
        copy16(shared + swizzled<D>(row, chunk), source + uint64_t(page) * page_stride, valid);
    }
}

// s = q k^T for the warp's 32 rows and the tile's keys, raw scores.
template <typename T, int D>
__device__ __forceinline__ void score_tile(float (&s)[2][KEY_TILE / 2], uint32_t q, uint32_t k) {
    const int lane = lane_index();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < KEY_TILE / 2; ++i) s[m][i] = 0.0f;
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
    if (owner.sequence < 0) return;
    // the last rows see the most keys: the heaviest tiles of a head start first
    const Tile tile =
        make_tile(cu_seqlens, context_lens, owner, owner.tiles - 1 - owner.within);

    const int head = blockIdx.y, kv_head = head * num_kv_heads / num_heads;
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
    for (int i = 0; i < D; ++i) o[i / (D / 2)][i % (D / 2)] = 0.0f;
    RowState rows[2] = {empty_rows(), empty_rows()};

    for (; block >= 0; --block) {
        const int first_key = block * KEY_TILE;
        wait_copies<0>();
        __syncthreads();  // keys are here, and everyone is done with the last values
        copy_keys<T, D>(v_tile, values, page_stride, pages, first_key, tile.context);
        commit_copies();
        float s[2][KEY_TILE / 2], rescale[2];
        score_tile<T, D>(s, q_warp, k_tile);
        wait_copies<0>();
        __syncthreads();  // values are here, and everyone is done with the keys
        if (block > 0)
            copy_keys<T, D>(k_tile, keys, page_stride, pages, first_key - KEY_TILE, tile.context);
        commit_copies();
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const int offset = tile.position + warp_row + 16 * m + lane_row - first_key;
            if (tile.position + warp_row + 16 * m - first_key < KEY_TILE)
                mask_scores<KEY_TILE>(s[m], offset);
            softmax_step<KEY_TILE>(s[m], rows[m], scale_log2, rescale);
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

}  // namespace warp_mma
}  // namespace prefill

#define PREFILL_ATTENTION(NAME, T, D)                                                              \
    extern "C" __global__ void __launch_bounds__(prefill::warp_mma::THREADS, 2) NAME(              \
        T *out, const T *qkv, const T *cache, const uint32_t *cu_seqlens,                          \
        const uint32_t *context_lens, const uint32_t *block_table, uint32_t max_pages,             \
        uint32_t num_seqs, uint32_t num_heads, uint32_t num_kv_heads, uint32_t flags) {            \
        prefill::warp_mma::attend<T, D>(out, qkv, cache, cu_seqlens, context_lens, block_table,    \
                                        max_pages, num_seqs, num_heads, num_kv_heads, flags);      \
    }

PREFILL_ATTENTION(prefill_attention_bf16_128, __nv_bfloat16, 128)
PREFILL_ATTENTION(prefill_attention_bf16_64, __nv_bfloat16, 64)
PREFILL_ATTENTION(prefill_attention_f16_128, __half, 128)
PREFILL_ATTENTION(prefill_attention_f16_64, __half, 64)
