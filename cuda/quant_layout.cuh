// The packed form of quantised weights W[n, k], as the device keeps them. No kernels here:
// quant_pack.cu writes the form, quant_linear.cu and quant_pack.cu read it.
//
//   W[n][k] = scale[n][k / group] * (code[n][k] - zero[n][k / group])
//
// A tile is 64 rows of W, a chunk 128 k of a tile. Chunks lie one behind the other: tile by tile (n
// up to a multiple of 64, rows beyond it with scale 0), in a tile by k, a multiple of 128.
//
//   chunk:  codes | scales f16 [GROUPS][64] | zeros f16 [GROUPS][64], if there are any
//           GROUPS: 1, 2 or 4 in a chunk (groups of 128 k or more, of 64, of 32)
//           order of the 64: row 16 w + 8 h + g of the tile at 16 w + 2 g + h
//
// Codes are in the order of the matrix instruction's registers. The 16 rows w of a tile go to warp
// w of four, and in it rows g and g + 8 to lanes 4 g + t. Words of 32 bits, in fours (16 bytes a
// load):
//
//   4 bits: word [w][i: 2][lane][j: 2][h: 2] has eight codes of row 16 w + 8 h + g, of k from
//           64 i + 32 j: nibbles 0, 4, 2, 6, 1, 5, 3, 7 those of k + 2 t + 0, 1, 8, 9, 16, 17, 24,
//           25
//   8 bits: word [w][i: 4][lane][j: 2][h: 2] has four codes, of k from 32 i + 16 j: bytes 0, 1, 2,
//   3
//           those of k + 2 t + 0, 1, 8, 9
#pragma once

#include <cstdint>

namespace quant {

constexpr uint32_t TILE_ROWS = 64, CHUNK_K = 128;

struct Packed {
    uint32_t code_bytes;  // of a chunk
    uint32_t scale_bytes; // of a chunk's scales, and of its zeros
    uint32_t chunk_bytes;
    uint32_t chunks; // of a tile
    // `groups` of a chunk; `has_zeros` 0 or 1.
    __host__ __device__ Packed(uint32_t bits, uint32_t k, uint32_t groups, uint32_t has_zeros) {
        code_bytes = TILE_ROWS * CHUNK_K * bits / 8;
        scale_bytes = groups * TILE_ROWS * 2;
        chunk_bytes = code_bytes + scale_bytes * (1 + has_zeros);
        chunks = k / CHUNK_K;
    }
};

} // namespace quant
