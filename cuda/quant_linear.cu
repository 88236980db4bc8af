// Linear layers of quantised weights for few rows: y[rows, n] = x[rows, k] W[n, k]^T, where
//
//   W[n][k] = scale[n][k / group] * (code[n][k] - zero[n][k / group])
//
//   quant_linear_4_8, _4_16    codes of 4 bits, 1..8 or 1..16 rows of x (f16)
//   quant_linear_8_8, _8_16    codes of 8 bits
//   the same with _any         any group and zeros; those without: groups of 128 or more, no zeros
//
// Arguments (one struct by value, see `Arguments`; every pointer 16-byte aligned): x [rows, k] f16,
// packed weights as below, bias [n] f32 or NULL, and one of the epilogues
//   BIAS:      out [rows, n] f16    = y (+ bias)
//   STORE_F32: out [rows, n] f32    = y (+ bias)
//   ADD_F32:   out [rows, n] f32   += y (+ bias)             (the residual stream)
//   GATE_UP:   out [rows, n/2] f16  = up * silu(gate); rows of W in blocks of 16: 8 gate rows, then
//              the up rows of the same 8 outputs; no bias
// n is a multiple of 16, k of 128; group 32, 64 or a multiple of 128. Scales are f16.
//
// Arithmetic: code - zero is a small integer, exact in f16; products with x are summed in f32 over the
// 32, 64 or 128 k of a chunk that share a scale, and times the scale in f32. One rounding to f16 at
// the end. A row's bits depend on that row and W only: not on the number of rows, the kernel (_8 or
// _16), the grid or the run.
//
// Packed weights, written once at load (`pack_*` below). A tile is 16 rows of W, a chunk is 128 k of a
// tile: what one warp takes at a time. Chunks of a tile come in units of up to 8 (1024 k):
//
//   tile 0: unit 0 | unit 1 | ... | last unit (fewer chunks) | padding to tile_bytes
//   unit:   scales [8 chunks][group][16] f16, rows g and g + 8 side by side | zeros, the same, as
//           1024 + zero | codes of its chunks
//   codes, 4 bits: [half: rows g or g + 8][lane = 4 g + t] 16 bytes: four words, word b has the codes
//           of k = 32 b + 8 t .. + 8; k + 2 p in nibble p and k + 2 p + 1 in nibble p + 4
//   codes, 8 bits: [half][pair][lane] 16 bytes: eight bytes for b = 2 pair, eight for b = 2 pair + 1
//
// so that a unit is one contiguous copy, and a lane's loads are mma operands but for the conversion.
// Zeros are there only where has_zeros is 1; else every zero is 8 (of 4 bits) or 128 (of 8).
//
// Launch: grid = number of SMs (any grid is right), block = 288, dynamic shared memory =
// SHARED_BYTES, one block an SM. Needs sm_90; the entry points exist on older machines and do
// nothing. Dependent launch is optional: weights are requested before griddepcontrol.wait.
//
//   one feeder thread --> ring of units (20 of 8.25 KiB at 4 bits) --> 8 warps, a chunk of a unit each,
//   for up to 8 tiles with x of the slice in registers; sums of the warps added through shared memory
//
// Bytes: n k bits / 8 (1 + 16 / (bits * group)) from memory; x from the L2, 2 rows k a group of tiles of
// a block. Instructions at 4 bits: 9 a lane for 8 codes; at 4.5 TB/s that is a third of the issue slots.
//
// Ladder (H200, 2026-11-25, 4,545 GB/s; share of a streaming read for the linears of 20 layers of 72B
// with dependent launch and stand-ins for norms and attention, at 1, 8 and 16 rows)
//   First version, expected 85 %: a chunk is loaded, multiplied and released before the next is looked
//     at, scales and zeros by branches. 4 bits 42.8, 42.1, 35.7; 8 bits 86.3, 83.3, 67.8. Both take the
//     same time for a unit: the latency of a warp's turn, not the bus.
//   The next chunk is in registers before this one is multiplied; groups of 128 without zeros have kernels
//     of their own; scales at fixed places: 135 instructions a unit instead of 250.
//     4 bits 62.0, 60.3, 47.0; 8 bits 92.7, 90.2, 81.1.
//   Two tiles multiplied at once in a warp: 59.3, 58.5 at 4 bits. Not kept.
//   16 warps, units of 2048 k, groups of 4 tiles (96 registers): 71.8, 65.2 at 4 bits (8 rows read x twice
//     as often). Not kept: 16 rows do not fit.
//   Probes at 4 bits: without the conversion 71.5, 69.1; without products at all 90.9, 89.1, which is
//     what ring and feeder can do. To be tried: the zero subtracted from the sums (five instructions for
//     eight codes instead of nine), units of 32 rows.
#include "quant_chunk.cuh"

