// Decode attention: one new row a sequence against its paged KV cache, with rotary and KV append.
// (header written below in full once measured)
#include <cstddef>
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// What a launch is given, by value. Every pointer is device memory, aligned to 16 bytes.
struct DecodeAttention {
    void *attended;               //   0  [rows, num_heads * D] T, out
    const void *qkv;              //   8  [rows, (num_heads + 2 * num_kv_heads) * D] T
    void *cache;                  //  16  [num_pages][K, V][num_kv_heads][16][D] T, one layer, in and out
    const float *cosines;         //  24  [rows, D / 2]
    const float *sines;           //  32  [rows, D / 2]
    const float *query_scale;     //  40  [rows]
    const uint32_t *cu_seqlens;   //  48  [num_seqs + 1]
    const uint32_t *context_lens; //  56  [num_seqs], 0 is padding
    const uint32_t *block_table;  //  64  [num_seqs, max_pages]
    const int32_t *slots;         //  72  [rows], -1 is padding
    void *workspace;              //  80  see workspace_bytes; zeroed once, before the first launch
    uint32_t num_seqs;            //  88
    uint32_t max_pages;           //  92
    uint32_t num_heads;           //  96
    uint32_t num_kv_heads;        // 100  divides num_heads
};

namespace decode_attention {

constexpr uint32_t PAGE_TOKENS = 16;
constexpr uint32_t WARPS = 4;
constexpr uint32_t STAGES = 3;
constexpr uint32_t BLOCKS_PER_SM = 2;
constexpr uint32_t THREADS = 32 * WARPS;
constexpr uint32_t RING_PAGES = WARPS * STAGES;
// What starting an item costs (query, merge of the warps), in pages read; it only balances the blocks.
constexpr uint32_t ITEM_COST = 2;
// An item is not cut this near its ends: a merge costs more than reading the pages.
constexpr uint32_t MIN_PIECE = 3;
constexpr uint32_t COUNTER_ALIGN = 128;
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;

// The sizes that follow from element type and head dimension. A lane holds 8 dimensions (16 bytes).
template <class Element, uint32_t HEAD_DIM> struct Shape {
    using T = Element;
    static constexpr uint32_t D = HEAD_DIM;
    static constexpr uint32_t ROW_LANES = D / 8;
    static constexpr uint32_t LOAD_ROWS = 32 / ROW_LANES;
    static constexpr uint32_t LOADS = PAGE_TOKENS / LOAD_ROWS;
    static constexpr uint32_t ROW_BYTES = D * sizeof(T);
    static constexpr uint32_t HALF_BYTES = PAGE_TOKENS * ROW_BYTES; // keys or values of a page-head
    static constexpr uint32_t STAGE_BYTES = 2 * HALF_BYTES;
    static constexpr uint32_t PARTIAL_FLOATS = D + 4; // sum[D], max, weight, padding to 16 bytes
    static_assert(D == 64 || D == 128, "a row must fill a whole number of lanes");
    static_assert(sizeof(T) == 2 && LOADS == ROW_LANES / 2, "score_page folds LOADS into lanes");
};

// Dynamic shared memory of a block: the rings of its warps, then two sets of the warps' partials.
__host__ __device__ constexpr size_t ring_bytes(size_t head_dim) { return RING_PAGES * 2 * PAGE_TOKENS * head_dim * 2; }
__host__ __device__ constexpr size_t partials_bytes(size_t head_dim) { return 2 * WARPS * (head_dim + 4) * 4; }
__host__ __device__ constexpr size_t shared_bytes(size_t head_dim) {
    return ring_bytes(head_dim) + partials_bytes(head_dim) + RING_PAGES * 8;
}
__host__ __device__ constexpr size_t counter_bytes(size_t blocks) {
    return (blocks * 4 + COUNTER_ALIGN - 1) / COUNTER_ALIGN * COUNTER_ALIGN;
}
__host__ __device__ constexpr size_t workspace_bytes(size_t blocks, size_t head_dim) {
    return counter_bytes(blocks) + blocks * 2 * (head_dim + 4) * 4;
}

// ---- elements ------------------------------------------------------------------------------------

__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <class T> __device__ T from_float(float x);
template <> __device__ inline __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline __half from_float(float x) { return __float2half_rn(x); }

// Two packed elements as floats. A bfloat16 is the upper half of a float, so a shift and a mask do.
template <class T> __device__ float2 unpack_pair(uint32_t pair);
template <> __device__ inline float2 unpack_pair<__nv_bfloat16>(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
template <> __device__ inline float2 unpack_pair<__half>(uint32_t pair) {
    return __half22float2(*reinterpret_cast<__half2 *>(&pair));
}

template <class T> __device__ void unpack(uint4 packed, float (&out)[8]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_pair<T>(pairs[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

template <class T> __device__ uint32_t pack_pair(float low, float high) {
    const T pair[2] = {from_float<T>(low), from_float<T>(high)};
    return *reinterpret_cast<const uint16_t *>(&pair[0]) |
           uint32_t(*reinterpret_cast<const uint16_t *>(&pair[1])) << 16;
}

template <class T> __device__ uint4 pack(const float (&x)[8]) {
    return {pack_pair<T>(x[0], x[1]), pack_pair<T>(x[2], x[3]), pack_pair<T>(x[4], x[5]),
            pack_pair<T>(x[6], x[7])};
}

// exp2 in one instruction; the error of 2 ulp is far below the rounding to T. exp2(-inf) is 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- PTX -----------------------------------------------------------------------------------------

__device__ inline uint32_t shared_address(const void *pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

// Everything before this ran beside the predecessor kernel; what that one wrote is visible after it.
// Without the launch attribute it returns at once.
__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start as soon as there is room for its blocks; it waits by
// itself before it touches what this one writes.
__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Counts `pages` in and returns what had been counted. Release: this piece's partial is published;
// acquire: the partials of those counted before become visible to the one that completes the item.
__device__ inline uint32_t count_in(uint32_t *counter, uint32_t pages) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(pages)
                 : "memory");
    return before;
}

#if __CUDA_ARCH__ >= 900

// One arrival (the lane that requests) and the bytes of the copy complete a phase of this barrier.
__device__ inline void barrier_init(uint32_t barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

// The copy engine must see the initialised barriers before the first copy may signal one.
__device__ inline void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Sleeps in hardware until the phase of this parity is over, then checks again.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile("{\n\t.reg .pred done;\n\t"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

// A page-head half is contiguous: one instruction of one lane moves it all, and no register waits.
__device__ inline void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// Ordinary stores to a stage must be ordered before the copy engine writes it again.
__device__ inline void fence_stage() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#else

// 16 bytes past the registers and L1, counted in the thread's current group.
__device__ inline void copy_16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <uint32_t PENDING> __device__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ inline void fence_stage() {}

#endif

// ---- the ring of a warp --------------------------------------------------------------------------

// STAGES page-heads (keys, then values) on their way to one warp, which requests and consumes them
// itself: no other warp is waited for. A stage is requested again as soon as it has been read.
template <class S> struct Ring {
    unsigned char *stages;
    uint32_t barriers, lane;
    uint32_t filled = 0, taken = 0, parity = 0; // next stage to request, to read; its phase

    __device__ Ring(unsigned char *shared, uint32_t warp, uint32_t lane_)
        : stages(shared + warp * STAGES * S::STAGE_BYTES),
          barriers(shared_address(shared + ring_bytes(S::D) + partials_bytes(S::D)) +
                   warp * STAGES * 8),
          lane(lane_) {
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            for (uint32_t stage = 0; stage < STAGES; stage++) barrier_init(barriers + 8 * stage);
            barrier_init_fence();
        }
        __syncwarp();
#endif
    }

    // Requests the keys and values at these addresses into the next stage.
    __device__ void request(const unsigned char *keys, const unsigned char *values) {
        const uint32_t stage = shared_address(stages + filled * S::STAGE_BYTES);
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            const uint32_t barrier = barriers + 8 * filled;
            barrier_expect(barrier, S::STAGE_BYTES);
            bulk_copy(stage, keys, S::HALF_BYTES, barrier);
            bulk_copy(stage + S::HALF_BYTES, values, S::HALF_BYTES, barrier);
        }
#else
#pragma unroll
        for (uint32_t i = 0; i < S::LOADS; i++) {
            const uint32_t offset = (i * 32 + lane) * 16;
            copy_16(stage + offset, keys + offset);
            copy_16(stage + S::HALF_BYTES + offset, values + offset);
        }
#endif
        filled = filled + 1 == STAGES ? 0 : filled + 1;
    }

    // Ends a request, also one that had nothing left to ask for: groups are counted, not named.
    __device__ void close_request() {
#if __CUDA_ARCH__ < 900
        copy_commit();
#endif
    }

    // Waits for the oldest stage and returns it.
    __device__ unsigned char *wait() {
#if __CUDA_ARCH__ >= 900
        barrier_wait(barriers + 8 * taken, parity);
#else
        copy_wait<STAGES - 1>();
        __syncwarp();
#endif
        return stages + taken * S::STAGE_BYTES;
    }

    // The warp has read the oldest stage: it may be overwritten.
    __device__ void release() {
        __syncwarp();
        taken = taken + 1 == STAGES ? 0 : taken + 1;
        parity ^= taken == 0;
    }
};

// ---- division of the work ------------------------------------------------------------------------

__device__ inline uint32_t kv_head_of(const DecodeAttention &a, uint32_t head) {
    return a.num_heads == a.num_kv_heads ? head : head / (a.num_heads / a.num_kv_heads);
}

// What the kernel knows of a sequence: its row, its tokens, and the pages it gives to this kernel
// (none for padding, and none if it has prefill rows).
struct Extent {
    uint32_t row, context, pages;
};

__device__ inline Extent extent_of(const DecodeAttention &a, uint32_t seq) {
    if (seq >= a.num_seqs) return {0, 0, 0};
    const uint32_t row = a.cu_seqlens[seq], rows = a.cu_seqlens[seq + 1] - row;
    const uint32_t context = a.context_lens[seq];
    return {row, context, rows == 1 ? (context + PAGE_TOKENS - 1) / PAGE_TOKENS : 0};
}

__device__ inline uint32_t item_units(uint32_t pages) { return pages ? pages + ITEM_COST : 0; }

__device__ inline uint32_t inclusive_scan(uint32_t x, uint32_t lane) {
#pragma unroll
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint32_t below = __shfl_up_sync(ALL_LANES, x, step);
        if (lane >= step) x += below;
    }
    return x;
}

// A page of an item (sequence, query head). `base` is the item's first unit.
struct Position {
    Extent extent;
    uint32_t seq, head, page, base;
};

// All items in a row (sequence, then head), each its pages and ITEM_COST units long, cut into one
// equal range a block. A pure function of the lengths: every warp computes it for itself.
struct Division {
    uint32_t blocks, quotient, remainder;

    __device__ uint32_t cut(uint32_t block) const {
        return block * quotient + min(block, remainder);
    }

    // The last block whose range starts at or before this unit.
    __device__ uint32_t block_of(uint32_t unit) const {
        const uint32_t longer = remainder * (quotient + 1);
        return unit < longer ? unit / (quotient + 1) : remainder + (unit - longer) / quotient;
    }

    // The page at which a cut `offset` units into an item divides it. With little work for many
    // blocks a piece keeps a whole ring: reading it from one block is faster than a merge.
    __device__ uint32_t cut_page(uint32_t offset, uint32_t pages) const {
        if (offset < ITEM_COST) return 0;
        const uint32_t page = offset - ITEM_COST;
        if (page >= pages) return pages;
        if (quotient < RING_PAGES) {
            const uint32_t pieces = max(1u, pages / RING_PAGES);
            return (page * pieces + pages / 2) / pages * pages / pieces;
        }
        if (page < MIN_PIECE) return 0;
        return pages - page < MIN_PIECE ? pages : page;
    }

    // The page of the item at `base` with which this block's range starts.
    __device__ uint32_t first_page(uint32_t block, uint32_t base, uint32_t pages) const {
        const uint32_t unit = cut(block);
        return unit <= base ? 0 : cut_page(unit - base, pages);
    }

    // The block that has page 0 of the item at `base`.
    __device__ uint32_t first_block(uint32_t base, uint32_t pages) const {
        uint32_t block = block_of(base);
        while (block + 1 < blocks && first_page(block + 1, base, pages) == 0) block++;
        return block;
    }
};

// A block's way through its range, item by item; in each the pages [at.page, end), at least one.
struct Walk {
    Position at;
    uint32_t end, first_rank; // first_rank: the block's pages before this piece, for the warps' turns
    uint32_t last_seq, last_head, last_end;

    __device__ Walk(const DecodeAttention &a, const Position &start, const Position &stop)
        : at(start), first_rank(0), last_seq(stop.seq), last_head(stop.head), last_end(stop.page) {
        set_end();
        if (at.page == end) next(a);
    }

    __device__ bool done() const {
        return at.seq > last_seq || (at.seq == last_seq && at.head > last_head) || end == 0;
    }

    __device__ bool whole() const { return at.page == 0 && end == at.extent.pages; }

    // The first page of this piece whose turn it is for this warp; the others follow WARPS apart.
    __device__ uint32_t first_of(uint32_t warp) const {
        return at.page + (warp + WARPS - first_rank % WARPS) % WARPS;
    }

    // Only a range's first piece can be empty, when the cut was moved to the item's end.
    __device__ void next(const DecodeAttention &a) {
        first_rank += end - at.page;
        at.base += item_units(at.extent.pages);
        at.page = 0;
        if (++at.head == a.num_heads) {
            at.head = 0;
            do at.extent = extent_of(a, ++at.seq);
            while (at.seq < a.num_seqs && at.extent.pages == 0);
        }
        set_end();
    }

  private:
    __device__ void set_end() {
        end = at.seq == last_seq && at.head == last_head ? last_end : at.extent.pages;
    }
};

// The division, and this block's range of it.
struct Plan {
    Division division;
    Walk walk;
};

// Neighbours in the row go to the same SM, so that few ranges still spread over all of them.
__device__ inline uint32_t rank_of_block() {
    const uint32_t half = (gridDim.x + 1) / 2;
    return blockIdx.x < half ? 2 * blockIdx.x : 2 * (blockIdx.x - half) + 1;
}

// Up to 32 sequences, one a lane, and the units before the first and up to each one's end.
struct Group {
    Extent extent;
    uint32_t first_seq, before, end;

    __device__ Group(const DecodeAttention &a, const Extent &own, uint32_t first, uint32_t before_,
                     uint32_t lane)
        : extent(own), first_seq(first), before(before_),
          end(before_ + inclusive_scan(item_units(own.pages) * a.num_heads, lane)) {}

    // Where a unit of this group lies, and whether it does.
    __device__ bool locate(const DecodeAttention &a, const Division &division, uint32_t unit,
                           Position &position) const {
        const uint32_t hits = __ballot_sync(ALL_LANES, unit < end);
        if (unit < before || hits == 0) return false;
        const uint32_t source = __ffs(hits) - 1;
        const Extent found = {__shfl_sync(ALL_LANES, extent.row, source),
                              __shfl_sync(ALL_LANES, extent.context, source),
                              __shfl_sync(ALL_LANES, extent.pages, source)};
        const uint32_t length = item_units(found.pages);
        const uint32_t start = __shfl_sync(ALL_LANES, end, source) - length * a.num_heads;
        const uint32_t head = (unit - start) / length, base = start + head * length;
        position = {found, first_seq + source, head, division.cut_page(unit - base, found.pages), base};
        return true;
    }
};

__device__ inline Plan make_plan(const DecodeAttention &a, uint32_t lane) {
    Extent extent = extent_of(a, lane);
    uint32_t units = item_units(extent.pages);
    for (uint32_t seq = 32 + lane; seq < a.num_seqs; seq += 32) {
        units += item_units(extent_of(a, seq).pages);
    }
    const uint32_t total = __reduce_add_sync(ALL_LANES, units) * a.num_heads;
    const Division division = {gridDim.x, total / gridDim.x, total % gridDim.x};
    const uint32_t from = division.cut(rank_of_block()), to = division.cut(rank_of_block() + 1);
    Position start = {{0, 0, 0}, a.num_seqs, 0, 0, total}, stop = start;
    for (uint32_t first = 0, before = 0; first < a.num_seqs; first += 32) {
        if (first > 0) extent = extent_of(a, first + lane);
        const Group group(a, extent, first, before, lane);
        group.locate(a, division, from, start);
        if (group.locate(a, division, to, stop)) break;
        before = __shfl_sync(ALL_LANES, group.end, 31);
    }
    return {division, Walk(a, start, stop)};
}

// ---- requesting pages ----------------------------------------------------------------------------

// A second walk, up to STAGES pages ahead of the reading one. Page numbers come 32 at a time.
template <class S> struct Prefetch {
    Walk walk;
    uint32_t page, table_page, numbers; // next page; the page of lane 0's number; the lane's number
    const unsigned char *head_keys;     // of the piece's head in page 0

    __device__ Prefetch(const DecodeAttention &a, const Walk &start, uint32_t warp, uint32_t lane)
        : walk(start) {
        begin_piece(a, warp, lane);
    }

    __device__ void step(const DecodeAttention &a, Ring<S> &ring, uint32_t warp) {
        while (!walk.done() && page >= walk.end) {
            walk.next(a);
            begin_piece(a, warp, ring.lane);
        }
        if (!walk.done()) {
            if (page >= table_page + 32 * WARPS) load_numbers(a, ring.lane);
            request(a, ring);
            page += WARPS;
        }
        ring.close_request();
    }

  private:
    __device__ void begin_piece(const DecodeAttention &a, uint32_t warp, uint32_t lane) {
        page = walk.first_of(warp);
        if (walk.done()) return;
        load_numbers(a, lane);
        head_keys = static_cast<const unsigned char *>(a.cache) +
                    size_t(kv_head_of(a, walk.at.head)) * S::HALF_BYTES;
    }

    __device__ void load_numbers(const DecodeAttention &a, uint32_t lane) {
        table_page = page;
        const uint32_t wanted = page + lane * WARPS;
        const uint32_t *table = a.block_table + size_t(walk.at.seq) * a.max_pages;
        numbers = wanted < walk.end ? table[wanted] : 0;
    }

    __device__ void request(const DecodeAttention &a, Ring<S> &ring) const {
        const uint32_t number = __shfl_sync(ALL_LANES, numbers, (page - table_page) / WARPS);
        const size_t values = size_t(a.num_kv_heads) * S::HALF_BYTES;
        const unsigned char *keys = head_keys + number * (2 * values);
        ring.request(keys, keys + values);
    }
};

// ---- this step's row -----------------------------------------------------------------------------

// What a warp needs of an item's row, as loaded: 8 dimensions a lane and their rotation partners.
// Loaded one item ahead, because under full load a dependent read takes microseconds. What the
// predecessor wrote never goes through the read-only path, which may hold older data.
struct Row {
    uint4 query, query_partner, key, key_partner, value;
    float4 cosines[2], sines[2];
    float query_scale;
    int32_t slot;
    bool has_newest; // this warp reads the last page, and so completes it with the newest token
};

template <class S> __device__ uint4 load_chunk(const DecodeAttention &a, const Walk &walk,
                                               uint32_t head, uint32_t chunk) {
    const size_t width = size_t(a.num_heads + 2 * a.num_kv_heads) * S::ROW_LANES;
    return __ldcg(static_cast<const uint4 *>(a.qkv) + walk.at.extent.row * width +
                  head * S::ROW_LANES + chunk);
}

template <class S>
__device__ Row load_row(const DecodeAttention &a, const Walk &walk, uint32_t warp, uint32_t lane) {
    const uint32_t chunk = lane % S::ROW_LANES, partner = chunk ^ (S::ROW_LANES / 2);
    const uint32_t row = walk.at.extent.row, last_page = walk.at.extent.pages - 1;
    const size_t angle = (size_t(row) * S::ROW_LANES / 2 + chunk % (S::ROW_LANES / 2)) * 2;
    Row loaded;
    loaded.query = load_chunk<S>(a, walk, walk.at.head, chunk);
    loaded.query_partner = load_chunk<S>(a, walk, walk.at.head, partner);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        loaded.cosines[i] = __ldcg(reinterpret_cast<const float4 *>(a.cosines) + angle + i);
        loaded.sines[i] = __ldcg(reinterpret_cast<const float4 *>(a.sines) + angle + i);
    }
    loaded.query_scale = __ldcg(a.query_scale + row);
    const uint32_t first = walk.first_of(warp);
    loaded.has_newest = walk.end > last_page && first <= last_page && (last_page - first) % WARPS == 0;
    if (loaded.has_newest) {
        const uint32_t key_head = a.num_heads + kv_head_of(a, walk.at.head);
        loaded.key = load_chunk<S>(a, walk, key_head, chunk);
        loaded.key_partner = load_chunk<S>(a, walk, key_head, partner);
        loaded.value = load_chunk<S>(a, walk, key_head + a.num_kv_heads, chunk);
        loaded.slot = __ldcg(a.slots + row);
    }
    return loaded;
}

// Rotates in f32; each product is rounded, as in the reference, so that the cache gets the same bits.
template <class S>
__device__ void rotate(const Row &row, uint4 own_bits, uint4 partner_bits, uint32_t lane,
                       float (&out)[8]) {
    const float sign = lane % S::ROW_LANES < S::ROW_LANES / 2 ? -1.0f : 1.0f;
    float own[8], partner[8];
    unpack<typename S::T>(own_bits, own);
    unpack<typename S::T>(partner_bits, partner);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const float4 cosine = row.cosines[i], sine = row.sines[i];
        const float cosines[4] = {cosine.x, cosine.y, cosine.z, cosine.w};
        const float sines[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            out[4 * i + j] = __fadd_rn(__fmul_rn(own[4 * i + j], cosines[j]),
                                       __fmul_rn(sign * partner[4 * i + j], sines[j]));
        }
    }
}

// The query as the scores want it: rotated, scaled, rounded to T, then times log2(e) / sqrt(D).
template <class S> __device__ void make_query(const Row &row, uint32_t lane, float (&query)[8]) {
    using T = typename S::T;
    const float to_exponent = LOG2_E * (S::D == 128 ? 0.08838834764831845f : 0.125f);
    rotate<S>(row, row.query, row.query_partner, lane, query);
#pragma unroll
    for (float &x : query) x = to_float(from_float<T>(__fmul_rn(x, row.query_scale))) * to_exponent;
}

// Appends the newest token to the cache; one query head of a group does.
template <class S>
__device__ void append(const DecodeAttention &a, const Row &row, uint4 key, uint32_t head,
                       uint32_t lane) {
    const uint32_t kv_head = kv_head_of(a, head);
    const bool first_of_group = head == 0 || kv_head_of(a, head - 1) != kv_head;
    if (row.slot < 0 || !first_of_group || lane >= S::ROW_LANES) return;
    const uint32_t page = uint32_t(row.slot) / PAGE_TOKENS, token = uint32_t(row.slot) % PAGE_TOKENS;
    unsigned char *keys = static_cast<unsigned char *>(a.cache) +
                          (size_t(page) * 2 * a.num_kv_heads + kv_head) * S::HALF_BYTES +
                          token * S::ROW_BYTES + lane * 16;
    *reinterpret_cast<uint4 *>(keys) = key;
    *reinterpret_cast<uint4 *>(keys + size_t(a.num_kv_heads) * S::HALF_BYTES) = row.value;
}

// Completes the last page in its stage: the newest token, and zeros for values past the context
// (whatever lies there, times a weight of 0, may be NaN).
template <class S>
__device__ void complete(unsigned char *stage, const Row &row, uint4 new_key, uint32_t token,
                         uint32_t lane) {
    const uint32_t offset = lane % S::ROW_LANES * 16;
    for (uint32_t t = token + lane / S::ROW_LANES; t < PAGE_TOKENS; t += S::LOAD_ROWS) {
        unsigned char *key = stage + t * S::ROW_BYTES + offset;
        if (t == token) *reinterpret_cast<uint4 *>(key) = new_key;
        *reinterpret_cast<uint4 *>(key + S::HALF_BYTES) =
            t == token ? row.value : uint4{0, 0, 0, 0};
    }
    __syncwarp();
}

// ---- attention over a page -----------------------------------------------------------------------

// A softmax-weighted sum under way: the largest score (base 2) so far, the sum of the weights
// relative to it, and the weighted values: 8 dimensions a lane, of the rows this lane reads.
struct State {
    float largest = -INFINITY, weight = 0, sum[8] = {};
};

// The score of one token in each lane: lane (r, c) gets token LOAD_ROWS * (c / 2) + r. Each step
// halves both the values a lane holds and the lanes they are spread over.
template <class S>
__device__ float score_page(const unsigned char *keys, const float (&query)[8], uint32_t lane) {
    float scores[S::LOADS];
#pragma unroll
    for (uint32_t i = 0; i < S::LOADS; i++) {
        float key[8];
        unpack<typename S::T>(*reinterpret_cast<const uint4 *>(keys + (i * 32 + lane) * 16), key);
        scores[i] = key[0] * query[0];
#pragma unroll
        for (int d = 1; d < 8; d++) scores[i] = fmaf(key[d], query[d], scores[i]);
    }
#pragma unroll
    for (uint32_t step = S::LOADS; step > 1; step /= 2) {
        const bool upper = lane & step;
#pragma unroll
        for (uint32_t i = 0; i < step / 2; i++) {
            const float kept = upper ? scores[i + step / 2] : scores[i];
            const float sent = upper ? scores[i] : scores[i + step / 2];
            scores[i] = kept + __shfl_xor_sync(ALL_LANES, sent, step);
        }
    }
    return scores[0] + __shfl_xor_sync(ALL_LANES, scores[0], 1);
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (uint32_t step = 16; step > 1; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x; // lanes 2i and 2i + 1 hold the same score
}

// Adds the first `tokens` (at least one) tokens of the page in `stage`.
template <class S>
__device__ void add_page(State &state, const unsigned char *stage, const float (&query)[8],
                         uint32_t tokens, uint32_t lane) {
    const uint32_t chunk = lane % S::ROW_LANES, first = lane - chunk;
    float score = score_page<S>(stage, query, lane);
    if (S::LOAD_ROWS * (chunk / 2) + lane / S::ROW_LANES >= tokens) score = -INFINITY;
    const float largest = fmaxf(state.largest, warp_max(score));
    const float shrink = exp2_fast(state.largest - largest);
    const float weight = exp2_fast(score - largest);
    state.largest = largest;
    state.weight = fmaf(state.weight, shrink, weight);
#pragma unroll
    for (float &x : state.sum) x *= shrink;
#pragma unroll
    for (uint32_t i = 0; i < S::LOADS; i++) {
        const unsigned char *values = stage + S::HALF_BYTES;
        float value[8];
        unpack<typename S::T>(*reinterpret_cast<const uint4 *>(values + (i * 32 + lane) * 16), value);
        const float w = __shfl_sync(ALL_LANES, weight, first + 2 * i);
#pragma unroll
        for (int d = 0; d < 8; d++) state.sum[d] = fmaf(w, value[d], state.sum[d]);
    }
}

// ---- merging -------------------------------------------------------------------------------------

// Four dimensions a lane of a weighted sum, as the warps and blocks exchange it.
struct Quad {
    float largest = -INFINITY, weight = 0;
    float4 sum = {0, 0, 0, 0};

    // Adds another sum. An empty one (largest -inf, weight 0) adds nothing to a non-empty one.
    __device__ void add(float other_largest, float other_weight, float4 other) {
        const float top = fmaxf(largest, other_largest);
        const float own = largest == top ? 1.0f : exp2_fast(largest - top);
        const float theirs = other_largest == top ? 1.0f : exp2_fast(other_largest - top);
        largest = top;
        weight = weight * own + other_weight * theirs;
        sum.x = sum.x * own + other.x * theirs;
        sum.y = sum.y * own + other.y * theirs;
        sum.z = sum.z * own + other.z * theirs;
        sum.w = sum.w * own + other.w * theirs;
    }
};

// The lanes that read different rows hold parts of the same dimensions: adds them up and leaves the
// warp's state in shared memory, laid out as a partial.
template <class S> __device__ void publish(const State &state, float *partial, uint32_t lane) {
    float sum[8], weight = state.weight;
#pragma unroll
    for (int d = 0; d < 8; d++) {
        sum[d] = state.sum[d];
#pragma unroll
        for (uint32_t step = S::ROW_LANES; step < 32; step *= 2) {
            sum[d] += __shfl_xor_sync(ALL_LANES, sum[d], step);
        }
    }
#pragma unroll
    for (uint32_t step = 2; step < 32; step *= 2) weight += __shfl_xor_sync(ALL_LANES, weight, step);
    if (lane < S::ROW_LANES) {
        float4 *to = reinterpret_cast<float4 *>(partial + lane * 8);
        to[0] = {sum[0], sum[1], sum[2], sum[3]};
        to[1] = {sum[4], sum[5], sum[6], sum[7]};
    }
    if (lane == 0) *reinterpret_cast<float2 *>(partial + S::D) = {state.largest, weight};
}

// The block's result for a piece, from its warps' states. Lanes past the head dimension repeat.
template <class S> __device__ Quad merge_warps(const float *partials, uint32_t lane) {
    Quad quad;
#pragma unroll
    for (uint32_t warp = 0; warp < WARPS; warp++) {
        const float *partial = partials + warp * S::PARTIAL_FLOATS;
        const float2 scale = *reinterpret_cast<const float2 *>(partial + S::D);
        quad.add(scale.x, scale.y, reinterpret_cast<const float4 *>(partial)[lane % (S::D / 4)]);
    }
    return quad;
}

template <class S>
__device__ void write_attended(const DecodeAttention &a, const Position &at, const Quad &quad,
                               uint32_t lane) {
    using T = typename S::T;
    const float share = 1.0f / quad.weight;
    const uint2 packed = {pack_pair<T>(quad.sum.x * share, quad.sum.y * share),
                          pack_pair<T>(quad.sum.z * share, quad.sum.w * share)};
    const size_t head = size_t(at.extent.row) * a.num_heads + at.head;
    if (lane < S::D / 4) {
        reinterpret_cast<uint2 *>(static_cast<T *>(a.attended) + head * S::D)[lane] = packed;
    }
}

// A block has at most two unfinished pieces: the one it begins with (0) and the one it ends with (1).
template <class S>
__device__ float *partial_of(const DecodeAttention &a, uint32_t block, bool starts_item) {
    float *partials = reinterpret_cast<float *>(static_cast<unsigned char *>(a.workspace) +
                                                counter_bytes(gridDim.x));
    return partials + (size_t(block) * 2 + starts_item) * S::PARTIAL_FLOATS;
}

// All pieces of an item, first page first whoever came last: the same bits every time.
template <class S>
__device__ Quad merge_pieces(const DecodeAttention &a, const Division &division, const Position &at,
                             uint32_t block, uint32_t lane) {
    Quad quad;
    for (uint32_t page = 0; page < at.extent.pages; block++) {
        const uint32_t next = block + 1 < division.blocks
                                  ? division.first_page(block + 1, at.base, at.extent.pages)
                                  : at.extent.pages;
        if (next > page) {
            const float *partial = partial_of<S>(a, block, page == 0);
            const float2 scale = __ldcg(reinterpret_cast<const float2 *>(partial + S::D));
            quad.add(scale.x, scale.y,
                     __ldcg(reinterpret_cast<const float4 *>(partial) + lane % (S::D / 4)));
        }
        page = next;
    }
    return quad;
}

// One warp ends a piece: writes the item if it is whole, else leaves a partial, and merges them all
// if no other piece is missing.
template <class S>
__device__ void finish_piece(const DecodeAttention &a, const Division &division, const Walk &walk,
                             const float *warp_partials, uint32_t lane) {
    Quad quad = merge_warps<S>(warp_partials, lane);
    if (!walk.whole()) {
        float *partial = partial_of<S>(a, rank_of_block(), walk.at.page == 0);
        if (lane < S::D / 4) reinterpret_cast<float4 *>(partial)[lane] = quad.sum;
        if (lane == 0) {
            *reinterpret_cast<float2 *>(partial + S::D) = {quad.largest, quad.weight};
        }
        const uint32_t first = division.first_block(walk.at.base, walk.at.extent.pages);
        uint32_t *counter = static_cast<uint32_t *>(a.workspace) + first;
        const uint32_t pages = walk.end - walk.at.page;
        uint32_t before = 0;
        __syncwarp();
        if (lane == 0) before = count_in(counter, pages);
        if (__shfl_sync(ALL_LANES, before, 0) + pages != walk.at.extent.pages) return;
        if (lane == 0) *counter = 0;
        quad = merge_pieces<S>(a, division, walk.at, first, lane);
    }
    write_attended<S>(a, walk.at, quad, lane);
}

// ---- the kernel ----------------------------------------------------------------------------------

// One warp's share of a piece: every WARPS-th page of it.
template <class S>
__device__ State attend_piece(const DecodeAttention &a, const Walk &walk, const Row &row,
                              Ring<S> &ring, Prefetch<S> &prefetch, uint32_t warp, uint32_t lane) {
    const uint32_t last = walk.at.extent.context - 1;
    float query[8];
    make_query<S>(row, lane, query);
    uint4 new_key;
    if (row.has_newest) {
        float key[8];
        rotate<S>(row, row.key, row.key_partner, lane, key);
        new_key = pack<typename S::T>(key);
        append<S>(a, row, new_key, walk.at.head, lane);
    }
    State state;
    for (uint32_t page = walk.first_of(warp); page < walk.end; page += WARPS) {
        unsigned char *stage = ring.wait();
        const bool is_last = page == last / PAGE_TOKENS;
        if (is_last) complete<S>(stage, row, new_key, last % PAGE_TOKENS, lane);
        add_page<S>(state, stage, query, is_last ? last % PAGE_TOKENS + 1 : PAGE_TOKENS, lane);
        if (is_last) fence_stage();
        ring.release();
        prefetch.step(a, ring, warp);
    }
    return state;
}

template <class S> __device__ void run(const DecodeAttention &a) {
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    launch_dependents();
    Ring<S> ring(shared, warp, lane);
    Plan plan = make_plan(a, lane);
    Prefetch<S> prefetch(a, plan.walk, warp, lane);
#pragma unroll 1 // one copy of the code: a short context pays for every instruction fetched
    for (uint32_t stage = 0; stage < STAGES; stage++) prefetch.step(a, ring, warp);
    wait_for_predecessor();
    // Two sets of partials in turn: a set is written again only after the next piece's barrier, by
    // which the warp that merges it has arrived.
    float *partials = reinterpret_cast<float *>(shared + ring_bytes(S::D));
    Walk walk = plan.walk;
    Row row;
    if (!walk.done()) row = load_row<S>(a, walk, warp, lane);
    for (uint32_t piece = 0; !walk.done(); piece++) {
        Walk following = walk;
        Row following_row;
        following.next(a);
        if (!following.done()) following_row = load_row<S>(a, following, warp, lane);
        const State state = attend_piece<S>(a, walk, row, ring, prefetch, warp, lane);
        float *set = partials + piece % 2 * WARPS * S::PARTIAL_FLOATS;
        publish<S>(state, set + warp * S::PARTIAL_FLOATS, lane);
        __syncthreads();
        if (warp == piece % WARPS) finish_piece<S>(a, plan.division, walk, set, lane);
        walk = following;
        row = following_row;
    }
}

} // namespace decode_attention

#define DECODE_ATTENTION_BOUNDS                                                                     \
    __launch_bounds__(decode_attention::THREADS, decode_attention::BLOCKS_PER_SM)

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_bf16_64(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__nv_bfloat16, 64>>(arguments);
}

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_bf16_128(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__nv_bfloat16, 128>>(arguments);
}

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_f16_64(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__half, 64>>(arguments);
}

extern "C" __global__ void DECODE_ATTENTION_BOUNDS
decode_attention_f16_128(const __grid_constant__ DecodeAttention arguments) {
    decode_attention::run<decode_attention::Shape<__half, 128>>(arguments);
}
