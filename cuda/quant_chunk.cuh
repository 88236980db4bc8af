// A chunk of quantised weights in registers: the packed form's sizes, and codes to f16. No kernels here;
// quant_linear.cu has the layout and the story.
#pragma once

#include "skinny_ring.cuh"

namespace quant {

constexpr uint32_t TILE_ROWS = 16, CHUNK_K = 128, NUM_WARPS = 8, SLICE_K = NUM_WARPS * CHUNK_K;
// Tiles that share one pass over x, at most.
template <int MT, bool ANY> constexpr uint32_t group_tiles = (ANY ? 2 : 8) / MT;
constexpr uint32_t NUM_THREADS = (NUM_WARPS + 1) * 32;
constexpr uint32_t RING_BYTES = 168960, MAX_STAGES = 24;
constexpr uint32_t SCRATCH_PITCH = TILE_ROWS + 4, SCRATCH_TILE = 8 * SCRATCH_PITCH;
constexpr uint32_t SCRATCH_BYTES = NUM_WARPS * 8 * SCRATCH_TILE * 4;
constexpr uint32_t SHARED_BYTES = RING_BYTES + SCRATCH_BYTES + 2 * MAX_STAGES * 8;

enum Epilogue : uint32_t { BIAS = 0, STORE_F32 = 1, ADD_F32 = 2, GATE_UP = 3 };

struct Arguments {
    const void *weights, *x;
    const float *bias;
    void *out;
    uint32_t rows, n, k, epilogue;
    uint32_t groups;    // of a chunk that have a scale of their own: 1, 2 or 4
    uint32_t has_zeros; // 1: not all are the middle of the codes' range
};

// Sizes of the packed form.
template <int BITS> struct Packed {
    static constexpr uint32_t CODE_BYTES = TILE_ROWS * CHUNK_K * BITS / 8; // of a chunk
    uint32_t slices, last_chunks, scale_bytes, codes_at, unit_bytes, tile_bytes;
    __host__ __device__ Packed(uint32_t k, uint32_t groups, uint32_t has_zeros) {
        slices = (k + SLICE_K - 1) / SLICE_K;
        last_chunks = (k - (slices - 1) * SLICE_K) / CHUNK_K;
        scale_bytes = groups * TILE_ROWS * 2;
        codes_at = NUM_WARPS * scale_bytes * (1 + has_zeros);
        unit_bytes = codes_at + NUM_WARPS * CODE_BYTES;
        tile_bytes = ((slices - 1) * unit_bytes + last_bytes() + 127) / 128 * 128;
    }
    __host__ __device__ uint32_t last_bytes() const { return codes_at + last_chunks * CODE_BYTES; }
    __host__ __device__ uint32_t chunks(uint32_t slice) const {
        return slice + 1 < slices ? NUM_WARPS : last_chunks;
    }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ inline uint32_t bits(__half2 v) { return *reinterpret_cast<uint32_t *>(&v); }
__device__ inline __half2 half2_of(uint32_t v) { return *reinterpret_cast<__half2 *>(&v); }

// (a & b) | c in one instruction.
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// What makes codes of a row into numbers: the zero, as the conversions want it.
struct Zero {
    __half2 high, low; // 1024 + zero; -(64 + zero)
    __device__ Zero(uint32_t f16) {
        high = half2_of(f16 * 0x10001u);
        low = __hsub2(half2_of(0x63806380u), high); // 960 - (1024 + zero)
    }
};

// Eight codes of 4 bits to f16: 0x6400 is 1024, whose last bits count units; four bits higher they
// count sixteens.
__device__ inline uint4 widen(uint32_t codes, const Zero &zero) {
    constexpr uint32_t LOW = 0x000f000fu, HIGH = 0x00f000f0u, BIG = 0x64006400u;
    const __half2 sixteenth = half2_of(0x2c002c00u);
    uint32_t upper = codes >> 8;
    return make_uint4(bits(__hsub2(half2_of(and_or(codes, LOW, BIG)), zero.high)),
                      bits(__hfma2(half2_of(and_or(codes, HIGH, BIG)), sixteenth, zero.low)),
                      bits(__hsub2(half2_of(and_or(upper, LOW, BIG)), zero.high)),
                      bits(__hfma2(half2_of(and_or(upper, HIGH, BIG)), sixteenth, zero.low)));
}

// Eight codes of 8 bits to f16.
__device__ inline uint4 widen(uint2 codes, const Zero &zero) {
    constexpr uint32_t BIG = 0x64646464u;
    return make_uint4(bits(__hsub2(half2_of(__byte_perm(codes.x, BIG, 0x5140)), zero.high)),
                      bits(__hsub2(half2_of(__byte_perm(codes.x, BIG, 0x5342)), zero.high)),
                      bits(__hsub2(half2_of(__byte_perm(codes.y, BIG, 0x5140)), zero.high)),
                      bits(__hsub2(half2_of(__byte_perm(codes.y, BIG, 0x5342)), zero.high)));
}

// A lane's codes of a chunk: rows g and g + 8.
template <int BITS> struct Codes;

template <> struct Codes<4> {
    uint4 half[2];
    __device__ void load(uint32_t at) {
#pragma unroll
        for (int h = 0; h < 2; h++)
            half[h] = skinny::load_shared(at + h * 512);
    }
    __device__ uint4 widened(int h, int b, const Zero &zero) const {
        const uint4 &v = half[h];
        return widen(b == 0 ? v.x : b == 1 ? v.y : b == 2 ? v.z : v.w, zero);
    }
    __device__ uint32_t any() const { return half[0].x | half[1].x; }
};

template <> struct Codes<8> {
    uint4 half[2][2];
    __device__ void load(uint32_t at) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            half[i / 2][i % 2] = skinny::load_shared(at + i * 512);
    }
    __device__ uint4 widened(int h, int b, const Zero &zero) const {
        const uint4 &v = half[h][b / 2];
        return widen(b % 2 == 0 ? make_uint2(v.x, v.y) : make_uint2(v.z, v.w), zero);
    }
    __device__ uint32_t any() const {
        return half[0][0].x | half[0][1].x | half[1][0].x | half[1][1].x;
    }
};

__device__ inline uint32_t load_word(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

// A lane's part of a chunk, in registers: codes, scales and zeros of rows g (low halves) and g + 8. With
// ANY each block of 32 k has its own scale and zero, of which some may be the same.
template <int BITS, bool ANY> struct Chunk {
    static constexpr int BLOCKS = ANY ? 4 : 1;
    static constexpr uint32_t MIDDLE = BITS == 4 ? 0x64086408u : 0x64806480u; // 1024 + 8, 1024 + 128
    Codes<BITS> codes;
    uint32_t scales[BLOCKS], zeros[BLOCKS];

    // `codes_at`, `scales_at`: the lane's parts of its warp's chunk.
    __device__ void load(const Arguments &a, uint32_t codes_at, uint32_t scales_at) {
        codes.load(codes_at);
#pragma unroll
        for (uint32_t b = 0; b < BLOCKS; b++) {
            uint32_t group = scales_at + (ANY ? b * a.groups / 4 * 32 : 0);
            scales[b] = load_word(group);
            zeros[b] = MIDDLE;
            if (ANY && a.has_zeros)
                zeros[b] = load_word(group + NUM_WARPS * a.groups * 32);
        }
    }
    // Depends on every load.
    __device__ uint32_t any() const {
        uint32_t all = codes.any();
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            all |= scales[b] | (ANY ? zeros[b] : 0);
        return all;
    }
};

#endif

} // namespace quant
