// Quantised weights between their published form (src/quant.rs) and the packed one
// (quant_layout.cuh), and what surrounds a product where inputs are reordered or a bias is left over.
//
//   quant_pack_4, _8             qweight, scales, zeros -> packed                   at load
//   quant_random_4, _8           the same of random codes, those of src/backend/random.rs
//   quant_dequantise_4, _8       packed -> W[n, k] f16, rounded once                for many rows
//   quant_gather                 x[rows, inputs] f16 -> [rows, k]: column i from order[i], or 0
//   quant_add_bias_f16, _f32     out[rows, n] += bias[n] (f32), rounded once
//
// Packing: a source holds `columns` of a matrix's outputs, all of its inputs: codes [inputs * bits /
// 32, columns], scales and zeros f16 [groups, columns]. With two sources, eight rows of the packed
// matrix are the first's, the next eight the second's. `order` [k] says which input packed input i
// is (NONE: none, a code in the middle; null: i itself), `group_of` [k / unit] the group of each
// unit of 128 / groups inputs (NONE: scale 0). Rows beyond the sources' get scale 0.
//
//   grid (k / 128, tiles), 256 threads:   block (c, t) -> chunk c of tile t, by way of shared memory
//   dequantise, 128 threads:              the same, warp w -> rows 16 w .. 16 w + 15, by itself
//   gather: (rows, k / 2048), add_bias: (rows, n / 256)
//
// Bytes: packing reads and writes n k bits / 8 once from memory, each word 32 / bits times from the L1
// (or makes it as often); dequantising writes 2 n k and reads a quarter or half of that. No FLOPs worth
// counting: 20 to 40 instructions a code to pack, 6 to dequantise. 72B in Int4 has 7e10 codes: expected
// 0.1 s to pack, 45 ms to dequantise once. Not timed on a GPU yet.
// Deterministic; scale * (code - zero) is exact in f32, so that the one rounding is to f16.
//
// Ladder
//   first version: one byte a code in shared memory between the two forms, which any order of inputs
//   and any width can share.

#include "common.cuh"
#include "quant_layout.cuh"
#include "random.cuh"

using namespace qwen;

