// y[rows, N] = x[rows, K] W[N, K]^T for few rows, at the speed of the memory bus.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace skinny {

constexpr int TILE_ROWS = 16;           // weight rows of one mma: the m of m16n8k16
constexpr int SLICE_K = 512;            // k of one stage
constexpr int STAGE_PITCH = SLICE_K * 2 + 64; // 64 mod 128: a quarter-warp reads two rows without conflict
constexpr int STAGE_BYTES = TILE_ROWS * STAGE_PITCH;
#ifndef SKINNY_STAGES
#define SKINNY_STAGES 6
#endif
#ifndef SKINNY_WARPS
#define SKINNY_WARPS 4
#endif
#ifndef SKINNY_EARLY
#define SKINNY_EARLY 6
#endif
#ifndef SKINNY_PREFETCH
#define SKINNY_PREFETCH 0
#endif
constexpr int NUM_STAGES = SKINNY_STAGES;
#ifndef SKINNY_FEEDERS
#define SKINNY_FEEDERS 2
#endif
constexpr int NUM_WARPS = SKINNY_WARPS; // that multiply
constexpr int NUM_FEEDERS = SKINNY_FEEDERS; // warps that request weights, each its rows of a tile
constexpr int NUM_THREADS = (NUM_WARPS + NUM_FEEDERS) * 32;
constexpr int FEEDER_ROWS = TILE_ROWS / NUM_FEEDERS;
constexpr int WARP_K = SLICE_K / NUM_WARPS;
constexpr int WARP_BLOCKS = WARP_K / 32; // one 16-byte load of a lane covers 32 k of its row
constexpr int GROUP_TILES = 16;          // most tiles that share one pass over x
constexpr int CONSUMER_BARRIER = 1;
constexpr int ROUND_TILES = 2;           // tiles reduced at a time while the ring is busy
constexpr int TILE_VALUES = TILE_ROWS * 8;
constexpr int SCRATCH_PITCH = TILE_ROWS + 4; // of one row of x; stores of a warp do not conflict
constexpr int SCRATCH_TILE = 8 * SCRATCH_PITCH;
constexpr int EARLY_UNITS = SKINNY_EARLY; // units still to be requested when the successor may start
constexpr int PREFETCH_UNITS = SKINNY_PREFETCH;

enum Epilogue : uint32_t { BIAS = 0, STORE_F32 = 1, ADD_F32 = 2, GATE_UP = 3 };

struct Arguments {
    const void *weights, *x;
    const float *bias;
    void *out;
    float *partials;
    uint32_t *counters;
    uint32_t rows, n, k, epilogue;
};

// Shared memory of a block with MT tiles of eight rows of x: ring, reduction scratch, barriers.
template <int MT> constexpr int scratch_bytes = NUM_WARPS * ROUND_TILES * MT * SCRATCH_TILE * 4;
template <int MT>
constexpr int shared_bytes = NUM_STAGES * STAGE_BYTES + scratch_bytes<MT> + NUM_STAGES * 16 + 16;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ inline uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void barrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

// The fence makes initialised barriers visible to the copy engine, which is another proxy.
__device__ inline void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void barrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ inline void barrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

// Returns when the phase with this parity is over; try_wait sleeps in hardware between polls.
__device__ inline void barrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(bar), "r"(parity) : "memory");
}

__device__ inline uint64_t evict_first_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// One row segment, by the copy engine: no registers are held while it is on its way. Weights are
// read once, so they leave the L2 first and x and the partial sums stay.
__device__ inline void copy_row(uint32_t to, const void *from, uint32_t bytes, uint32_t bar,
                                uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}

__device__ inline void prefetch_row(const void *from, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// One lane of the warp, in a way that lets the compiler keep addresses in uniform registers.
__device__ inline bool elect() {
    uint32_t elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(elected));
    return elected;
}

__device__ inline void wait_for_predecessors() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ inline void allow_successors() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ inline void consumers_sync() {
    asm volatile("bar.sync %0, %1;" ::"n"(CONSUMER_BARRIER), "n"(NUM_WARPS * 32) : "memory");
}

