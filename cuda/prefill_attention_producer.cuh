// Hopper's prefill attention, the supply side: what lies in shared memory, in which order a block
// takes its tiles, and the warp that copies queries, keys and values in. prefill_attention_sm90.cu
// consumes.
#pragma once

#include "hopper.cuh"
#include "prefill_attention.cuh"

namespace qwen::prefill::sm90 {

constexpr int KEY_TILE = 128;
constexpr int TILE_PAGES = KEY_TILE / PAGE_TOKENS;
constexpr int STAGES = 2; // key tiles and value tiles in flight, each
constexpr int CONSUMERS = 2;
constexpr int GROUP_ROWS = ROW_TILE / CONSUMERS;
constexpr int THREADS = 128 * (1 + CONSUMERS);
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8; // what ptxas gives every thread
static_assert(GROUP_ROWS == 64, "a warpgroup owns one m64 tile");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <=
                  (1 + CONSUMERS) * LAUNCH_REGISTERS,
              "consumers wait forever for registers that the block was not launched with");

// Tiles as TMA writes them: [D / 64][rows][64] with 128-byte swizzle.
template <int D> struct alignas(1024) Shared {
    uint8_t q[STAGES][ROW_TILE * D * 2];
    uint8_t k[STAGES][KEY_TILE * D * 2];
    uint8_t v[STAGES][KEY_TILE * D * 2];
    uint64_t tail_full, q_full[STAGES], q_empty[STAGES];
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    Tile tile[STAGES]; // travels with the queries: written before q_full, read before q_empty
};

template <int D> constexpr int shared_bytes() {
    static_assert(sizeof(Shared<D>) <= 1552 * D, "the launch contract");
    return 1552 * D;
}

// What a launch is about, as passed by the host.
struct Work {
    const uint32_t *cu_seqlens, *context_lens, *block_table;
    uint32_t *counter;
    int max_pages, num_seqs, num_heads, num_kv_heads;
    uint32_t flags;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace hopper;

constexpr int CONSUMER_WARPS = 4 * CONSUMERS; // each arrives once when it is done with a buffer

// A place in a ring of STAGES buffers; the phase flips each time round.
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES)
            stage = 0, phase ^= 1;
    }
};

// One lane of each warp says that the warp is done with a buffer.
__device__ __forceinline__ void release(uint64_t &barrier) {
    if (lane_index() == 0)
        barrier_arrive(barrier);
}

// The unit's row tile and head. Within a sequence, heads are taken in sections whose keys and
// values fit in the L2 together; in a section the row tiles with most keys come first.
template <int D> __device__ __forceinline__ Tile choose_tile(const Work &work, int unit) {
    constexpr int SECTION_BYTES = 24 << 20;
    const Owner owner = find_owner(work.cu_seqlens, work.context_lens, work.num_seqs, work.flags,
                                   work.num_heads, unit);
    if (owner.sequence < 0)
        return Tile{0, 0, 0, -1};
    const int head_bytes = int(work.context_lens[owner.sequence]) * 4 * D;
    const int queries_per_key = work.num_heads / work.num_kv_heads;
    const int section = max(1, SECTION_BYTES / head_bytes) * queries_per_key;
    const int first_head = owner.within / (section * owner.tiles) * section;
    const int heads = min(section, work.num_heads - first_head);
    const int index = owner.within - first_head * owner.tiles;
    return make_tile(work.cu_seqlens, work.context_lens, owner, owner.tiles - 1 - index / heads,
                     first_head + index % heads);
}

// The producer warp's view of one tile's keys and values.
template <int D> struct Pages {
    const CUtensorMap *map;
    int kv_head, num_kv_heads, context;

    // Fills one stage with keys (value = 0) or values (1) of a key tile. Lane i knows page i of the
    // tile; a page's 16 rows land one under the other as 16 rows of the swizzled tile.
    __device__ __forceinline__ void load(uint8_t *stage, uint64_t &full, int first_key,
                                         uint32_t page, int value) const {
        const int pages = min(TILE_PAGES, ceil_div(context - first_key, PAGE_TOKENS));
        int rows[TILE_PAGES];
#pragma unroll
        for (int i = 0; i < TILE_PAGES; ++i)
            rows[i] =
                int((__shfl_sync(~0u, page, i) * 2 + value) * num_kv_heads + kv_head) * PAGE_TOKENS;
        if (!elect_one())
            return;
        barrier_expect(full, pages * PAGE_TOKENS * D * 2);
#pragma unroll
        for (int i = 0; i < TILE_PAGES; ++i)
            if (i < pages)
                for (int half = 0; half < D / 64; ++half)
                    load_box(stage + (half * KEY_TILE + i * PAGE_TOKENS) * SWIZZLED_ROW_BYTES, map,
                             half * 64, rows[i], full);
    }
};

