// The products of the quantised linear: a warp's part of a stage of weights times its part of a
// slice of x. No kernels here; quant_linear.cu has the story.
#pragma once

#include "quant_operand.cuh"

#include <utility>

namespace quant {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// What a warp multiplies by: its part of a slice of x.
template <int BITS, int NT, bool ANY> struct Operand {
    static constexpr int BLOCKS = part_k<BITS> / 32; // of two steps
    // It stays in registers for all tiles of a group where it has room.
    static constexpr bool STAYS = NT == 1;
    uint32_t x[2];
    uint32_t b[STAYS ? BLOCKS : 1][NT][4];
    float sums[ANY ? 1 : NT][4]; // of all blocks, see `sum`

    __device__ Operand(uint32_t slice, uint32_t part, uint32_t lane_offset) {
        slice += part * BLOCKS / 2 * XSlice<BITS, NT>::BOX_BYTES;
        x[0] = slice + lane_offset, x[1] = slice + (lane_offset ^ 64);
        if constexpr (STAYS)
#pragma unroll
            for (int i = 0; i < BLOCKS; i++)
                fetch(b[i], i);
    }
    __device__ Operand() {}
    // Sums of x, which `Part` begins with.
    __device__ void add_up() {
        if constexpr (!ANY) {
            // A chain for each block: that is faster than one of them all.
            float part[BLOCKS][NT][4];
#pragma unroll
            for (int i = 0; i < BLOCKS; i++)
                zero(part[i]), sum(part[i], i);
#pragma unroll
            for (int i = 0; i < NT * 4; i++) {
                sums[i / 4][i % 4] = part[0][i / 4][i % 4] + part[1][i / 4][i % 4];
                if constexpr (BLOCKS == 4)
                    sums[i / 4][i % 4] += part[2][i / 4][i % 4] + part[3][i / 4][i % 4];
            }
        }
    }
    __device__ static void zero(float (&to)[NT][4]) {
#pragma unroll
        for (int i = 0; i < NT * 4; i++)
            to[i / 4][i % 4] = 0;
    }
    __device__ void fetch(uint32_t (&to)[NT][4], int block) const {
#pragma unroll
        for (int rows = 0; rows < NT; rows++)
            XSlice<BITS, NT>::load(to[rows], x, block, rows);
    }
    __device__ void block(uint32_t (&to)[NT][4], int i) const {
        if constexpr (STAYS) {
#pragma unroll
            for (int j = 0; j < NT * 4; j++)
                to[j / 4][j % 4] = b[i][j / 4][j % 4];
        } else {
            fetch(to, i);
        }
    }
    // Adds the sums of a block's x, times -1, or the zero if all have the same, in UNITs: where the
    // products of any 16 rows of W are.
    __device__ void sum(float (&to)[NT][4], int i) const {
        constexpr uint32_t ONE = 0x80008000u | (ANY ? 1 : Codes<BITS>::MIDDLE) * 0x10001u;
        constexpr uint32_t ONES[4] = {ONE, ONE, ONE, ONE};
        uint32_t b[NT][4];
        block(b, i);
#pragma unroll
        for (int rows = 0; rows < NT; rows++) {
            mma(to[rows], ONES, b[rows][0], b[rows][1], to[rows]);
            mma(to[rows], ONES, b[rows][2], b[rows][3], to[rows]);
        }
    }
};

// Some blocks of 16 rows of a warp's part of a stage.
template <int BITS, int NT, bool ANY> struct Part {
    using X = Operand<BITS, NT, ANY>;
    static constexpr uint32_t BLOCKS = 4;                      // of a tile
    static constexpr uint32_t COUNT = NT == 1 && !ANY ? 4 : 2; // what registers have room for
    static constexpr int RUNS = ANY ? X::BLOCKS : 1;           // that may have scales of their own
    static constexpr int RUN_BLOCKS = X::BLOCKS / RUNS;
    using Products = float[COUNT][NT][4];
    Codes<BITS> codes[COUNT];
    uint32_t scales[COUNT][RUNS], zeros[COUNT][ANY ? RUNS : 1]; // f16, of rows g and g + 8

    // From block `block` of the chunk at `at` on. A chunk beyond the last gets a scale of 0; its
    // codes are old ones, and its x is 0.
    __device__ void load(const Arguments &a, const Packed &packed, uint32_t at, uint32_t block,
                         uint32_t part, bool is_there) {
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t first = part * part_k<BITS> % CHUNK_K / 64; // of the chunk's loads
        const uint32_t from = at + (first * 2 * 32 + lane) * 16,
                       scale = at + packed.code_bytes + lane / 4 * 4;
#pragma unroll
        for (uint32_t m = 0; m < COUNT; m++) {
            constexpr uint32_t CODE_BYTES = TILE_ROWS * CHUNK_K * BITS / 8 / BLOCKS;
#pragma unroll
            for (int i = 0; i < Codes<BITS>::LOADS; i++)
                codes[m].v[i] = load_shared(from + (block + m) * CODE_BYTES + i * 512);
#pragma unroll
            for (int r = 0; r < RUNS; r++) {
                const uint32_t group =
                    ANY ? (part * part_k<BITS> % CHUNK_K / 32 + r) * a.groups / 4 * 128 : 0;
                const uint32_t scale_at = scale + group + (block + m) * 32;
                scales[m][r] = is_there ? load_word(scale_at) : 0;
                if (ANY)
                    zeros[m][r] = a.has_zeros && is_there ? load_word(scale_at + packed.scale_bytes)
                                  : BITS == 4             ? 0x48004800u
                                                          : 0x58005800u; // 8, 128
            }
        }
    }
    // Products begin at minus the zero times the sum of x, of rows g and g + 8.
    __device__ void begin(Products &p, const float (&sums)[NT][4], int run) const {
#pragma unroll
        for (uint32_t m = 0; m < COUNT; m++) {
            const float2 zero =
                ANY ? __half22float2(half2_of(zeros[m][ANY ? run : 0])) : make_float2(1.0f, 1.0f);
#pragma unroll
            for (int i = 0; i < NT * 4; i++)
                p[m][i / 4][i % 4] = sums[i / 4][i % 4] * (i % 4 < 2 ? zero.x : zero.y);
        }
    }
    template <int BLOCK> __device__ void multiply(Products &even, Products &odd, const X &x) const {
        uint32_t b[NT][4];
        x.block(b, BLOCK);
#pragma unroll
        for (uint32_t m = 0; m < COUNT; m++) {
            uint32_t a[2][4];
            codes[m].template operand<2 * BLOCK>(a[0]);
            codes[m].template operand<2 * BLOCK + 1>(a[1]);
#pragma unroll
            for (int rows = 0; rows < NT; rows++) {
                mma(even[m][rows], a[0], b[rows][0], b[rows][1], even[m][rows]);
                mma(odd[m][rows], a[1], b[rows][2], b[rows][3], odd[m][rows]);
            }
        }
    }
    // acc += scale times the products of a run.
    template <int RUN, int... BLOCK>
    __device__ void run(float (*acc)[NT][4], const float (&sums)[NT][4], const X &x,
                        std::integer_sequence<int, BLOCK...>) const {
        Products even, odd = {};
        begin(even, sums, RUN);
        (multiply<RUN * RUN_BLOCKS + BLOCK>(even, odd, x), ...);
#pragma unroll
        for (uint32_t m = 0; m < COUNT; m++) {
            const float2 scale = __half22float2(half2_of(scales[m][RUN]));
#pragma unroll
            for (int i = 0; i < NT * 4; i++) {
                const float p =
                    fmaf(odd[m][i / 4][i % 4], 1 / Codes<BITS>::ODD, even[m][i / 4][i % 4]);
                float &to = acc[m][i / 4][i % 4];
                to = fmaf(i % 4 < 2 ? scale.x : scale.y, p, to);
            }
        }
    }
    template <int RUN> __device__ void run(float (*acc)[NT][4], const X &x) const {
        constexpr auto OF_RUN = std::make_integer_sequence<int, RUN_BLOCKS>();
        if constexpr (ANY) {
            float sums[NT][4];
            X::zero(sums);
            x.sum(sums, RUN);
            run<RUN>(acc, sums, x, OF_RUN);
        } else {
            run<RUN>(acc, x.sums, x, OF_RUN);
        }
    }
    template <int... RUN>
    __device__ void add_to(float (*acc)[NT][4], const X &x,
                           std::integer_sequence<int, RUN...>) const {
        (run<RUN>(acc, x), ...);
    }
    __device__ void add_to(float (*acc)[NT][4], const X &x) const {
        add_to(acc, x, std::make_integer_sequence<int, RUNS>());
    }
};

#endif

} // namespace quant