namespace quant {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

using skinny::barrier_arrive, skinny::barrier_expect, skinny::barrier_init, skinny::barrier_wait;

// Which tiles a block owns, and in groups of how many it takes them.
template <uint32_t GROUP> struct Share {
    uint32_t first, tiles, group;
    __device__ Share(const Arguments &a) {
        uint32_t all = a.n / TILE_ROWS, most = (all + gridDim.x - 1) / gridDim.x;
        first = min(blockIdx.x * most, all);
        tiles = min(most, all - first);
        uint32_t passes = max((most + GROUP - 1) / GROUP, 1);
        group = (most + passes - 1) / passes;
    }
};

struct Ring {
    uint32_t num_stages, stage = 0, parity = 0;
    __device__ Ring(uint32_t unit_bytes) : num_stages(min(RING_BYTES / unit_bytes, MAX_STAGES)) {}
    __device__ void next() {
        if (++stage == num_stages)
            stage = 0, parity ^= 1;
    }
};

struct Shared {
    uint32_t ring, full, empty;
    float *scratch;
    __device__ Shared(unsigned char *base) {
        ring = skinny::shared_address(base);
        scratch = reinterpret_cast<float *>(base + RING_BYTES);
        full = ring + RING_BYTES + SCRATCH_BYTES;
        empty = full + MAX_STAGES * 8;
    }
    __device__ void init_barriers() const {
        for (uint32_t i = 0; i < MAX_STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, NUM_WARPS);
        }
        skinny::barrier_init_fence();
    }
};

// One thread: keeps the ring full, from before the predecessor has ended.
template <int BITS, uint32_t GROUP> __device__ inline void feed(const Arguments &a, const Shared &s) {
    Packed<BITS> packed(a.k, a.groups, a.has_zeros);
    Share<GROUP> share(a);
    Ring at(packed.unit_bytes);
    uint64_t policy = skinny::evict_first_policy();
    qwen::release_successor();
    uint32_t unit = 0;
    const char *group = static_cast<const char *>(a.weights) +
                        static_cast<uint64_t>(share.first) * packed.tile_bytes;
    for (uint32_t done = 0; done < share.tiles; done += share.group) {
        uint32_t tiles = min(share.tiles - done, share.group);
        for (uint32_t slice = 0; slice < packed.slices; slice++) {
            uint32_t bytes = slice + 1 < packed.slices ? packed.unit_bytes : packed.last_bytes();
            const char *from = group + slice * packed.unit_bytes;
            for (uint32_t t = 0; t < tiles; t++, unit++, from += packed.tile_bytes, at.next()) {
                uint32_t bar = s.full + 8 * at.stage;
                if (unit >= at.num_stages)
                    barrier_wait(s.empty + 8 * at.stage, at.parity ^ 1);
                barrier_expect(bar, bytes);
                skinny::copy_row(s.ring + at.stage * packed.unit_bytes, from, bytes, bar, policy);
            }
        }
        group += static_cast<uint64_t>(tiles) * packed.tile_bytes;
    }
}

// What one warp multiplies by in a slice: its 128 k of every row of x, as mma operands. The lane of
// row g and place t holds x[g][32 b + 8 t .. + 8].
template <int MT> struct Multiplier {
    uint4 v[MT][4];
    __device__ void load(const Arguments &a, uint32_t slice) {
        uint32_t lane = threadIdx.x % 32, k = slice * SLICE_K + threadIdx.x / 32 * CHUNK_K;
#pragma unroll
        for (int m = 0; m < MT; m++) {
            uint32_t row = m * 8 + lane / 4;
            bool there = row < a.rows && k < a.k;
            const char *from = static_cast<const char *>(a.x) +
                               (static_cast<uint64_t>(row) * a.k + k + lane % 4 * 8) * 2;
#pragma unroll
            for (int b = 0; b < 4; b++) {
                v[m][b] = make_uint4(0, 0, 0, 0);
                if (there)
                    v[m][b] = __ldcg(reinterpret_cast<const uint4 *>(from + 64 * b));
            }
        }
    }
};

