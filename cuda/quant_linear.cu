// Linear layers of quantised weights for few rows: y[rows, n] = x[rows, k] W[n, k]^T, W as in
// quant_layout.cuh.
//
//   quant_linear_4_8, _4_16    codes of 4 bits, 1..8 or 1..16 rows of x (f16)
//   quant_linear_8_8, _8_16    codes of 8 bits
//   the same with _any         any group and zeros; those without: groups of 128 or more, no zeros
//
// Arguments (one struct by value) and epilogues: linear_arguments.cuh; T is f16, every pointer
// 16-byte aligned. n is a multiple of 8, of 16 for GATE_UP; k of 128.
//
// Arithmetic: a code is the bits of a subnormal f16, which the matrix units multiply exactly. Of
// each run of k that shares a scale the products with x are summed in f32, less the zero times the
// sum of x, which an mma with a constant in place of codes gives; that, times the scale, is added
// up in f32. One rounding to f16 at the end. A row's bits depend on that row and W, and on `split`;
// not on the grid, the run, or what the other rows are.
//
// Launch: grid = number of SMs, in clusters of `split` (see `divide` and `split_of`), block =
// NUM_THREADS, dynamic shared memory = shared_bytes, one block an SM. Needs sm_90a; the entry
// points exist on other machines and do nothing. Dependent launch is optional: weights are
// requested before griddepcontrol.wait.
//
//   feeder ---> ring of weights: stages of 33 KB, 8 chunks of 4 bits or 4 of 8 ---+
//   2 warps --> ring of slices of x, by cp.async -----------------------------------+--> 8 warps
//
// A warp takes an eighth of each stage's k, of all 64 rows of a tile. A stage is of one tile; up to
// 6 tiles (3 for 16 rows) share a slice of x. At the end the eight sums are added in the place of
// the weights. A pair of blocks (split 2) has half of k each, and finishes half of the tiles each.
//
// Bytes: n k bits / 8 (1 + 16 / (bits * group)) from memory; x from the L2, 2 rows k for each tile
// of a block when it has one, a third or sixth of it when it has more. 264 instructions a warp and
// stage at 4 bits and 8 rows, 185 of them on the integer units, which take two cycles for each: 740
// cycles of a scheduler, of 1,770 that a stage is on the bus.
//
// Ladder (H200s that read 4,450 to 4,650 GB/s; share of a streaming read for the linears of 20
// layers of 72B with dependent launch and stand-ins for norms and attention, at 1, 8 and 16 rows)
//   2026-11-25. mma.sync, x in registers, 8 warps, tiles of 16 rows. 4 bits 62.0, 60.3, 47.0; 8 bits
//     92.7, 90.2, 81.1.
//   wgmma with codes in registers; x copied and summed by three warps: 66.2, 62.2, 51.7. By tensor
//     map, summed on the matrix units: 73.4, 71.6, 56.6. No sums, the zero is subtracted from every
//     code: 77.6, 75.9, 67.5. Sums of all tiles added at once: 79.8, 79.9, 73.0; 8 bits 93.0, 92.2,
//     90.8. fence.proxy.async waits for all cp.async; mma.sync queues behind wgmma.
//   2026-11-28. A trace of the clock: weights were asked for 1.5 us after a block's start (barriers,
//     divisions), x came 3 us after it was asked for while the ring was being filled, and a stage
//     took 0.9 us of computing where all of it lay ready, 1.0 on the bus.
//   mma.sync with ldmatrix, 16 warps of 32 rows, codes as subnormals, x summed by two warps: 78.2,
//     77.5, 63.2. x by cp.async, summed by those who copy: 69.1, 67.4, 47.5; a slice takes 1.5 us.
//   8 warps of 64 rows, zeros subtracted: 81.7, 78.7, 66.6. Less is loaded from shared memory.
//   Each warp sums its own x by an mma with a constant: 83.2, 80.3, 66.3; a stage takes 0.6 us (0.95
//     at 16 rows), alone. 16 warps of 32 rows: 2 points less. Shifts by multiplication: slower.
//   Weights requested first, at most two stages on their way: 85.2, 82.3, 65.1; with three 83.6,
//     80.6, 64.4. More only stands in x's way. 8 bits 95.4, 94.1, 89.8.
//   Norms inside: 87.7, 84.8, 67.2; 8 bits 97.1, 95.6, 91.4.
//   Pairs, where a block has one tile: 86.4, 84.4, 71.9; so only for more than eight rows, and where
//     tiles come out more even (4096 x 11008 from 15.0 to 10.2 us).
//   A stage is given back only after its sums (another card, 4,644 GB/s): 86.0, 83.0, 70.3; 8 bits
//     96.0, 94.4, 88.3.
//   For 16 rows at 4 bits only, norms apart and inside (this form on those cards: 70.4, 69.3): wgmma
//     with codes in registers, zeros subtracted, x by cp.async, 2 warpgroups 70.3, 69.6; 4 of them
//     73.3, 69.8; with the next stage's codes loaded ahead 70.2, 70.3, or not 71.7, 71.0; x by
//     tensor map 71.4, 71.4; six tiles a pass (2 warpgroups) 70.0, 71.8. Not worth a
//     second form. With three tiles a pass there are 32 KB of x for each 99 KB of weights, 6.1 TB/s
//     from the L2 where the memory gives 4.6: perhaps that is what bounds four warpgroups; blocks
//     of a cluster that share x (multicast) have not been tried.
//   2026-11-29 (4,537 to 4,651 GB/s). o, gate and up, down and the next qkv in one cooperative
//     launch, whose blocks meet in device memory between two linears while the ring fills with the
//     next one's weights. Expected: the 18 us a layer that are lost between kernels; found at one
//     row, us a layer: 72B 123.6 before, 124.1 so; of half of it (two ranks) 73.3, 71.1; 8 bits
//     210.6, 217.4 and 113.2, 117.3. A trace (1.81 GHz): a stage is 0.98 us on the bus, and 0.95 us
//     of computing where a block has one tile (o, down), 0.68 where it has six, so that five stages
//     that wait are never caught up with. From a last stage to the next linear's first: sums 1.6 (6
//     tiles 3.3), fence and arrival 0.9, until all blocks are there 0.8 (behind gate and up 3.7), x
//     0.5. Faster computing for one tile must come first.
//   A block with one tile loads the next stage while it multiplies one (4,524 to 4,543 GB/s, before
//     and after in turn, twice): 86.8, 83.9 to 87.2, 84.7 at 1 and 8 rows; of half of it 74.6, 72.1
//     to 74.9, 72.5; 8 bits the same as before.
//   A quarter of 72B (four ranks), 59.6: 20.8 us of a layer lost. Traced by the SMs' clocks, down's
//     blocks (6 stages), us after the last block before: weights asked for -0.5, wait over 0.8, x
//     there 2.0, behind weights, first stage done 3.0, last 7.5, sums 7.8 (of pairs 1.8 after the
//     last), done 8.5, the slowest 9.4. With weights in the L2: 5.0 us and 0.5 a stage.
//   16 warps where a block has one tile. Expected: half the latency. 0.13 us a stage slower: 83.8, a
//     half 71.3, a quarter 56.7. (Better under ncu, where half of all samples await instructions.)
//   The next linear's first 1, 2, 4, 6 stages to the L2 once the last of this are asked for.
//     Expected: 2 of 3 idle us of the bus. 87.3 without, 87.6, 87.1, 85.2, 84.2; a quarter 60.7, and
//     60.9, 59.5, 58.0, 57.2: early blocks take the bus from late ones, and x waits longer.
#include "quant_finish.cuh"
#include "quant_part.cuh"
#include "quant_ring.cuh"