__device__ inline uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
    return v;
}

__device__ inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void narrow(float v, __nv_bfloat16 *to) { *to = __float2bfloat16_rn(v); }
__device__ inline void narrow(float v, __half *to) { *to = __float2half_rn(v); }

// How the matrix is cut. A unit is one stage: 16 rows x 512 k. Units are numbered group by group,
// in a group slice by slice of k, in a slice tile by tile, and each block takes an equal run.
struct Plan {
    uint32_t tiles, slices, units, blocks;
    uint32_t share, longer; // units of a block; the first `longer` blocks take one more
    uint32_t group;         // tiles of every group but the last

    __device__ Plan(uint32_t n, uint32_t k) {
        tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
        slices = (k + SLICE_K - 1) / SLICE_K;
        units = tiles * slices;
        blocks = min(units, gridDim.x);
        share = units / blocks;
        longer = units - share * blocks;
        group = min((4 * tiles + blocks - 1) / blocks, GROUP_TILES); // about four blocks share one
    }
    __device__ uint32_t begin(uint32_t block) const { return block * share + min(block, longer); }
    __device__ uint32_t block_of(uint32_t unit) const {
        uint32_t border = longer * (share + 1);
        return unit < border ? unit / (share + 1) : longer + (unit - border) / share;
    }
    __device__ uint32_t group_begin(uint32_t g) const { return g * group * slices; }
    __device__ uint32_t group_of(uint32_t unit) const { return unit / (group * slices); }
    __device__ uint32_t group_tiles(uint32_t g) const { return min(tiles - g * group, group); }
};

// A place in the ring and the parity of its current turn.
struct Ring {
    uint32_t stage = 0, parity = 0;
    __device__ void next() {
        if (++stage == NUM_STAGES) stage = 0, parity ^= 1;
    }
};

struct Shared {
    uint32_t ring, full, empty;
    float *scratch, *drained; // drained: the ring, once nothing is on its way any more
    uint32_t *flag;

    template <int MT> __device__ static Shared carve(unsigned char *base) {
        Shared s;
        s.ring = shared_address(base);
        unsigned char *after = base + NUM_STAGES * STAGE_BYTES;
        s.scratch = reinterpret_cast<float *>(after);
        s.drained = reinterpret_cast<float *>(base);
        s.full = shared_address(after + scratch_bytes<MT>);
        s.empty = s.full + NUM_STAGES * 8;
        s.flag = reinterpret_cast<uint32_t *>(after + scratch_bytes<MT> + NUM_STAGES * 16);
        return s;
    }
    __device__ void init_barriers() const {
        for (int i = 0; i < NUM_STAGES; i++) {
            barrier_init(full + 8 * i, NUM_FEEDERS);
            barrier_init(empty + 8 * i, NUM_WARPS);
        }
        barrier_init_fence();
    }
};

// Walks the units of a block in order.
struct Walk {
    uint32_t group, tiles, slice, tile;
    __device__ Walk(const Plan &plan, uint32_t unit) {
        group = plan.group_of(unit);
        tiles = plan.group_tiles(group);
        uint32_t inside = unit - plan.group_begin(group);
        slice = inside / tiles, tile = inside % tiles;
    }
    __device__ void next(const Plan &plan) {
        if (++tile < tiles) return;
        tile = 0;
        if (++slice < plan.slices) return;
        slice = 0, tiles = plan.group_tiles(++group);
    }
};

