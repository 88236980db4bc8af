// What the parts of the decode attention kernel share: its argument, its sizes, and the
// instructions that have no C++ name. decode_attention.cu says what the kernel is.
#pragma once

#include "common.cuh"
#include <cstddef>

// What a launch is given, by value. Every pointer is device memory, aligned to 16 bytes.
struct DecodeAttention {
    void *attended;       //   0  [rows, num_heads * D] T, out
    const void *qkv;      //   8  [rows, (num_heads + 2 * num_kv_heads) * D] T
    void *cache;          //  16  [num_pages][K, V][num_kv_heads][16][D] T, one layer, in and out
    const float *cosines; //  24  [rows, D / 2]
    const float *sines;   //  32  [rows, D / 2]
    const float *query_scale;     //  40  [rows]
    const uint32_t *cu_seqlens;   //  48  [num_seqs + 1]
    const uint32_t *context_lens; //  56  [num_seqs], 0 is padding
    const uint32_t *block_table;  //  64  [num_seqs, max_pages]
    const int32_t *slots;         //  72  [rows], -1 is padding
    void *workspace;              //  80  see workspace_bytes; zeroed once, before the first launch
    uint32_t num_seqs;            //  88
    uint32_t max_pages;           //  92
    uint32_t num_heads;           //  96
    uint32_t num_kv_heads;        // 100  divides num_heads
};

