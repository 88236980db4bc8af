// Linear layers for few rows: y[rows, n] = x[rows, k] W[n, k]^T at the speed of the memory bus.
//
//   skinny_linear_{bf16,f16}_8    1..8 rows of x        T is the type of the weights and of x
//   skinny_linear_{bf16,f16}_16   1..16 rows
//
// Arguments (one struct by value, see `Arguments`; every pointer 16-byte aligned):
//   weights [n, k] T, row-major      x [rows, k] T      bias [n] f32 or NULL (BIAS only)
//   epilogue BIAS:      out [rows, n] T    = y (+ bias)
//            STORE_F32: out [rows, n] f32  = y                      (logits)
//            ADD_F32:   out [rows, n] f32 += y                      (the residual stream)
//            GATE_UP:   out [rows, n/2] T  = up * silu(gate); the rows of W are interleaved in
//                       blocks of 16: 8 gate rows, then the up rows of the same 8 outputs
// n is a multiple of 8 (of 16 for GATE_UP), k a multiple of 64, 1 <= rows <= 8 (16).
// f32 accumulation, one rounding to T. A row's bits depend on that row and W only: not on the
// number of rows, the kernel (_8 or _16), the grid or the run.
//
// Launch: grid = number of SMs (any grid is right), block = 192, dynamic shared memory =
// shared_bytes<1> (_8) or shared_bytes<2> (_16), one block an SM. Needs sm_90; the entry points
// exist on older machines and do nothing. Dependent launch is optional: weights are requested
// before griddepcontrol.wait, so no kernel that may still be running may write them; everything
// else is touched after it. Successors are allowed at once, and must wait likewise.
//
// Who computes what: a block owns whole tiles of 16 rows of W, and streams them in units of
// 16 rows x 512 k, group by group, in a group slice by slice of k, in a slice tile by tile:
//
//            k: slice 0     slice 1    ...      ring of 11 stages x 16 KiB
//   group  tile 0 | u0  | u4  |                 2 feeders: 16 row copies of 1 KiB a unit
//   of up  tile 1 | u1  | u5  |                 4 warps: 128 k each of every unit, mma m16n8k16
//   to 8   tile 2 | u2  | u6  |                 with W as the 16-row operand; x of the slice in
//   tiles  tile 3 | u3  | u7  |                 registers, one slice ahead, from the L2
//
// At the end of a group the four warps' accumulators are summed through shared memory.
//
// Bytes: 2 n k of weights from memory; x from the L2, 2 rows k a group of a block (at 8 rows 1/16
// of the weights' bytes for groups of 8 tiles, 1/8 for 4). FLOPs: 2 rows n k (the mma always does
// 8 or 16 rows: 16 n k or 32 n k). At 8 rows that is 8 FLOP a byte: the bus is the roofline.
//
// Best measured (2026-11-24, H200, 4543 GB/s), share of a streaming read of the same run:
//
//   n x k             us at 1 row, share       8 rows          16 rows        cuBLAS, 1 and 8 rows
//   24576 x 8192      91.8  96.6 %             92.5  95.8 %    93.5  94.8 %    95.5  105.4 us
//    8192 x 8192      31.6  93.4 %             32.7  90.4 %    33.4  88.5 %    34.4   33.5 us
//   49152 x 8192     182.9  96.9 %            183.7  96.5 %   185.5  95.6 %   193.3  194.2 us
//    8192 x 24576     92.2  96.1 %             93.0  95.3 %    94.4  93.9 %    96.0   99.9 us
//  152064 x 8192     559.9  97.9 %            560.8  97.8 %   568.8  96.4 %   589.3  593.1 us
//   12288 x 4096      23.2  95.6 %             23.6  93.7 %    25.1  88.4 %    27.6   28.0 us
//    4096 x 4096      10.4  70.8 %             11.3  65.6 %    12.1  61.3 %    12.3   12.4 us
//   22016 x 4096      41.7  95.2 %             41.4  96.0 %    42.5  93.4 %    45.9   46.5 us
//    4096 x 11008     22.4  88.6 %             24.0  82.8 %    25.0  79.5 %    26.6   27.3 us
//
// with dependent launch, one kernel after another; without it 92.9, 84.3, 95.1, 92.3, 98.0 % for
// the first five at 1 row. A decode step of 72B (20 layers and the head, with stand-ins for norm
// and attention between the matrices): 96.1 % at 1 row, 94.6 % at 8; 7B: 88.4 and 85.7 %.
//
// What was tried, in order (72B shapes on an H200; several things often changed between two runs,
// so only the probe's figures isolate one cause; "chain" is a decode step of 20 layers with
// dependent launch and stand-ins for norm and attention):
//  1. Stream-K (equal shares of units, partial sums combined by the last block), one lane a row
//     copy, rows padded to 1088 bytes: predicted 95 %, got 70 %. The compiler issues the copies of
//     a warp in a loop over its lanes; one elected thread with its addresses in uniform registers,
//     with other changes: 75 %.
//  2. Whatever else, 75 % stayed. A probe that only copies: a row that starts off a multiple of
//     128 bytes in shared memory slows the copy engine by a quarter (74 against 96 %). Unpadded
//     rows cost two-way bank conflicts, which the slack hides: 92 to 98 % alone.
//  3. Two different kernels resident on an SM (6 stages each), the second waiting with its ring
//     full: predicted to hide the whole boundary, got 84 to 94 % in the chain, at 8 rows worse
//     than without dependent launch; not understood. One block an SM, twice the ring: 96 %.
//  4. Order. All copies k-fastest reach 100 % in the probe, groups of 16 tiles 96 %. But groups of
//     one tile read x for every unit, at 8 rows half as many bytes again from the L2: 83 %.
//     Chains with groups of 2, 4, 8: 95.9, 95.8, 96.1 % at 1 row, 92.8, 94.6, 94.9 % at 8.
//  5. Stream-K dropped: while the bus is the limit, idle SMs cost little as long as all others end
//     together (128 of 132 work for 72B). No workspace and no counters; with other changes,
//     8192 x 8192 went from 36 to 32 us.
//  6. The next matrix's first units fetched into the L2 at the end of a launch (8 to 24 units an
//     SM): predicted to save 3 us a launch, cost 0.5 to 4.6 us.
//  7. Two blocks an SM of one launch (6 stages, groups of 2): 96.8 and 95.2 % in the 72B chain at
//     1 and 8 rows, but 86.1 and 82.0 % in the 7B chain; one block an SM: 88.4 and 85.7 %.
//  8. Tensor-map copies (64 x 16 x 8 boxes, swizzled) in the probe: as fast as row copies, not
//     faster; promotion to 256 bytes costs 10 %.
//  9. Plain loads of mma fragments instead of the copy engine, in the probe: 82 to 90 %.
#include "skinny_ring.cuh"