// acc += chunk times x.
template <int BITS, int MT, bool ANY>
__device__ inline void multiply(float (&acc)[MT][4], const Chunk<BITS, ANY> &chunk,
                                const Multiplier<MT> &x) {
    float even[MT][4] = {}, odd[MT][4] = {};
#pragma unroll
    for (int b = 0; b < 4; b++) {
        const uint32_t zeros = chunk.zeros[ANY ? b : 0];
        uint4 w0 = chunk.codes.widened(0, b, Zero(zeros & 0xffff));
        uint4 w1 = chunk.codes.widened(1, b, Zero(zeros >> 16));
#pragma unroll
        for (int m = 0; m < MT; m++) {
            skinny::mma(even[m], w0.x, w1.x, w0.y, w1.y, x.v[m][b].x, x.v[m][b].y, __half());
            skinny::mma(odd[m], w0.z, w1.z, w0.w, w1.w, x.v[m][b].z, x.v[m][b].w, __half());
        }
        if (!ANY && b < 3)
            continue;
        float2 scale = __half22float2(half2_of(chunk.scales[ANY ? b : 0]));
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                acc[m][i] += (i < 2 ? scale.x : scale.y) * (even[m][i] + odd[m][i]);
                even[m][i] = odd[m][i] = 0;
            }
    }
}

__device__ inline void consumers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(NUM_WARPS * 32) : "memory");
}

__device__ inline float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ inline void store_rounded(void *out, uint64_t at, float4 v) {
    __half2 two[2] = {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)};
    *reinterpret_cast<uint2 *>(static_cast<__half *>(out) + at) = make_uint2(bits(two[0]), bits(two[1]));
}

__device__ inline float gated(float gate, float up) { return up * (gate / (1.0f + expf(-gate))); }

// Four neighbouring outputs of a row, from output n on.
__device__ inline void store(const Arguments &a, uint32_t row, uint32_t n, float4 y) {
    uint64_t at = static_cast<uint64_t>(row) * a.n + n;
    if (a.bias)
        y = y + *reinterpret_cast<const float4 *>(a.bias + n);
    float4 *wide = reinterpret_cast<float4 *>(static_cast<float *>(a.out) + at);
    if (a.epilogue == STORE_F32)
        *wide = y;
    else if (a.epilogue == ADD_F32)
        *wide = *wide + y;
    else
        store_rounded(a.out, at, y);
}

__device__ inline void finish(const Arguments &a, uint32_t tile, uint32_t row, uint32_t r, float4 y0,
                              float4 y1) {
    if (a.epilogue == GATE_UP) {
        uint64_t at = static_cast<uint64_t>(row) * (a.n / 2) + tile * 8 + r;
        store_rounded(a.out, at,
                      make_float4(gated(y0.x, y1.x), gated(y0.y, y1.y), gated(y0.z, y1.z),
                                  gated(y0.w, y1.w)));
        return;
    }
    store(a, row, tile * TILE_ROWS + r, y0);
    store(a, row, tile * TILE_ROWS + r + 8, y1);
}

// Adds the warps' accumulators of some tiles, always in the same order, and finishes them.
template <int MT>
__device__ inline void add_and_finish(const Arguments &a, uint32_t first, uint32_t tiles,
                                      const float *scratch) {
    for (uint32_t i = threadIdx.x; i < tiles * MT * 16; i += NUM_WARPS * 32) {
        uint32_t tile = i / (MT * 16), row = i / 2 % (MT * 8), r = i % 2 * 4;
        if (row >= a.rows)
            continue;
        const float *from = scratch + (tile * MT * 8 + row) * SCRATCH_PITCH + r;
        float4 y0 = {}, y1 = {};
#pragma unroll
        for (int w = 0; w < NUM_WARPS; w++, from += 8 * SCRATCH_TILE) {
            y0 = y0 + *reinterpret_cast<const float4 *>(from);
            y1 = y1 + *reinterpret_cast<const float4 *>(from + 8);
        }
        finish(a, first + tile, row, r, y0, y1);
    }
}

template <int MT, uint32_t GROUP>
__device__ inline void reduce_warps(const Arguments &a, uint32_t first, uint32_t tiles,
                                    const float (&acc)[GROUP][MT][4], float *scratch) {
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    consumers_sync(); // the scratch has been read
#pragma unroll
    for (uint32_t t = 0; t < GROUP; t++)
#pragma unroll
        for (int m = 0; m < MT; m++) {
            float *at = scratch + (warp * 8 + t * MT + m) * SCRATCH_TILE +
                        lane % 4 * 2 * SCRATCH_PITCH + lane / 4;
            const float(&v)[4] = acc[t][m];
            at[0] = v[0], at[SCRATCH_PITCH] = v[1], at[8] = v[2], at[SCRATCH_PITCH + 8] = v[3];
        }
    consumers_sync();
    add_and_finish<MT>(a, first, tiles, scratch);
}