namespace quant {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Some warps keep the ring of x full. Not the copy engine: there x would queue behind weights.
template <int BITS, int NT, bool ANY>
__device__ inline void feed_x(const Arguments &a, const Shared<BITS, NT, ANY> &s, uint32_t warp) {
    using Slice = XSlice<BITS, NT>;
    const Share share(a, Slice::CHUNKS);
    Ring at(x_slices<BITS, NT>);
    const XCopier<BITS, NT> copier(a, warp);
    uint32_t slice = 0, pass = 0; // slices of all passes
    qwen::wait_for_predecessor();
    for (uint32_t done = 0; done < share.tiles; done += a.group, pass++) {
        if (pass > 0)
            barrier_wait(s.pass_done, (pass - 1) & 1);
        for (uint32_t k = share.begin * CHUNK_K; k < share.end * CHUNK_K;
             k += slice_k<BITS>, slice++, at.next()) {
            if (slice >= at.size)
                barrier_wait(s.x_empty + 8 * at.at, at.parity ^ 1);
            copier.copy(s.x + at.at * Slice::BYTES, k);
            arrive_when_copied(s.x_ready + 8 * at.at);
        }
    }
}

// One warp: what the rows of a normalised x must still be multiplied by.
__device__ inline void scale_rows(const Arguments &a, float *scales, uint32_t scaled) {
    qwen::wait_for_predecessor();
    for (uint32_t row = 0; row < a.rows; row++) {
        const float scale = row_scale<__half>(a, row);
        if (threadIdx.x % 32 == 0)
            scales[row] = scale;
    }
    if (threadIdx.x % 32 == 0)
        barrier_arrive(scaled);
}

template <int BITS, int NT, bool ANY> struct Consumer {
    using Slice = XSlice<BITS, NT>;
    using Blocks = Part<BITS, NT, ANY>;
    using Sums = float[Blocks::BLOCKS][NT][4];
    using X = Operand<BITS, NT, ANY>;
    // A block with one tile loads the next stage while it multiplies one.
    static constexpr bool PIPELINES = NT == 1 && !ANY;
    static constexpr uint32_t GROUP = group_tiles<NT>;
    static constexpr bool LOADS_AHEAD = NT == 1; // there is no room for 16 rows
    const Arguments &a;
    const Shared<BITS, NT, ANY> &s;
    const Packed packed;
    uint32_t part, lane; // its warp is its part

    __device__ Consumer(const Arguments &a, const Shared<BITS, NT, ANY> &s, uint32_t warp)
        : a(a), s(s), packed(BITS, a.k, ANY ? a.groups : 1, ANY && a.has_zeros), part(warp),
          lane(threadIdx.x % 32) {}

    __device__ void arrive(uint32_t barrier, uint32_t after = 0) const {
        __syncwarp();
        if (lane == 0)
            barrier_arrive(barrier + after);
    }
    // 0, which the compiler cannot know, and not before all loads that these sums are made of have
    // returned: else an arrival could come before them (see `release` in skinny_linear.cu).
    __device__ uint32_t zero_after(const Sums &acc) const {
        uint32_t bits = 0;
#pragma unroll
        for (uint32_t block = 0; block < Blocks::BLOCKS; block++)
            bits |= __float_as_uint(acc[block][0][0]) | __float_as_uint(acc[block][0][2]);
        return bits & a.rows >> 31;
    }
    // Adds the parts' sums of some tiles, always in the same order, and finishes them; ROUND tiles
    // at once, at `sums`. `ahead` is for the warp's first item.
    template <uint32_t ROUND, uint32_t MOST>
    __device__ void reduce(float4 *sums, uint32_t first, uint32_t tiles, const Sums (&acc)[MOST],
                           Ahead &ahead) const;
    // The same of a pair's tiles, each of which one of the two finishes.
    template <uint32_t MOST>
    __device__ void reduce_pair(const Share &share, const Sums (&acc)[MOST], Ahead &ahead) const;
    // Of a share's tiles those that this block finishes.
    struct Owned {
        uint32_t first, tiles;
    };
    __device__ Owned owned(const Share &share) const {
        const uint32_t half = (share.tiles + 1) / 2;
        if (a.split == 1)
            return {0, share.tiles};
        return Share::rank(a) == 0 ? Owned{0, half} : Owned{half, share.tiles - half};
    }
    template <uint32_t COUNT>
    __device__ void finish_block(const float4 *sums, const Item &item, const Ahead &ahead) const;

    // A stage of one tile and its slice of x, in registers.
    struct Stage {
        Blocks weights;
        X x;
    };
    // The places in both rings of the stage that comes next.
    struct Places {
        Ring weights, x;
        __device__ void next() { weights.next(), x.next(); }
    };
    __device__ bool is_there(const Places &at) const {
        return barrier_is_over(s.full + 8 * at.weights.at, at.weights.parity) &&
               barrier_is_over(s.x_ready + 8 * at.x.at, at.x.parity);
    }
    __device__ void load(Stage &to, Places &at, bool has_weights) const {
        const uint32_t chunk = part * part_k<BITS> / CHUNK_K;
        barrier_wait(s.full + 8 * at.weights.at, at.weights.parity);
        to.weights.load(a, packed,
                        s.weights + at.weights.at * s.stage_bytes(packed) +
                            chunk * packed.chunk_bytes,
                        0, part, has_weights);
        barrier_wait(s.x_ready + 8 * at.x.at, at.x.parity);
        to.x = X(s.x + at.x.at * Slice::BYTES, part, Slice::lane_offset());
        at.next();
    }
    // The whole of a share of one tile. While a stage is multiplied the next one is loaded, if it
    // is there.
    __device__ void run_one(const Share &share) const {
        Sums acc[1] = {};
        Ahead ahead;
        ahead.load(a, Item::number<NT>((share.first + owned(share).first) * TILE_ROWS, part));
        const uint32_t chunk = part * part_k<BITS> / CHUNK_K; // of a stage
        Places at = {Ring(s.num_stages(packed)), Ring(x_slices<BITS, NT>)}, next = at;
        Stage even, odd;
        uint32_t k = share.begin;
        const auto step = [&](Stage &now, Stage &after) {
            k += Slice::CHUNKS;
            const bool goes_on = k < share.end, is_early = goes_on && is_there(next);
            if (is_early)
                load(after, next, k + chunk < share.end);
            now.x.add_up();
            now.weights.add_to(acc[0], now.x);
            const uint32_t used = zero_after(acc[0]);
            arrive(s.empty + 8 * at.weights.at, used), arrive(s.x_empty + 8 * at.x.at, used);
            at.next();
            if (goes_on && !is_early)
                load(after, next, k + chunk < share.end);
            return goes_on;
        };
        if (k < share.end) {
            load(even, next, k + chunk < share.end);
#pragma unroll 1
            while (step(even, odd) && step(odd, even))
                ;
        }
        if (a.split == 2)
            reduce_pair(share, acc, ahead);
        else
            reduce<1>(s.template at<float4>(s.weights), share.first, 1, acc, ahead);
    }

    __device__ void run() const {
        const Share share(a, Slice::CHUNKS);
        if constexpr (PIPELINES)
            if (share.tiles == 1) {
                qwen::wait_for_predecessor();
                return run_one(share);
            }
        const uint32_t stage_bytes = s.stage_bytes(packed), lane_offset = Slice::lane_offset();
        const uint32_t chunk = part * part_k<BITS> / CHUNK_K; // of a stage
        Ring at(s.num_stages(packed)), x_at(x_slices<BITS, NT>);
        qwen::wait_for_predecessor();
        for (uint32_t done = 0; done < share.tiles; done += a.group) {
            const uint32_t tiles = min(share.tiles - done, a.group);
            Sums acc[GROUP] = {};
            Ahead ahead;
            if (LOADS_AHEAD)
                ahead.load(a, Item::number<NT>(
                                  (share.first + done + owned(share).first) * TILE_ROWS, part));
            for (uint32_t k = share.begin; k < share.end; k += Slice::CHUNKS) {
                barrier_wait(s.x_ready + 8 * x_at.at, x_at.parity);
                X x(s.x + x_at.at * Slice::BYTES, part, lane_offset);
                x.add_up();
                uint32_t used = 0;
#pragma unroll
                for (uint32_t t = 0; t < GROUP; t++) {
                    if (t >= tiles)
                        break;
                    barrier_wait(s.full + 8 * at.at, at.parity);
                    const uint32_t from =
                        s.weights + at.at * stage_bytes + chunk * packed.chunk_bytes;
#pragma unroll
                    for (uint32_t block = 0; block < Blocks::BLOCKS; block += Blocks::COUNT) {
                        Blocks weights;
                        weights.load(a, packed, from, block, part, k + chunk < share.end);
                        weights.add_to(acc[t] + block, x);
                    }
                    // Of the slice of x, too, this was the last use so far.
                    used = zero_after(acc[t]);
                    arrive(s.empty + 8 * at.at, used);
                    at.next();
                }
                arrive(s.x_empty + 8 * x_at.at, used);
                x_at.next();
            }
            // After the last pass the ring of weights is free.
            if (a.split == 2)
                reduce_pair(share, acc, ahead);
            else if (done + a.group < share.tiles)
                reduce<x_bytes<NT> / tile_sums_bytes<NT>>(s.template at<float4>(s.x),
                                                          share.first + done, tiles, acc, ahead);
            else
                reduce<GROUP>(s.template at<float4>(s.weights), share.first + done, tiles, acc,
                              ahead);
        }
    }
};

__device__ inline void consumers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(NUM_CONSUMERS) : "memory");
}