namespace quant {

constexpr uint32_t NONE = 0xffffffffu;
constexpr uint32_t PACK_THREADS = 256, DEQUANTISE_THREADS = 128;

// The one argument of the packing kernels, as src/backend/cuda/pack.rs has it.
struct PackArguments {
    void *packed;             //  0  chunk 0 of the first tile
    const uint32_t *codes[2]; //  8  of each source; null where there is one
    const f16 *scales[2];     // 24
    const f16 *zeros[2];      // 40  null: the middle
    const uint32_t *order;    // 56
    const uint32_t *group_of; // 64
    uint64_t seeds[2];        // 72  of random codes
    uint32_t columns;         // 88  of a source
    uint32_t sources;         // 92  1 or 2
    uint32_t k, groups;       // 96  packed inputs; groups of a chunk
    uint32_t has_zeros;       // 104
    uint32_t scale;           // 108 f16, of random codes
};
static_assert(sizeof(PackArguments) == 112, "as the host has it");

__host__ __device__ constexpr uint32_t middle(int bits) { return 1u << (bits - 1); }

// Which row of a tile element `at` of its 64 scales belongs to.
__device__ inline uint32_t scale_row(uint32_t at) {
    return at / 16 * 16 + at % 2 * 8 + at % 16 / 2;
}

// Where a row of the packed matrix comes from.
struct Origin {
    uint32_t source, column;
    __device__ Origin(const PackArguments &a, uint32_t row) {
        source = a.sources == 2 ? row / 8 % 2 : 0;
        column = a.sources == 2 ? row / 16 * 8 + row % 8 : row;
    }
};

// An index that is not known would copy the arguments to local memory.
template <typename T> __device__ inline T either(const T (&of)[2], uint32_t source) {
    return source == 0 ? of[0] : of[1];
}

// What was published.
struct Stored {
    static __device__ uint32_t word(const PackArguments &a, Origin from, uint32_t row) {
        return either(a.codes, from.source)[uint64_t(row) * a.columns + from.column];
    }
    static __device__ f16 scale(const PackArguments &a, Origin from, uint32_t group) {
        return either(a.scales, from.source)[uint64_t(group) * a.columns + from.column];
    }
};

// What random.rs makes: two words of 64 bits, one scale for all.
struct Random {
    static __device__ uint32_t word(const PackArguments &a, Origin from, uint32_t row) {
        const uint64_t index = uint64_t(row) * a.columns + from.column;
        const uint64_t two = random_bits(either(a.seeds, from.source), index / 2);
        return uint32_t(index % 2 == 0 ? two : two >> 32);
    }
    static __device__ f16 scale(const PackArguments &a, Origin, uint32_t) {
        return __ushort_as_half(static_cast<unsigned short>(a.scale));
    }
};

// Codes of a chunk, one byte each; rows apart by a number of words that is odd.
struct Codes {
    uint8_t of[CHUNK_K][TILE_ROWS + 4];
};

template <int BITS, typename Source>
__device__ inline uint8_t code(const PackArguments &a, uint32_t k, uint32_t row) {
    constexpr uint32_t PER_WORD = 32 / BITS;
    const uint32_t input = a.order == nullptr ? k : a.order[k];
    if (input == NONE || row >= a.columns * a.sources)
        return static_cast<uint8_t>(middle(BITS));
    const uint32_t word = Source::word(a, Origin(a, row), input / PER_WORD);
    return static_cast<uint8_t>(word >> (input % PER_WORD * BITS) & ((1u << BITS) - 1));
}

// Word `index` of a chunk's codes. Two codes for k, k + 1 are one 16-bit pair of registers' halves.
template <int BITS> __device__ inline uint32_t packed_word(const Codes &codes, uint32_t index) {
    const uint32_t h = index % 2, j = index / 2 % 2, lane = index / 4 % 32;
    const uint32_t i = index / 128 % (BITS / 2), w = index / (64 * BITS);
    const uint32_t row = 16 * w + 8 * h + lane / 4;
    const uint32_t k = 256 / BITS * i + 128 / BITS * j + 2 * (lane % 4);
    // Where the even code of each pair goes; at 4 bits the odd one is 16 bits above it.
    constexpr uint32_t NIBBLES[4] = {0, 2, 1, 3};
    uint32_t word = 0;
#pragma unroll
    for (uint32_t pair = 0; pair < 16 / BITS; pair++) {
        const uint32_t even = codes.of[k + 8 * pair][row], odd = codes.of[k + 8 * pair + 1][row];
        if (BITS == 4)
            word |= (even | odd << 16) << (4 * NIBBLES[pair]);
        else
            word |= (even | odd << 8) << (16 * pair);
    }
    return word;
}

// Scales and zeros of a chunk: `first` is its first unit.
template <int BITS, typename Source>
__device__ inline void pack_scales(const PackArguments &a, f16 *scales, f16 *zeros, uint32_t tile,
                                   uint32_t first) {
    for (uint32_t i = threadIdx.x; i < a.groups * TILE_ROWS; i += PACK_THREADS) {
        const uint32_t row = tile * TILE_ROWS + scale_row(i % TILE_ROWS);
        const uint32_t group = a.group_of[first + i / TILE_ROWS];
        const bool is_there = group != NONE && row < a.columns * a.sources;
        const Origin from(a, row);
        scales[i] = is_there ? Source::scale(a, from, group) : f16(0.0f);
        if (a.has_zeros == 0)
            continue;
        const f16 *own = either(a.zeros, from.source);
        zeros[i] = is_there && own != nullptr ? own[uint64_t(group) * a.columns + from.column]
                                              : f16(float(middle(BITS)));
    }
}

template <int BITS, typename Source> __device__ inline void pack(const PackArguments &a) {
    __shared__ Codes codes;
    wait_for_predecessor();
    release_successor();
    const uint32_t chunk = blockIdx.x, tile = blockIdx.y;
    const Packed packed(BITS, a.k, a.groups, a.has_zeros);
    char *to = static_cast<char *>(a.packed) +
               (uint64_t(tile) * packed.chunks + chunk) * packed.chunk_bytes;
    for (uint32_t i = threadIdx.x; i < CHUNK_K * TILE_ROWS; i += PACK_THREADS) {
        const uint32_t k = i / TILE_ROWS, row = i % TILE_ROWS;
        codes.of[k][row] =
            code<BITS, Source>(a, chunk * CHUNK_K + k, tile * TILE_ROWS + row);
    }
    __syncthreads();
    uint32_t *words = reinterpret_cast<uint32_t *>(to);
    for (uint32_t i = threadIdx.x; i < packed.code_bytes / 4; i += PACK_THREADS)
        words[i] = packed_word<BITS>(codes, i);
    f16 *scales = reinterpret_cast<f16 *>(to + packed.code_bytes);
    pack_scales<BITS, Source>(a, scales, scales + packed.scale_bytes / 2, tile, chunk * a.groups);
}

// A warp's 16 rows of W on their way out, each 8 elements longer, so that no two of a store's
// pieces share a bank.
struct Rows {
    alignas(16) f16 of[16][CHUNK_K + 8];
};

// Codes below 2^23 as the low bits of a float: less 2^23 + zero, it is code - zero, exactly.
__device__ inline float centred(uint32_t code, float base) {
    return __uint_as_float(0x4b000000u | code) - base;
}

// Eight codes (or four) of row `row` from `k` on, which share a scale.
template <int BITS>
__device__ inline void unpack(Rows &rows, uint32_t word, uint32_t row, uint32_t k, float scale,
                              float base) {
    constexpr uint32_t MASK = (1u << BITS) - 1, NIBBLES[4] = {0, 2, 1, 3};
#pragma unroll
    for (uint32_t pair = 0; pair < 16 / BITS; pair++) {
        const uint32_t at = BITS == 4 ? 4 * NIBBLES[pair] : 16 * pair;
        const uint32_t even = word >> at & MASK, odd = word >> (at + (BITS == 4 ? 16 : 8)) & MASK;
        *reinterpret_cast<__half2 *>(&rows.of[row][k + 8 * pair]) =
            __floats2half2_rn(scale * centred(even, base), scale * centred(odd, base));
    }
}

// The rows of a warp out of a chunk.
template <int BITS>
__device__ inline void unpack_rows(Rows &rows, const char *chunk, const Packed &packed,
                                   uint32_t groups, uint32_t has_zeros) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint4 *codes = reinterpret_cast<const uint4 *>(chunk) + warp * (BITS / 2) * 32;
    const f16 *scales = reinterpret_cast<const f16 *>(chunk + packed.code_bytes);
    const f16 *zeros = scales + packed.scale_bytes / 2;
#pragma unroll
    for (uint32_t i = 0; i < BITS / 2; i++) {
        const uint4 four = codes[i * 32 + lane];
        const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (uint32_t part = 0; part < 4; part++) {
            const uint32_t h = part % 2, k = 256 / BITS * i + 128 / BITS * (part / 2);
            const uint32_t at = k * groups / CHUNK_K * TILE_ROWS + 16 * warp + 2 * (lane / 4) + h;
            const float zero = has_zeros ? __half2float(zeros[at]) : float(middle(BITS));
            unpack<BITS>(rows, words[part], 8 * h + lane / 4, k + 2 * (lane % 4),
                         __half2float(scales[at]), 8388608.0f + zero);
        }
    }
}