namespace decode_attention {

using qwen::from_f32;

constexpr uint32_t PAGE_TOKENS = 16;
constexpr uint32_t WARPS = 8;
constexpr uint32_t STAGES = 2; // pages on their way to each warp
constexpr uint32_t BLOCKS_PER_SM = 1;
constexpr uint32_t THREADS = 32 * WARPS;
constexpr uint32_t RING_PAGES = WARPS * STAGES;
// Pieces a warp knows of: the one it reads, and one for each page requested ahead.
constexpr uint32_t PIECES = STAGES + 1;
// With fewer pages a block than this, the warps of a block share a piece; else each has its own.
constexpr uint32_t SHARED_PIECE_PAGES = 40;
// What starting an item costs, in pages read; it only balances the warps.
constexpr uint32_t ITEM_COST = 2;
// An item is not cut this near its ends: a merge costs more than reading the pages.
constexpr uint32_t MIN_PIECE = 2;
constexpr uint32_t COUNTER_ALIGN = 128;
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;

// The sizes that follow from element type and head dimension. A lane holds 8 dimensions (16 bytes).
template <class Element, uint32_t HEAD_DIM> struct Shape {
    using T = Element;
    static constexpr uint32_t D = HEAD_DIM;
    static constexpr uint32_t ROW_LANES = D / 8;
    static constexpr uint32_t LOAD_ROWS = 32 / ROW_LANES;
    static constexpr uint32_t LOADS = PAGE_TOKENS / LOAD_ROWS;
    static constexpr uint32_t ROW_BYTES = D * sizeof(T);
    static constexpr uint32_t HALF_BYTES = PAGE_TOKENS * ROW_BYTES; // keys or values of a page-head
    static constexpr uint32_t STAGE_BYTES = 2 * HALF_BYTES;
    static constexpr uint32_t PARTIAL_FLOATS = D + 4; // sum[D], max, weight, padding to 16 bytes
    // Where 16 bytes of a token lie in a stage: the chunks of 8 tokens are shuffled against each
    // other, so that a column of 8 chunks, which is what load_matrices reads, touches all banks.
    __device__ static uint32_t chunk_offset(uint32_t token, uint32_t chunk) {
        return token * ROW_BYTES + ((chunk ^ token % 8) * 16);
    }

    static_assert(D == 64 || D == 128, "a row must fill a whole number of lanes");
    static_assert(sizeof(T) == 2 && PAGE_TOKENS == 16, "a page is one step of mma");
};

// Dynamic shared memory of a block: the rings of its warps, their partials, what they know of
// pieces.
__host__ __device__ constexpr size_t ring_bytes(size_t head_dim) {
    return RING_PAGES * 2 * PAGE_TOKENS * head_dim * 2;
}
__host__ __device__ constexpr size_t partials_bytes(size_t head_dim) {
    return WARPS * (head_dim + 4) * 4;
}
__host__ __device__ constexpr size_t piece_bytes(size_t head_dim) { return 6 * head_dim + 32; }
__host__ __device__ constexpr size_t shared_bytes(size_t head_dim) {
    return ring_bytes(head_dim) + partials_bytes(head_dim) + WARPS * PIECES * piece_bytes(head_dim);
}

// The workspace: a counter a warp of the grid, then two partials a warp.
__host__ __device__ constexpr size_t counter_bytes(size_t blocks) {
    return (blocks * WARPS * 4 + COUNTER_ALIGN - 1) / COUNTER_ALIGN * COUNTER_ALIGN;
}
__host__ __device__ constexpr size_t workspace_bytes(size_t blocks, size_t head_dim) {
    return counter_bytes(blocks) + blocks * WARPS * 2 * (head_dim + 4) * 4;
}

// Two packed elements as floats. A bfloat16 is the upper half of a float, so a shift and a mask do.
template <class T> __device__ float2 unpack_pair(uint32_t pair);
template <> __device__ inline float2 unpack_pair<__nv_bfloat16>(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
template <> __device__ inline float2 unpack_pair<__half>(uint32_t pair) {
    return __half22float2(*reinterpret_cast<__half2 *>(&pair));
}

template <class T> __device__ void unpack(uint4 packed, float (&out)[8]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_pair<T>(pairs[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

template <class T> __device__ uint32_t pack_pair(float low, float high) {
    const T pair[2] = {from_f32<T>(low), from_f32<T>(high)};
    return *reinterpret_cast<const uint16_t *>(&pair[0]) |
           uint32_t(*reinterpret_cast<const uint16_t *>(&pair[1])) << 16;
}

template <class T> __device__ uint4 pack(const float (&x)[8]) {
    return {pack_pair<T>(x[0], x[1]), pack_pair<T>(x[2], x[3]), pack_pair<T>(x[4], x[5]),
            pack_pair<T>(x[6], x[7])};
}

// exp2 in one instruction; the error of 2 ulp is far below the rounding to T. exp2(-inf) is 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline uint32_t shared_address(const void *pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

// Counts `pages` in and returns what had been counted. Release: this piece's partial is published;
// acquire: the partials of those counted before become visible to the one that completes the item.
__device__ inline uint32_t count_in(uint32_t *counter, uint32_t pages) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(pages)
                 : "memory");
    return before;
}

// 16 bytes past the registers and L1, counted in the thread's current group.
__device__ inline void copy_16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// 4 bytes, for what is not aligned to 16.
__device__ inline void copy_4(uint32_t to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8. A lane gets
// elements 2t, 2t + 1 of row g of each (g = lane / 4, t = lane % 4): what mma wants of its first
// operand.
__device__ inline uint4 load_matrices(uint32_t row) {
    uint4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                 : "r"(row)
                 : "memory");
    return m;
}

// The same, transposed: a lane gets rows 2t, 2t + 1 of column g.
__device__ inline uint4 load_matrices_transposed(uint32_t row) {
    uint4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                 : "r"(row)
                 : "memory");
    return m;
}

// sums += a (16 x 16) b (16 x 8), products exact, sums in f32. A lane holds rows g (x, z) and g + 8
// (y, w) of a, column g of b, and columns 2t, 2t + 1 of the sums in row g (0, 1) and g + 8 (2, 3).
template <class T>
__device__ void multiply(float (&sums)[4], const uint4 &a, uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply<__nv_bfloat16>(float (&sums)[4], const uint4 &a, uint32_t b0,
                                               uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply<__half>(float (&sums)[4], const uint4 &a, uint32_t b0,
                                        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Waits until at most PENDING groups of this thread are under way, then for the other lanes' parts.
template <uint32_t PENDING> __device__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
    __syncwarp();
}

} // namespace decode_attention