// Takes a warp's chunks out of the ring in their order, one ahead of their use.
template <int BITS, bool ANY> struct Source {
    const Arguments &a;
    Ring at;
    uint32_t full, empty, unit_bytes;
    uint32_t codes, scales; // the lane's parts, in the first stage
    uint32_t zero;          // 0, which the compiler cannot know

    __device__ Source(const Arguments &a, const Shared &s, const Packed<BITS> &p)
        : a(a), at(p.unit_bytes), full(s.full), empty(s.empty), unit_bytes(p.unit_bytes),
          zero(a.rows >> 31) {
        uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        codes = s.ring + p.codes_at + warp * p.CODE_BYTES + lane * 16;
        scales = s.ring + warp * p.scale_bytes + lane / 4 * 4;
    }
    // Waits for the next unit. A warp beyond the chunks of its slice reads what nobody uses.
    __device__ void take(Chunk<BITS, ANY> &chunk) {
        barrier_wait(full + 8 * at.stage, at.parity);
        chunk.load(a, codes + at.stage * unit_bytes, scales + at.stage * unit_bytes);
    }
    // Hands the unit of `chunk` back once its loads have returned: see skinny_linear.cu.
    __device__ void release(const Chunk<BITS, ANY> &chunk) {
        uint32_t after = chunk.any() & zero;
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            barrier_arrive(empty + 8 * at.stage + after);
        at.next();
    }
};

template <int BITS, int MT, bool ANY>
__device__ inline void consume(const Arguments &a, const Shared &s) {
    constexpr uint32_t GROUP = group_tiles<MT, ANY>;
    Packed<BITS> packed(a.k, a.groups, a.has_zeros);
    Source<BITS, ANY> source(a, s, packed);
    Share<GROUP> share(a);
    uint32_t warp = threadIdx.x / 32, units = share.tiles * packed.slices;
    Multiplier<MT> x, x_next;
    qwen::wait_for_predecessor();
    if (units == 0)
        return;
    x_next.load(a, 0);
    Chunk<BITS, ANY> chunks[2]; // in turns
    source.take(chunks[0]);
    source.release(chunks[0]);
    for (uint32_t done = 0; done < share.tiles; done += share.group) {
        uint32_t tiles = min(share.tiles - done, share.group);
        float acc[GROUP][MT][4] = {};
        for (uint32_t slice = 0; slice < packed.slices; slice++) {
            bool is_there = warp < packed.chunks(slice);
            x = x_next;
            x_next.load(a, slice + 1 < packed.slices ? slice + 1 : 0);
#pragma unroll
            for (uint32_t t = 0; t < GROUP; t++) {
                if (t >= tiles)
                    break;
                Chunk<BITS, ANY> &next = chunks[(t + 1) % 2];
                bool has_next = --units > 0;
                if (has_next)
                    source.take(next);
                if (is_there)
                    multiply<BITS, MT, ANY>(acc[t], chunks[t % 2], x);
                if (has_next)
                    source.release(next);
            }
            if (tiles % 2 == 1)
                chunks[0] = chunks[1];
        }
        reduce_warps<MT, GROUP>(a, share.first + done, tiles, acc, s.scratch);
    }
}

template <int BITS, int MT, bool ANY> __device__ inline void linear(const Arguments &a) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared s(memory);
    if (threadIdx.x == 0)
        s.init_barriers();
    __syncthreads();
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be uniform
    if (warp < NUM_WARPS)
        consume<BITS, MT, ANY>(a, s);
    else if (skinny::elect())
        feed<BITS, group_tiles<MT, ANY>>(a, s);
}
#else
template <int BITS, int MT, bool ANY> __device__ inline void linear(const Arguments &) {}
#endif

} // namespace quant

#define QUANT_ENTRY(name, BITS, MT, ANY)                                                           \
    extern "C" __global__ void __launch_bounds__(quant::NUM_THREADS, 1)                            \
        name(const __grid_constant__ quant::Arguments a) {                                         \
        quant::linear<BITS, MT, ANY>(a);                                                           \
    }

QUANT_ENTRY(quant_linear_4_8, 4, 1, false)
QUANT_ENTRY(quant_linear_4_16, 4, 2, false)
QUANT_ENTRY(quant_linear_8_8, 8, 1, false)
QUANT_ENTRY(quant_linear_8_16, 8, 2, false)
QUANT_ENTRY(quant_linear_4_8_any, 4, 1, true)
QUANT_ENTRY(quant_linear_4_16_any, 4, 2, true)
QUANT_ENTRY(quant_linear_8_8_any, 8, 1, true)
QUANT_ENTRY(quant_linear_8_16_any, 8, 2, true)