namespace skinny {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// Walks the units of a share in order.
struct Walk {
    uint32_t first, left; // tile the group starts at; tiles from there on
    uint32_t slices, most;
    uint32_t slice = 0, tile = 0;
    __device__ Walk(const Share &s)
        : first(s.first), left(s.tiles), slices(s.slices), most(s.group) {}
    __device__ uint32_t group() const { return min(left, most); }
    __device__ void next() {
        if (++tile < group())
            return;
        tile = 0;
        if (++slice < slices)
            return;
        slice = 0, first += group(), left -= group();
    }
};

// The rows of a unit that one feeder requests.
struct Rows {
    const char *from;
    uint64_t pitch;
    uint32_t bytes, count; // of a row segment; of rows that exist
    __device__ Rows(const Arguments &m, const Walk &at, uint32_t feeder) {
        uint32_t row = (at.first + at.tile) * TILE_ROWS + feeder * FEEDER_ROWS;
        uint32_t k = at.slice * SLICE_K;
        count = row < m.n ? min(m.n - row, FEEDER_ROWS) : 0;
        bytes = min(m.k - k, SLICE_K) * 2;
        pitch = static_cast<uint64_t>(m.k) * 2;
        from = static_cast<const char *>(m.weights) + row * pitch + k * 2;
    }
    __device__ void copy(uint32_t to, uint32_t bar, uint64_t policy) const {
        barrier_expect(bar, count * bytes);
        if (count == FEEDER_ROWS) {
#pragma unroll
            for (int r = 0; r < FEEDER_ROWS; r++)
                copy_row(to + r * STAGE_PITCH, from + r * pitch, bytes, bar, policy);
        } else {
            for (uint32_t r = 0; r < count; r++)
                copy_row(to + r * STAGE_PITCH, from + r * pitch, bytes, bar, policy);
        }
    }
};

// One thread of a feeding warp: keeps the ring full, from before the predecessor has ended.
__device__ inline void feed(const Arguments &a, const Shared &s, uint32_t feeder) {
    Share share(a);
    Walk walk(share);
    Ring at;
    uint32_t units = share.units();
    uint32_t to = s.ring + feeder * FEEDER_ROWS * STAGE_PITCH;
    uint64_t policy = evict_first_policy();
    qwen::release_successor(); // they fit beside or after this block, and wait for it
    for (uint32_t unit = 0; unit < units; unit++, walk.next(), at.next()) {
        if (unit >= NUM_STAGES)
            barrier_wait(s.empty + 8 * at.stage, at.parity ^ 1);
        Rows(a, walk, feeder).copy(to + at.stage * STAGE_BYTES, s.full + 8 * at.stage, policy);
    }
}

// What one warp multiplies by in a slice: its 64 k of every row of x, as mma operands. The lane
// of row g and place t holds x[g][32 b + 8 t .. + 8]: the k of an mma are permuted alike in
// both operands, so that one 16-byte load serves two mma.
template <int MT> struct Multiplier {
    uint4 v[MT][WARP_BLOCKS];
    uint32_t blocks; // of 32 k; the rest of the stage is not written where k ends
    __device__ void load(const Arguments &a, uint32_t slice) {
        uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, total = a.k;
        uint32_t k = slice * SLICE_K + warp * WARP_K;
        blocks = k < total ? min((total - k) / 32, WARP_BLOCKS) : 0;
#pragma unroll
        for (int m = 0; m < MT; m++) {
            uint32_t row = m * 8 + lane / 4;
            const char *from = static_cast<const char *>(a.x) +
                               (static_cast<uint64_t>(row) * total + k + lane % 4 * 8) * 2;
#pragma unroll
            for (int b = 0; b < WARP_BLOCKS; b++) {
                v[m][b] = make_uint4(0, 0, 0, 0);
                if (row < a.rows && k + 32 * b < total)
                    v[m][b] = __ldcg(reinterpret_cast<const uint4 *>(from + 64 * b));
            }
        }
    }
};

// acc += the tile in this stage times x. Two chains of mma, for half the latency. Returns what
// depends on every load of the stage.
template <typename T, int MT>
__device__ inline uint32_t multiply(float (&acc)[MT][4], uint32_t stage, const Multiplier<MT> &x) {
    uint4 lo[WARP_BLOCKS] = {}, hi[WARP_BLOCKS] = {};
    float odd[MT][4] = {};
#pragma unroll
    for (int b = 0; b < WARP_BLOCKS; b++)
        if (b < x.blocks) {
            lo[b] = load_shared(stage + 64 * b);
            hi[b] = load_shared(stage + 64 * b + 8 * STAGE_PITCH);
        }
#pragma unroll
    for (int b = 0; b < WARP_BLOCKS; b++)
#pragma unroll
        for (int m = 0; m < MT; m++) {
            mma(acc[m], lo[b].x, hi[b].x, lo[b].y, hi[b].y, x.v[m][b].x, x.v[m][b].y, T());
            mma(odd[m], lo[b].z, hi[b].z, lo[b].w, hi[b].w, x.v[m][b].z, x.v[m][b].w, T());
        }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[m][i] += odd[m][i];
    uint32_t loaded = 0;
#pragma unroll
    for (int b = 0; b < WARP_BLOCKS; b++)
        loaded |= lo[b].x | hi[b].x;
    return loaded;
}

// Hands a stage back to the feeders once its loads have returned. The compiler does not make an
// arrival wait for them: without this dependence up to four of the eight are outstanding there (in
// the machine code), and with 12 stages and 16 rows, rows of W were seen overwritten before they
// were read. `zero` is 0, which the compiler cannot know. Never run with and without it, all else
// equal: the version that failed also had 12 stages and groups of 4.
__device__ inline void release(uint32_t bar, uint32_t loaded, uint32_t zero) {
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(bar + (loaded & zero));
}

__device__ inline float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ inline float gated(float gate, float up) { return up * (gate / (1.0f + expf(-gate))); }

template <typename T> __device__ inline void store_rounded(void *out, uint64_t at, float4 v) {
    uint2 bits;
    T *parts = reinterpret_cast<T *>(&bits);
    narrow(v.x, parts), narrow(v.y, parts + 1), narrow(v.z, parts + 2), narrow(v.w, parts + 3);
    *reinterpret_cast<uint2 *>(static_cast<T *>(out) + at) = bits;
}

// Four neighbouring outputs of a row, from output n on.
template <typename T>
__device__ inline void store(const Arguments &a, uint32_t row, uint32_t n, float4 y) {
    if (n >= a.n)
        return; // the last tile may have eight rows only
    uint64_t at = static_cast<uint64_t>(row) * a.n + n;
    float4 *wide = reinterpret_cast<float4 *>(static_cast<float *>(a.out) + at);
    if (a.epilogue == STORE_F32)
        *wide = y;
    else if (a.epilogue == ADD_F32)
        *wide = *wide + y;
    else
        store_rounded<T>(a.out, at, a.bias ? y + *reinterpret_cast<const float4 *>(a.bias + n) : y);
}

// What a thread finishes at a time: four weight rows of one tile and the four rows 8 further on
// (the up rows, if the first are gate rows), for one row of x.
struct Item {
    uint32_t tile, row, r;
    template <int MT> __device__ static Item number(uint32_t i) {
        return {i / (MT * 16), i / 2 % (MT * 8), i % 2 * 4};
    }
};

template <typename T>
__device__ inline void finish(const Arguments &a, uint32_t tile, Item item, float4 y0, float4 y1) {
    if (a.epilogue == GATE_UP) {
        uint64_t at = static_cast<uint64_t>(item.row) * (a.n / 2) + tile * 8 + item.r;
        store_rounded<T>(a.out, at,
                         make_float4(gated(y0.x, y1.x), gated(y0.y, y1.y), gated(y0.z, y1.z),
                                     gated(y0.w, y1.w)));
    } else {
        store<T>(a, item.row, tile * TILE_ROWS + item.r, y0);
        store<T>(a, item.row, tile * TILE_ROWS + item.r + 8, y1);
    }
}

// A tile's accumulators, transposed: [row of x][weight row].
template <int MT>
__device__ inline void spill(const float (&acc)[MT][4], float *to, uint32_t lane) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float *at = to + m * SCRATCH_TILE + lane % 4 * 2 * SCRATCH_PITCH + lane / 4;
        at[0] = acc[m][0], at[SCRATCH_PITCH] = acc[m][1];
        at[8] = acc[m][2], at[SCRATCH_PITCH + 8] = acc[m][3];
    }
}