// The rows of a unit that one feeder requests.
struct Rows {
    const char *from;
    uint64_t pitch;
    uint32_t bytes, count; // of a row segment; of rows that exist
    __device__ Rows(const Arguments &a, const Plan &plan, const Walk &at, uint32_t feeder) {
        uint32_t first = (at.group * plan.group + at.tile) * TILE_ROWS + feeder * FEEDER_ROWS;
        uint32_t k = at.slice * SLICE_K;
        count = first < a.n ? min(a.n - first, FEEDER_ROWS) : 0;
        bytes = min(a.k - k, SLICE_K) * 2;
        pitch = static_cast<uint64_t>(a.k) * 2;
        from = static_cast<const char *>(a.weights) + first * pitch + k * 2;
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
    __device__ void prefetch() const {
        for (uint32_t r = 0; r < count; r++) prefetch_row(from + r * pitch, bytes);
    }
};

// One thread of a feeding warp: keeps the ring full, from before the predecessor has ended.
__device__ inline void feed(const Arguments &a, const Plan &plan, const Shared &s,
                            uint32_t feeder) {
    uint32_t unit = plan.begin(blockIdx.x), end = plan.begin(blockIdx.x + 1);
    uint32_t trigger = end - min(end - unit, EARLY_UNITS);
    uint64_t policy = evict_first_policy();
    Ring at;
    Walk walk(plan, unit), ahead = walk;
    uint32_t to = s.ring + feeder * FEEDER_ROWS * STAGE_PITCH;
    for (uint32_t i = 0; unit < end; unit++, i++, walk.next(plan), at.next()) {
        if (unit == trigger) allow_successors();
        if (i >= NUM_STAGES) barrier_wait(s.empty + 8 * at.stage, at.parity ^ 1);
        Rows(a, plan, walk, feeder).copy(to + at.stage * STAGE_BYTES, s.full + 8 * at.stage, policy);
        if (PREFETCH_UNITS > 0 && i + 1 == NUM_STAGES) {
            ahead = walk;
            for (uint32_t u = unit + 1; u < end && u <= unit + PREFETCH_UNITS; u++) {
                ahead.next(plan);
                Rows(a, plan, ahead, feeder).prefetch();
            }
        }
    }
}

// What one warp multiplies by in a slice: its 64 k of every row of x, as mma operands. The lane
// of row g and place t holds x[g][32 b + 8 t .. + 8]: the k of an mma are permuted alike in
// both operands, so that one 16-byte load serves two mma.
template <int MT> struct Multiplier {
    uint4 v[MT][WARP_BLOCKS];
    uint32_t blocks; // of 32 k; the rest of the stage is not written where k ends
    __device__ void load(const Arguments &a, uint32_t slice, uint32_t warp, uint32_t lane) {
        uint32_t k = slice * SLICE_K + warp * WARP_K;
        blocks = k < a.k ? min((a.k - k) / 32, WARP_BLOCKS) : 0;
#pragma unroll
        for (int m = 0; m < MT; m++) {
            uint32_t row = m * 8 + lane / 4;
            const char *from = static_cast<const char *>(a.x) +
                               (static_cast<uint64_t>(row) * a.k + k + lane % 4 * 8) * 2;
#pragma unroll
            for (int b = 0; b < WARP_BLOCKS; b++) {
                v[m][b] = make_uint4(0, 0, 0, 0);
                if (row < a.rows && k + 32 * b < a.k)
                    v[m][b] = __ldcg(reinterpret_cast<const uint4 *>(from + 64 * b));
            }
        }
    }
};

// acc += the tile in this stage times x. Two chains of mma, for half the latency.
template <typename T, int MT>
__device__ inline void multiply(float (&acc)[MT][4], uint32_t stage, const Multiplier<MT> &x) {
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
        for (int i = 0; i < 4; i++) acc[m][i] += odd[m][i];
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
    if (n >= a.n) return; // the last tile may have eight rows only
    uint64_t at = static_cast<uint64_t>(row) * a.n + n;
    float4 *wide = reinterpret_cast<float4 *>(static_cast<float *>(a.out) + at);
    if (a.epilogue == STORE_F32) *wide = y;
    else if (a.epilogue == ADD_F32) *wide = *wide + y;
    else store_rounded<T>(a.out, at, a.bias ? y + *reinterpret_cast<const float4 *>(a.bias + n) : y);
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
        store_rounded<T>(a.out, at, make_float4(gated(y0.x, y1.x), gated(y0.y, y1.y),
                                                gated(y0.z, y1.z), gated(y0.w, y1.w)));
    } else {
        store<T>(a, item.row, tile * TILE_ROWS + item.r, y0);
        store<T>(a, item.row, tile * TILE_ROWS + item.r + 8, y1);
    }
}