__device__ inline float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <int BITS, int NT, bool ANY>
template <uint32_t COUNT>
__device__ inline void Consumer<BITS, NT, ANY>::finish_block(const float4 *sums, const Item &item,
                                                             const Ahead &ahead) const {
    float4 sum = sums[0];
#pragma unroll
    for (uint32_t p = 1; p < COUNT; p++)
        sum = sum + sums[p * 32];
    const float *of_rows = s.template at<float>(s.scales) + item.row;
    const float scales[2] = {a.normalised ? of_rows[0] / UNIT : 1 / UNIT,
                             a.normalised ? of_rows[1] / UNIT : 1 / UNIT};
    float y[4] = {sum.x * scales[0], sum.y * scales[1], sum.z * scales[0], sum.w * scales[1]};
    finish(a, item, y, ahead);
}

template <int BITS, int NT, bool ANY>
template <uint32_t ROUND, uint32_t MOST>
__device__ inline void Consumer<BITS, NT, ANY>::reduce(float4 *sums, uint32_t first, uint32_t tiles,
                                                       const Sums (&acc)[MOST],
                                                       Ahead &ahead) const {
    sums += lane; // [tile][16 rows of W, eight rows of x][part][lane]: what a lane has of them
#pragma unroll
    for (uint32_t begin = 0; begin < MOST; begin += ROUND) {
        if (begin >= tiles)
            break;
        consumers_sync(); // what was there has been read
#pragma unroll
        for (uint32_t t = begin; t < MOST && t < begin + ROUND; t++)
#pragma unroll
            for (int i = 0; i < 4 * NT; i++) {
                const float(&v)[4] = acc[t][i / NT][i % NT];
                if (t < tiles)
                    sums[(((t - begin) * 4 * NT + i) * PARTS + part) * 32] =
                        make_float4(v[0], v[1], v[2], v[3]);
            }
        consumers_sync();
        if (a.normalised)
            barrier_wait(s.scaled, 0);
#pragma unroll 1
        for (uint32_t i = part; i < min(tiles - begin, ROUND) * 4 * NT; i += PARTS) {
            const Item item = Item::number<NT>((first + begin) * TILE_ROWS, i);
            if (!LOADS_AHEAD || begin > 0 || i >= PARTS)
                ahead.load(a, item);
            finish_block<PARTS>(sums + i * PARTS * 32, item, ahead);
        }
    }
    arrive(s.pass_done);
}

