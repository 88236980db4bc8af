// Linear layers for few rows: y[rows, n] = x[rows, k] W[n, k]^T at the speed of the memory bus.
//
//   skinny_linear_{bf16,f16}_8    1..8 rows of x        T is the type of the weights and of x
//   skinny_linear_{bf16,f16}_16   1..16 rows
//
// Arguments (one struct by value) and epilogues: linear_arguments.cuh; every pointer 16-byte
// aligned, weights [n, k] T row-major. A normalised y is multiplied by 1 / sqrt(mean of the row's
// squares + epsilon): with the ADD_NORM before, that is the norm between two linears, but that x is
// rounded before it is scaled. n is a multiple of 8 (of 16 for GATE_UP), k a multiple of 64, 1 <=
// rows <= 8 (16). f32 accumulation, one rounding to T. A row's bits depend on that row and the
// matrices only: not on the number of rows, the kernel (_8 or _16), the grid or the run.
//
// Launch: grid = number of SMs (any grid is right, but `divide` must know it), block = 192, dynamic
// shared memory = shared_bytes<1> (_8) or shared_bytes<2> (_16), one block an SM. Needs sm_90; the
// entry points exist on older machines and do nothing. Dependent launch is optional: weights are
// requested before griddepcontrol.wait, so no kernel that may still be running may write them;
// everything else is touched after it. Successors are allowed at once, and must wait likewise.
//
// Who computes what: a block owns whole tiles of 16 rows of W, and streams them in units of
// 16 rows x 512 k, group by group, in a group slice by slice of k, in a slice tile by tile:
//
//            k: slice 0     slice 1    ...      ring of 11 (10) stages x 16 KiB
//   group  tile 0 | u0  | u4  |                 2 feeders: 16 row copies of 1 KiB a unit
//   of up  tile 1 | u1  | u5  |                 4 warps: 128 k each of every unit, mma m16n8k16
//   to 8   tile 2 | u2  | u6  |                 with W as the 16-row operand; x from the L2, four
//   tiles  tile 3 | u3  | u7  |                 (two) slices ahead, through shared memory
//
// The accumulators of a group are in shared memory too, so that loops over tiles stay loops: what
// is not in the instruction cache costs more than moving sums. At the end of a group those of the
// four warps are added.
//
// Bytes: 2 n k of weights from memory; x from the L2, 2 rows k a group of a block (at 8 rows 1/16
// of the weights' bytes for groups of 8 tiles, 1/8 for 4). FLOPs: 2 rows n k (the mma always does
// 8 or 16 rows: 16 n k or 32 n k). At 8 rows that is 8 FLOP a byte: the bus is the roofline.
//
// Best measured (2026-11-25, H200, 4541 GB/s), share of a streaming read of the same run, with
// dependent launch, one kernel after another (cuBLAS: 2026-11-24, without):
//
//   n x k             us at 1 row, share       8 rows          16 rows        cuBLAS, 1 and 8 rows
//   24576 x 8192      92.0  96.3 %             92.6  95.7 %    94.6  93.7 %    95.5  105.4 us
//    8192 x 8192      31.3  94.3 %             31.9  92.7 %    32.7  90.2 %    34.4   33.5 us
//   49152 x 8192     183.4  96.7 %            184.5  96.1 %   187.3  94.6 %   193.3  194.2 us
//    8192 x 24576     91.6  96.7 %             92.4  95.9 %    94.8  93.5 %    96.0   99.9 us
//  152064 x 8192     562.7  97.5 %            562.9  97.4 %   570.0  96.2 %   589.3  593.1 us
//   12288 x 4096      23.9  92.9 %             24.1  91.9 %    25.1  88.3 %    27.6   28.0 us
//    4096 x 4096       9.7  76.2 %             10.3  71.8 %    11.8  62.7 %    12.3   12.4 us
//   22016 x 4096      41.9  94.8 %             42.1  94.4 %    43.0  92.4 %    45.9   46.5 us
//    4096 x 11008     21.9  90.7 %             22.5  88.4 %    24.4  81.3 %    26.6   27.3 us
//    5120 x 5120      14.0  82.2 %             14.3  80.5 %    15.8  73.0 %
//    5120 x 13696     36.4  84.7 %             36.9  83.7 %    37.9  81.4 %
//
// A decode step (linears, norms and the attention kernel at a context of 64, but no sampling; 20
// layers of 72B), bytes of weights against the streaming read:
//
//                          7B, 1 row   7B, 8    14B, 1   72B, 1   72B, 8
//   before (see 10)          84.3       78.7     85.4     92.8     91.2 %
//   now                      88.9       82.5     88.3     94.8     92.7 %
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
// Up to here x came from the L2 into registers one slice ahead, accumulators were registers and
// norms kernels. What follows is the decode step above: 7B / 14B / 72B at 1 row, and 72B at 8.
// Before: 84.3 / 85.4 / 92.8, 91.2. The bytes of a layer of 7B take 89.3 us; 18 more are lost.
// 10. All linears between two attentions in one launch, the blocks meeting in between at a word in
//     memory while the next weights come, norms fused, three unrolled copies of the loops:
//     predicted 93 for 7B, got 80. One linear a launch, the same code lost 2.9 us each to the old:
//     it has 139 KB of instructions.
// 11. Loops instead, 25 KB: 86.7 / 86.9 / 92.7, 91.0. A trace: of 16 units 13 had arrived before x
//     could be read, and still they took 6 us. So a late start is never made up for.
// 12. x four slices ahead in shared memory: 7B falls to 77.7 at 1 row, but gains at 8. The rows
//     beyond the last had become copies of it: eight lanes of every SM asked for the same lines.
// 13. Those lanes ask for nothing, and odd rows of W swap their blocks, without bank conflicts:
//     87.0 / 87.2 / 93.4, 91.3. Of a meeting, the fence takes 2.5 us under load, and the last SMs
//     come up to 6 us after the mean (72B: 22 of 187); why they are slower is not known.
// 14. Each linear its own launch again, the norms still fused: predicted 89.3 for 7B from times
//     without norms, got 88.9 / 88.3 / 94.8, 92.7. Dependent launch costs 1.9 us a linear, a
//     meeting 2.7.
// 15. At most four stages on their way (2026-11-28, with stand-ins for attention, all else equal;
// 72B,
//     72B at 8 rows, 7B, 7B at 8): 96.3, 95.3, 90.2, 89.4 to 97.5, 96.7, 92.1, 90.1; six: 97.0,
//     95.9, 91.4, 89.8; three: 96.0, 95.5, 91.6, 89.9. A ring that is asked for all at once fills
//     no sooner, and x waits for all of it.
// Also: eight multiplying warps instead of four, the same. Stores read back instead of the fence
// before a meeting: up to 6 points worse. Attention's idle blocks ending before their wait: +0.3 /
// -0.5 / -0.2. All of the L1 as shared memory, for every kernel: the same. A ring of 6 stages,
// beside which an attention kernel of half the size fits (on 13): 85.3 / 86.3 / 93.9, 92.0, but
// attention itself loses 8 points behind another kernel. Not tried: tiles for SMs as they come.
#include "skinny_finish.cuh"

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
template <int STAGES>
__device__ inline void feed(const Arguments &a, const Shared &s, uint32_t feeder) {
    Share share(a);
    Walk walk(share);
    Ring<STAGES> at, oldest;
    uint32_t units = share.units();
    uint32_t to = s.ring + feeder * FEEDER_ROWS * STAGE_PITCH;
    uint64_t policy = evict_first_policy();
    qwen::release_successor(); // they fit beside or after this block, and wait for it
#pragma unroll 1
    for (uint32_t unit = 0; unit < units; unit++, walk.next(), at.next()) {
        if (unit >= STAGES)
            barrier_wait(s.empty + 8 * at.stage, at.parity ^ 1);
        if (unit >= IN_FLIGHT) {
            barrier_wait(s.full + 8 * oldest.stage, oldest.parity);
            oldest.next();
        }
        Rows(a, walk, feeder).copy(to + at.stage * STAGE_BYTES, s.full + 8 * at.stage, policy);
    }
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

// What a multiplying warp does, which takes its share of the k of every stage.
template <typename T, int MT> struct Multiplication {
    const Arguments &a;
    const Shared &s;
    Ring<num_stages<MT>> at;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t offset = s.ring + lane / 4 * STAGE_PITCH + warp * WARP_K * 2 + lane % 4 * 16;
    uint32_t sums = s.sums + warp * GROUP_TILES * MT * SUMS_BYTES + lane * 16;
    uint32_t zero = a.rows >> 31;

    // The tiles of a group in one slice.
    __device__ void slice(uint32_t slice, uint32_t tiles, const Operand<MT> &x) {
        uint32_t k = slice * SLICE_K + warp * WARP_K;
        uint32_t blocks = k < a.k ? min((a.k - k) / 32, WARP_BLOCKS) : 0;
        uint32_t to = sums;
#pragma unroll 1
        for (uint32_t t = 0; t < tiles; t++, to += MT * SUMS_BYTES, at.next()) {
            float acc[MT][4] = {};
#pragma unroll
            for (int m = 0; m < MT; m++)
                if (slice > 0)
                    load_sums(acc[m], to + m * SUMS_BYTES);
            barrier_wait(s.full + 8 * at.stage, at.parity);
            Tile tile;
            tile.load(offset + at.stage * STAGE_BYTES, blocks);
            release(s.empty + 8 * at.stage, tile.loaded(), zero);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                multiply<T, MT>(acc[m], tile, x, m);
                store_sums(to + m * SUMS_BYTES, acc[m]);
            }
        }
    }

    __device__ void run(const Share &share) {
        uint32_t passes = (share.tiles + share.group - 1) / share.group;
        Slices<MT> x(a, s.x, passes * share.slices);
        if (a.normalised)
            row_scales<T>(a, s.scales);
#pragma unroll 1
        for (uint32_t done = 0; done < share.tiles; done += share.group) {
            uint32_t tiles = min(share.tiles - done, share.group), first = share.first + done;
            Ahead ahead;
            Item item = Item::number<MT>(threadIdx.x);
            ahead.load(a, first + item.tile, item, item.tile < tiles && item.row < a.rows);
            if (done > 0)
                consumers_sync(); // the group before is finished
#pragma unroll 1
            for (uint32_t i = 0; i < share.slices; i++, x.next())
                slice(i, tiles, x.take());
            finish_group<T, MT>(a, s, first, tiles, ahead);
        }
    }
};

template <typename T, int MT> __device__ inline void consume(const Arguments &a, const Shared &s) {
    Multiplication<T, MT> multiplication{a, s};
    Share share(a);
    qwen::wait_for_predecessor();
    if (share.tiles > 0)
        multiplication.run(share);
}

template <typename T, int MT> __device__ inline void linear(const Arguments &a) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared s = Shared::carve<MT>(memory);
    s.init_barriers<MT>();
    __syncthreads();
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be uniform
    if (warp < NUM_WARPS)
        consume<T, MT>(a, s);
    else if (elect())
        feed<num_stages<MT>>(a, s, warp - NUM_WARPS);
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