// Where a block leaves its share of a group that it does not own alone: two places a block, for
// the group its run starts in and the one it ends in. [tile][row of x][16].
template <int MT>
__device__ inline float4 *partial(const Arguments &a, const Plan &plan, uint32_t block,
                                  uint32_t group, Item item) {
    uint32_t place = 2 * block + (plan.begin(block) < plan.group_begin(group));
    uint32_t inside = (item.tile * MT * 8 + item.row) * TILE_ROWS + item.r;
    return reinterpret_cast<float4 *>(
        a.partials + static_cast<uint64_t>(place) * GROUP_TILES * MT * TILE_VALUES + inside);
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

// Sums the warps' accumulators of a group, ROUND tiles at a time, always in the same order.
template <typename T, int MT, int ROUND>
__device__ inline void reduce_warps(const Arguments &a, const Plan &plan, uint32_t group,
                                    bool alone, const float (&acc)[GROUP_TILES][MT][4],
                                    float *scratch) {
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, tiles = plan.group_tiles(group);
#pragma unroll
    for (int first = 0; first < GROUP_TILES; first += ROUND) {
        if (first >= tiles) break;
        consumers_sync();
#pragma unroll
        for (int t = 0; t < ROUND; t++)
            if (first + t < tiles)
                spill<MT>(acc[first + t], scratch + (warp * ROUND + t) * MT * SCRATCH_TILE, lane);
        consumers_sync();
        for (uint32_t i = threadIdx.x; i < ROUND * MT * 16; i += NUM_WARPS * 32) {
            Item item = Item::number<MT>(i);
            const float *from = scratch + (item.tile * MT * 8 + item.row) * SCRATCH_PITCH + item.r;
            item.tile += first;
            if (item.row >= a.rows || item.tile >= tiles) continue;
            float4 y0 = {}, y1 = {};
#pragma unroll
            for (int w = 0; w < NUM_WARPS; w++, from += ROUND * MT * SCRATCH_TILE) {
                y0 = y0 + *reinterpret_cast<const float4 *>(from);
                y1 = y1 + *reinterpret_cast<const float4 *>(from + 8);
            }
            if (alone) {
                finish<T>(a, group * plan.group + item.tile, item, y0, y1);
            } else {
                float4 *to = partial<MT>(a, plan, blockIdx.x, group, item);
                __stcg(to, y0), __stcg(to + 2, y1);
            }
        }
    }
}

// True in the block that arrives last at a shared group; all partial sums are then visible: the
// barrier orders the block's stores before its thread 0's release, and what that thread acquires
// before the other threads' loads.
__device__ inline bool last_to_arrive(uint32_t *counter, uint32_t arrivals, uint32_t *flag) {
    consumers_sync();
    if (threadIdx.x == 0) {
        uint32_t before;
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                     : "=r"(before) : "l"(counter) : "memory");
        *flag = before + 1 == arrivals;
        if (*flag) *counter = 0; // for the next launch
    }
    consumers_sync();
    return *flag;
}

// The last block sums the shares of a group in the order of k, whoever arrived when.
template <typename T, int MT>
__device__ inline void combine(const Arguments &a, const Plan &plan, uint32_t group,
                               uint32_t first_block, uint32_t last_block) {
    uint32_t tiles = plan.group_tiles(group);
    for (uint32_t i = threadIdx.x; i < tiles * MT * 16; i += NUM_WARPS * 32) {
        Item item = Item::number<MT>(i);
        if (item.row >= a.rows) continue;
        float4 y0 = {}, y1 = {};
#pragma unroll 4
        for (uint32_t b = first_block; b <= last_block; b++) {
            const float4 *from = partial<MT>(a, plan, b, group, item);
            y0 = y0 + __ldcg(from), y1 = y1 + __ldcg(from + 2);
        }
        finish<T>(a, group * plan.group + item.tile, item, y0, y1);
    }
}