// Sums the warps' accumulators of a group, always in the same order, and finishes it.
template <typename T, int MT>
__device__ inline void reduce_warps(const Arguments &a, uint32_t first, uint32_t tiles,
                                    const float (&acc)[GROUP_TILES][MT][4], float *scratch) {
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    consumers_sync(); // the scratch has been read
#pragma unroll
    for (int t = 0; t < GROUP_TILES; t++)
        if (t < tiles)
            spill<MT>(acc[t], scratch + (warp * GROUP_TILES + t) * MT * SCRATCH_TILE, lane);
    consumers_sync();
    for (uint32_t i = threadIdx.x; i < tiles * MT * 16; i += NUM_WARPS * 32) {
        Item item = Item::number<MT>(i);
        if (item.row >= a.rows)
            continue;
        const float *from = scratch + (item.tile * MT * 8 + item.row) * SCRATCH_PITCH + item.r;
        float4 y0 = {}, y1 = {};
#pragma unroll
        for (int w = 0; w < NUM_WARPS; w++, from += GROUP_TILES * MT * SCRATCH_TILE) {
            y0 = y0 + *reinterpret_cast<const float4 *>(from);
            y1 = y1 + *reinterpret_cast<const float4 *>(from + 8);
        }
        finish<T>(a, first + item.tile, item, y0, y1);
    }
}

