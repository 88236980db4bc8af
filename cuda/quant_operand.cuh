// Operands of the quantised linear's matrix instructions: codes to f16 in registers, x in shared
// memory. No kernels here; quant_linear.cu has the story.
#pragma once

#include "hopper.cuh"
#include "quant_layout.cuh"
#include "skinny_ring.cuh"

#include <utility>

namespace quant {

constexpr uint32_t WARPGROUPS = 4; // that multiply
constexpr uint32_t NUM_CONSUMERS = WARPGROUPS * 128,
                   NUM_THREADS = NUM_CONSUMERS + 128; // and two feeders
constexpr uint32_t MAX_STAGES = 8;
// Chunks of a warpgroup in a stage of weights, k of a stage. NT below: rows of x / 8.
template <int BITS> constexpr uint32_t group_chunks = 8 / BITS;
template <int BITS> constexpr uint32_t slice_k = WARPGROUPS * group_chunks<BITS> * CHUNK_K;
// Tiles that share one pass over x, at most.
template <int NT> constexpr uint32_t group_tiles = 6 / NT;
// Slices of x on their way or in use; bytes of x, of the warpgroups' sums, of the ring of weights.
template <int BITS, int NT> constexpr uint32_t x_slices = (NT == 1 ? 3 : 2) * BITS / 4;
template <int NT> constexpr uint32_t x_bytes = NT == 1 ? 49152 : 65536;
template <int NT> constexpr uint32_t ring_bytes = (NT == 1 ? 5 : 4) * 8 * 4224;
template <int NT>
constexpr uint32_t sums_bytes = group_tiles<NT> * NT * WARPGROUPS * 2048; // in place of x
template <int NT>
constexpr uint32_t shared_bytes = x_bytes<NT> + ring_bytes<NT> + (4 * MAX_STAGES + 1) * 8;
static_assert(sums_bytes<1> <= x_bytes<1> && sums_bytes<2> <= x_bytes<2>, "they have room");
static_assert(shared_bytes<1> == 218376 && shared_bytes<2> == 200968, "the launch contract");
static_assert(shared_bytes<1> <= 227 * 1024 && shared_bytes<2> <= 227 * 1024,
              "what a block may have");

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using skinny::load_shared;

__device__ inline uint32_t load_word(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

// c (+)= a b: 64 rows of weights x 8 NT rows of x x 16 k; a in registers, b in shared memory.
template <bool ACCUMULATE>
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %9, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, %8, accumulate, 1, 1, 0;\n}"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(ACCUMULATE)));
}
template <bool ACCUMULATE>
__device__ inline void mma(float (&c)[8], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, accumulate, 1, 1, 0;\n}"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
          "+f"(c[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(ACCUMULATE)));
}

__device__ inline uint32_t bits(__half2 v) { return *reinterpret_cast<uint32_t *>(&v); }
__device__ inline __half2 half2_of(uint32_t v) { return *reinterpret_cast<__half2 *>(&v); }

// (a & b) | c in one instruction.
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// The zero of a row, as the conversions want it, twice: 1024 + zero, and -(64 + zero).
struct Zero {
    __half2 high, low;
    __device__ explicit Zero(__half zero) {
        high = __hadd2(half2_of(0x64006400u), __half2half2(zero));
        low = __hsub2(half2_of(0xd400d400u), __half2half2(zero));
    }
    __device__ Zero(uint32_t high, uint32_t low) : high(half2_of(high)), low(half2_of(low)) {}
    // Half of the codes' range: 8 or 128.
    template <int BITS> __device__ static Zero middle() {
        return BITS == 4 ? Zero(0x64086408u, 0xd480d480u) : Zero(0x64806480u, 0xda00da00u);
    }
};

// A lane's codes of a chunk, and what the instruction of 16 k number `step` takes of them: code -
// zero, exact. 0x6400 is 1024, whose last bits count units; four bits higher they count sixteens.
template <int BITS> struct Codes;

template <> struct Codes<4> {
    static constexpr int LOADS = 2;
    uint4 v[LOADS]; // of 64 k each: {32 k: rows g, g + 8}, {the next 32 k: the same}

    // Two codes of even steps, or of odd ones.
    template <int STEP> __device__ static uint32_t two(uint32_t word, const Zero &zero) {
        constexpr uint32_t BIG = 0x64006400u;
        if (STEP % 2 == 0)
            return bits(__hsub2(half2_of(and_or(word, 0x000f000fu, BIG)), zero.high));
        return bits(
            __hfma2(half2_of(and_or(word, 0x00f000f0u, BIG)), half2_of(0x2c002c00u), zero.low));
    }
    template <int STEP> __device__ void operand(uint32_t (&a)[4], const Zero (&zero)[2]) const {
        const uint4 &four = v[STEP / 4];
        const uint32_t low = STEP / 2 % 2 == 0 ? four.x : four.z,
                       high = STEP / 2 % 2 == 0 ? four.y : four.w;
        a[0] = two<STEP>(low, zero[0]), a[1] = two<STEP>(high, zero[1]);
        a[2] = two<STEP>(low >> 8, zero[0]), a[3] = two<STEP>(high >> 8, zero[1]);
    }
};

template <> struct Codes<8> {
    static constexpr int LOADS = 4;
    uint4 v[LOADS]; // of 32 k each: {16 k: rows g, g + 8}, {the next 16 k: the same}

    template <int PLACES> __device__ static uint32_t two(uint32_t word, const Zero &zero) {
        return bits(__hsub2(half2_of(__byte_perm(word, 0x64646464u, PLACES)), zero.high));
    }
    template <int STEP> __device__ void operand(uint32_t (&a)[4], const Zero (&zero)[2]) const {
        const uint4 &four = v[STEP / 2];
        const uint32_t low = STEP % 2 == 0 ? four.x : four.z,
                       high = STEP % 2 == 0 ? four.y : four.w;
        a[0] = two<0x5140>(low, zero[0]), a[1] = two<0x5140>(high, zero[1]);
        a[2] = two<0x5342>(low, zero[0]), a[3] = two<0x5342>(high, zero[1]);
    }
};

// A slice of x in shared memory, as the matrix instruction reads it: in blocks of 64 k x 8 rows
// with rows of 128 bytes, their sixteenths in swizzled order.
template <int BITS, int NT> struct XSlice {
    static constexpr uint32_t BLOCK_BYTES = 1024, BLOCKS = slice_k<BITS> / 64;
    static constexpr uint32_t CHUNKS = slice_k<BITS> / CHUNK_K;
    static constexpr uint32_t VALUE_BYTES = BLOCKS * NT * BLOCK_BYTES;

    // What the instruction of step `step` of a chunk reads, of a slice at `address`. All of shared
    // memory is in the low word of a descriptor.
    __device__ static uint64_t descriptor(uint32_t address, uint32_t chunk, uint32_t step) {
        const uint32_t at = address + chunk * 2 * NT * BLOCK_BYTES;
        const uint64_t first = qwen::hopper::descriptor(at, 16);
        const uint32_t low = uint32_t(first) + (step / 4 * NT * BLOCK_BYTES + step % 4 * 32) / 16;
        return first >> 32 << 32 | low;
    }
};

#endif

} // namespace quant