// The multiplying warps: each takes an equal share of the k of every stage.
template <typename T, int MT>
__device__ inline void consume(const Arguments &a, const Plan &plan, const Shared &s) {
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t offset = s.ring + lane / 4 * STAGE_PITCH + warp * WARP_K * 2 + lane % 4 * 16;
    uint32_t begin = plan.begin(blockIdx.x), end = plan.begin(blockIdx.x + 1);
    Ring at;
    wait_for_predecessors();
    for (uint32_t unit = begin; unit < end;) {
        Walk walk(plan, unit);
        uint32_t group_begin = plan.group_begin(walk.group);
        uint32_t group_end = group_begin + walk.tiles * plan.slices;
        uint32_t stop = group_end < end ? group_end : end;
        float acc[GROUP_TILES][MT][4] = {};
        // In units of this group from here on; one turn of the loop is one slice of k.
        for (; unit < stop; walk.slice++, walk.tile = 0) {
            Multiplier<MT> x;
            x.load(a, walk.slice, warp, lane);
            uint32_t count = walk.tiles - walk.tile;
            if (count > stop - unit) count = stop - unit;
#pragma unroll
            for (int t = 0; t < GROUP_TILES; t++) {
                if (t - walk.tile >= count) continue; // unsigned: also skips t < walk.tile
                barrier_wait(s.full + 8 * at.stage, at.parity);
                multiply<T, MT>(acc[t], offset + at.stage * STAGE_BYTES, x);
                __syncwarp();
                if (lane == 0) barrier_arrive(s.empty + 8 * at.stage);
                at.next();
            }
            unit += count;
        }
        uint32_t first = plan.block_of(group_begin), last = plan.block_of(group_end - 1);
        bool alone = first == last;
        if (unit < end) reduce_warps<T, MT, ROUND_TILES>(a, plan, walk.group, alone, acc, s.scratch);
        else reduce_warps<T, MT, GROUP_TILES>(a, plan, walk.group, alone, acc, s.drained);
        if (!alone && last_to_arrive(a.counters + walk.group, last - first + 1, s.flag))
            combine<T, MT>(a, plan, walk.group, first, last);
    }
}

template <typename T, int MT> __device__ inline void linear(const Arguments &a) {
    extern __shared__ __align__(128) unsigned char memory[];
    Plan plan(a.n, a.k);
    if (blockIdx.x >= plan.blocks) return;
    Shared s = Shared::carve<MT>(memory);
    if (threadIdx.x == 0) s.init_barriers();
    __syncthreads();
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be uniform
    if (warp < NUM_WARPS) consume<T, MT>(a, plan, s);
    else if (elect()) feed(a, plan, s, warp - NUM_WARPS);
}
#else
template <typename T, int MT> __device__ inline void linear(const Arguments &) {}
#endif

} // namespace skinny

extern "C" {
__global__ void __launch_bounds__(skinny::NUM_THREADS, 2) skinny_linear_bf16_8(const __grid_constant__ skinny::Arguments a) {
    skinny::linear<__nv_bfloat16, 1>(a);
}
__global__ void __launch_bounds__(skinny::NUM_THREADS, 2) skinny_linear_f16_8(const __grid_constant__ skinny::Arguments a) {
    skinny::linear<__half, 1>(a);
}
__global__ void __launch_bounds__(skinny::NUM_THREADS, 1) skinny_linear_bf16_16(const __grid_constant__ skinny::Arguments a) {
    skinny::linear<__nv_bfloat16, 2>(a);
}
__global__ void __launch_bounds__(skinny::NUM_THREADS, 1) skinny_linear_f16_16(const __grid_constant__ skinny::Arguments a) {
    skinny::linear<__half, 2>(a);
}
}