// Zeroes the value rows past the context: their probabilities are zero, but zero times whatever
// an unwritten slot holds need not be.
template <int D> __device__ __forceinline__ void zero_tail(uint8_t *stage, int rows) {
    for (int half = 0; half < D / 64; ++half) {
        uint4 *begin =
            reinterpret_cast<uint4 *>(stage + (half * KEY_TILE + rows) * SWIZZLED_ROW_BYTES);
        for (int i = lane_index(); i < (KEY_TILE - rows) * SWIZZLED_ROW_BYTES / 16; i += 32)
            begin[i] = make_uint4(0, 0, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
}

// First key of the last key tile that a row tile needs; tiles are taken from there down to 0.
__device__ __forceinline__ int last_key_tile(const Tile &tile) {
    return (tile.num_keys - 1) / KEY_TILE * KEY_TILE;
}

// What the producer has under way: one key tile of one row tile.
template <int D> struct Step {
    Pages<D> pages;
    int first_key;
    uint32_t page; // this lane's page
};

// The producer's side of the rings: waits for a free stage, starts its copies, moves on.
template <int D> struct Producer {
    Shared<D> &shared;
    Ring queries, keys, values;
    uint32_t tail_phase = 0;

    __device__ __forceinline__ void load_queries(const Tile &tile, const CUtensorMap *map) {
        uint64_t &full = shared.q_full[queries.stage];
        barrier_wait(shared.q_empty[queries.stage], queries.phase ^ 1);
        if (elect_one()) {
            shared.tile[queries.stage] = tile;
            barrier_expect(full, ROW_TILE * D * 2);
            for (int half = 0; half < D / 64; ++half)
                load_box(shared.q[queries.stage] + half * ROW_TILE * SWIZZLED_ROW_BYTES, map,
                         tile.head * D + half * 64, tile.first_row, full);
        }
        __syncwarp();
        queries.advance();
    }
    __device__ __forceinline__ void load_keys(const Step<D> &step) {
        barrier_wait(shared.k_empty[keys.stage], keys.phase ^ 1);
        step.pages.load(shared.k[keys.stage], shared.k_full[keys.stage], step.first_key, step.page,
                        0);
        keys.advance();
    }
    __device__ __forceinline__ void load_values(const Step<D> &step) {
        uint8_t *stage = shared.v[values.stage];
        uint64_t &full = shared.v_full[values.stage];
        barrier_wait(shared.v_empty[values.stage], values.phase ^ 1);
        const int rows = step.pages.context - step.first_key;
        step.pages.load(stage, rows < KEY_TILE ? shared.tail_full : full, step.first_key, step.page,
                        1);
        if (rows < KEY_TILE) {
            barrier_wait(shared.tail_full, tail_phase);
            tail_phase ^= 1;
            zero_tail<D>(stage, rows);
            release(full);
        }
        values.advance();
    }
    // After the last tile: consumers wait for queries and find that there are none.
    __device__ __forceinline__ void finish() {
        barrier_wait(shared.q_empty[queries.stage], queries.phase ^ 1);
        if (lane_index() == 0) {
            shared.tile[queries.stage].sequence = -1;
            barrier_arrive(shared.q_full[queries.stage]);
        }
    }
};

// One warp feeds the consumers: queries of a tile, then its keys, the values one step behind,
// without a break from tile to tile.
template <typename T, int D>
__device__ __forceinline__ void produce(Shared<D> &shared, const CUtensorMap *q_map,
                                        const CUtensorMap *kv_map, const Work &work) {
    Producer<D> producer{shared};
    Step<D> step, previous;
    bool first = true;
    for (int unit = blockIdx.x, next = 0;; unit = __shfl_sync(~0u, next, 0)) {
        const Tile tile = choose_tile<D>(work, unit);
        if (tile.sequence < 0)
            break;
        if (lane_index() == 0)
            next = gridDim.x + atomicAdd(work.counter, 1);
        step.pages = Pages<D>{kv_map, int(tile.head * work.num_kv_heads / work.num_heads),
                              work.num_kv_heads, tile.context};
        const uint32_t *table = work.block_table + size_t(tile.sequence) * work.max_pages;
        const int last_page = ceil_div(tile.context, PAGE_TOKENS) - 1;
        const int page_in_tile = lane_index() % TILE_PAGES;

        for (int key = last_key_tile(tile); key >= 0; key -= KEY_TILE) {
            step.first_key = key;
            step.page = table[min(key / PAGE_TOKENS + page_in_tile, last_page)];
            if (key == last_key_tile(tile))
                producer.load_queries(tile, q_map);
            producer.load_keys(step);
            if (!first)
                producer.load_values(previous);
            previous = step, first = false;
        }
    }
    if (!first)
        producer.load_values(previous);
    producer.finish();
    // the last block to run out of work leaves the counters as it found them
    if (lane_index() == 0 && atomicAdd(work.counter + 1, 1) == gridDim.x - 1)
        work.counter[0] = work.counter[1] = 0;
}

#endif // __CUDA_ARCH_FEAT_SM90_ALL

} // namespace qwen::prefill::sm90