template <int BITS>
__device__ inline void dequantise(f16 *out, const void *weights, uint32_t n, uint32_t k,
                                  uint32_t groups, uint32_t has_zeros) {
    __shared__ Rows rows[DEQUANTISE_THREADS / 32];
    wait_for_predecessor();
    release_successor();
    const uint32_t chunk = blockIdx.x, tile = blockIdx.y;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Packed packed(BITS, k, groups, has_zeros);
    const char *from = static_cast<const char *>(weights) +
                       (uint64_t(tile) * packed.chunks + chunk) * packed.chunk_bytes;
    unpack_rows<BITS>(rows[warp], from, packed, groups, has_zeros);
    __syncwarp();
    // 16 bytes a lane: half a warp writes a row's 256.
    for (uint32_t i = lane; i < 16 * CHUNK_K / 8; i += 32) {
        const uint32_t own = i / (CHUNK_K / 8), at = i % (CHUNK_K / 8) * 8;
        const uint32_t row = tile * TILE_ROWS + 16 * warp + own;
        if (row < n)
            *reinterpret_cast<Vec8<f16> *>(out + uint64_t(row) * k + chunk * CHUNK_K + at) =
                *reinterpret_cast<const Vec8<f16> *>(&rows[warp].of[own][at]);
    }
}

template <typename T>
__device__ inline void add_bias(T *out, const float *bias, uint32_t n) {
    wait_for_predecessor();
    release_successor();
    const uint32_t at = blockIdx.y * 256 + threadIdx.x;
    if (at < n) {
        T &to = out[uint64_t(blockIdx.x) * n + at];
        to = T(float(to) + bias[at]);
    }
}

} // namespace quant

using namespace quant;

extern "C" {

__global__ void __launch_bounds__(PACK_THREADS) quant_pack_4(PackArguments a) {
    pack<4, Stored>(a);
}

__global__ void __launch_bounds__(PACK_THREADS) quant_pack_8(PackArguments a) {
    pack<8, Stored>(a);
}

__global__ void __launch_bounds__(PACK_THREADS) quant_random_4(PackArguments a) {
    pack<4, Random>(a);
}

__global__ void __launch_bounds__(PACK_THREADS) quant_random_8(PackArguments a) {
    pack<8, Random>(a);
}

__global__ void __launch_bounds__(DEQUANTISE_THREADS)
    quant_dequantise_4(f16 *out, const void *weights, uint32_t n, uint32_t k, uint32_t groups,
                       uint32_t has_zeros) {
    dequantise<4>(out, weights, n, k, groups, has_zeros);
}

__global__ void __launch_bounds__(DEQUANTISE_THREADS)
    quant_dequantise_8(f16 *out, const void *weights, uint32_t n, uint32_t k, uint32_t groups,
                       uint32_t has_zeros) {
    dequantise<8>(out, weights, n, k, groups, has_zeros);
}

__global__ void __launch_bounds__(256)
    quant_gather(f16 *out, const f16 *x, const uint32_t *order, uint32_t inputs, uint32_t k) {
    wait_for_predecessor();
    release_successor();
    const uint32_t at = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (at >= k)
        return;
    const f16 *row = x + uint64_t(blockIdx.x) * inputs;
    Vec8<f16> eight;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        eight.at[i] = order[at + i] == NONE ? f16(0.0f) : row[order[at + i]];
    *reinterpret_cast<Vec8<f16> *>(out + uint64_t(blockIdx.x) * k + at) = eight;
}

__global__ void __launch_bounds__(256) quant_add_bias_f16(f16 *out, const float *bias, uint32_t n) {
    add_bias(out, bias, n);
}

__global__ void __launch_bounds__(256)
    quant_add_bias_f32(float *out, const float *bias, uint32_t n) {
    add_bias(out, bias, n);
}
}