// The multiplying warps: each takes an equal share of the k of every stage.
template <typename T, int MT> __device__ inline void consume(const Arguments &a, const Shared &s) {
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t offset = s.ring + lane / 4 * STAGE_PITCH + warp * WARP_K * 2 + lane % 4 * 16;
    Share share(a);
    Ring at;
    uint32_t zero = a.rows >> 31;
    Multiplier<MT> x, x_next;
    qwen::wait_for_predecessor();
    if (share.tiles > 0)
        x_next.load(a, 0);
    for (uint32_t done = 0; done < share.tiles; done += share.group) {
        uint32_t tiles = min(share.tiles - done, share.group);
        float acc[GROUP_TILES][MT][4] = {};
        for (uint32_t slice = 0; slice < share.slices; slice++) {
            x = x_next;
            x_next.load(a, slice + 1 < share.slices ? slice + 1 : 0);
#pragma unroll
            for (int t = 0; t < GROUP_TILES; t++) {
                if (t >= tiles)
                    break;
                barrier_wait(s.full + 8 * at.stage, at.parity);
                uint32_t loaded = multiply<T, MT>(acc[t], offset + at.stage * STAGE_BYTES, x);
                release(s.empty + 8 * at.stage, loaded, zero);
                at.next();
            }
        }
        reduce_warps<T, MT>(a, share.first + done, tiles, acc, s.scratch);
    }
}

template <typename T, int MT> __device__ inline void linear(const Arguments &a) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared s = Shared::carve<MT>(memory);
    if (threadIdx.x == 0)
        s.init_barriers();
    __syncthreads();
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be uniform
    if (warp < NUM_WARPS)
        consume<T, MT>(a, s);
    else if (elect())
        feed(a, s, warp - NUM_WARPS);
}
#else
template <typename T, int MT> __device__ inline void linear(const Arguments &) {}
#endif

} // namespace skinny

#define SKINNY_ENTRY(name, T, MT)                                                                  \
    extern "C" __global__ void __launch_bounds__(skinny::NUM_THREADS, 1)                           \
        name(const __grid_constant__ skinny::Arguments a) {                                        \
        skinny::linear<T, MT>(a);                                                                  \
    }

SKINNY_ENTRY(skinny_linear_bf16_8, __nv_bfloat16, 1)
SKINNY_ENTRY(skinny_linear_f16_8, __half, 1)
SKINNY_ENTRY(skinny_linear_bf16_16, __nv_bfloat16, 2)
SKINNY_ENTRY(skinny_linear_f16_16, __half, 2)