template <int BITS, int NT, bool ANY>
template <uint32_t MOST>
__device__ inline void Consumer<BITS, NT, ANY>::reduce_pair(const Share &share,
                                                            const Sums (&acc)[MOST],
                                                            Ahead &ahead) const {
    constexpr uint32_t BLOCKS = 4 * NT, COUNT = 2 * PARTS; // of a tile, of sums of each
    const uint32_t rank = Share::rank(a), half = (share.tiles + 1) / 2;
    // The other block may write where this one's weights were.
    __syncwarp();
    if (lane == 0)
        arrive_there(address_in(s.may_write, rank ^ 1));
    consumers_sync();
    wait_for_cluster(s.may_write);
#pragma unroll
    for (uint32_t t = 0; t < PAIR_TILES && t < MOST; t++)
        if (t < share.tiles) {
            const uint32_t owner = t >= half, tile = t - owner * half;
            const uint32_t to = address_in(s.weights, owner) +
                                ((tile * BLOCKS * COUNT + rank * PARTS + part) * 32 + lane) * 16;
#pragma unroll
            for (int i = 0; i < int(BLOCKS); i++)
                store_there(to + i * COUNT * 512, acc[t][i / NT][i % NT]);
        }
    __syncwarp();
    if (lane < 2)
        arrive_there(address_in(s.written, lane));
    // Whoever has seen this has nothing more to expect of the other block, and may end.
    wait_for_cluster(s.written);
    if (a.normalised)
        barrier_wait(s.scaled, 0);
    const Owned mine = owned(share);
    const float4 *sums = s.template at<float4>(s.weights) + lane;
#pragma unroll 1
    for (uint32_t i = part; i < mine.tiles * BLOCKS; i += PARTS) {
        const Item item = Item::number<NT>((share.first + mine.first) * TILE_ROWS, i);
        if (!LOADS_AHEAD || i >= PARTS)
            ahead.load(a, item);
        finish_block<COUNT>(sums + i * COUNT * 32, item, ahead);
    }
}

template <int BITS, int NT, bool ANY> __device__ inline void linear(const Arguments &a) {
    extern __shared__ __align__(1024) unsigned char memory[];
    // Registers of a thread that multiplies and of the others: they start with 168 each.
    constexpr int MORE = NT == 2 && !ANY ? 224 : 208, FEWER = 3 * 168 - 2 * MORE;
    const Shared<BITS, NT, ANY> s(memory);
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be uniform
    Feeder<BITS, NT, ANY> feeder(a, s);
    bool feeds = false;
    if (warp == PARTS) {
        // Weights first: until they are on their way the bus is idle.
        feeds = skinny::elect();
        if (feeds) {
            s.init_barriers(feeder.at.size);
            feeder.begin();
            qwen::release_successor();
        }
    }
    if (a.split == 2)
        cluster_sync(); // the other's barriers are there, too
    else
        __syncthreads();
    if (warp < PARTS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MORE));
        Consumer<BITS, NT, ANY>(a, s, warp).run();
        return;
    }
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEWER));
    if (feeds)
        feeder.run();
    else if (warp > PARTS && warp <= PARTS + X_FEEDERS)
        feed_x<BITS, NT, ANY>(a, s, warp - PARTS - 1);
    else if (warp > PARTS + X_FEEDERS && a.normalised)
        scale_rows(a, s.template at<float>(s.scales), s.scaled);
}
#else
template <int BITS, int NT, bool ANY> __device__ inline void linear(const Arguments &) {}
#endif

} // namespace quant

#define QUANT_ENTRY(name, BITS, NT, ANY)                                                           \
    extern "C" __global__ void __launch_bounds__(quant::NUM_THREADS, 1)                            \
        name(const __grid_constant__ qwen::linear::Arguments a) {                                  \
        quant::linear<BITS, NT, ANY>(a);                                                           \
    }

QUANT_ENTRY(quant_linear_4_8, 4, 1, false)
QUANT_ENTRY(quant_linear_4_16, 4, 2, false)
QUANT_ENTRY(quant_linear_8_8, 8, 1, false)
QUANT_ENTRY(quant_linear_8_16, 8, 2, false)
QUANT_ENTRY(quant_linear_4_8_any, 4, 1, true)
QUANT_ENTRY(quant_linear_4_16_any, 4, 2, true)
QUANT_ENTRY(quant_linear_8_8_any, 8, 1, true)
QUANT_ENTRY(quant_linear_8_16_any, 8, 2, true)
