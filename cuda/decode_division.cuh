// Who reads which pages: the work of a decode attention launch divided among its warps or blocks,
// on the device, from the lengths alone. Touches no keys, values or rows.
#pragma once

#include "decode_attention.cuh"

namespace decode_attention {

__device__ inline uint32_t kv_head_of(const DecodeAttention &a, uint32_t head) {
    return a.num_heads == a.num_kv_heads ? head : head / (a.num_heads / a.num_kv_heads);
}

// What the kernel knows of a sequence: its row, its tokens, and the pages it gives to this kernel
// (none for padding, and none if it has prefill rows).
struct Extent {
    uint32_t row, context, pages;
};

__device__ inline Extent extent_of(const DecodeAttention &a, uint32_t seq) {
    if (seq >= a.num_seqs)
        return {0, 0, 0};
    const uint32_t row = a.cu_seqlens[seq], rows = a.cu_seqlens[seq + 1] - row;
    const uint32_t context = a.context_lens[seq];
    return {row, context, rows == 1 ? (context + PAGE_TOKENS - 1) / PAGE_TOKENS : 0};
}

__device__ inline uint32_t inclusive_scan(uint32_t x, uint32_t lane) {
#pragma unroll
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint32_t below = __shfl_up_sync(ALL_LANES, x, step);
        if (lane >= step)
            x += below;
    }
    return x;
}

// A page of an item (sequence, query head). `base` is the item's first unit.
struct Position {
    Extent extent;
    uint32_t seq, head, page, base;
};

// All items in a row (sequence, then head), cut into one equal range a worker. A pure function of
// the lengths, which every warp computes for itself.
// Much work: a worker is a warp, an item is its pages and ITEM_COST units long, cut at any page.
// Little work: a worker is a block, an item is as many units as it has pieces, a range is one
// piece.
struct Division {
    uint32_t workers, quotient, remainder;
    uint32_t piece_pages; // 0 when each warp has its own pieces

    __device__ bool shared_pieces() const { return piece_pages != 0; }

    __device__ uint32_t pieces(uint32_t pages) const {
        return pages < 2 * piece_pages ? 1 : pages / piece_pages;
    }

    __device__ uint32_t units(uint32_t pages) const {
        if (pages == 0)
            return 0;
        return shared_pieces() ? pieces(pages) : pages + ITEM_COST;
    }

    __device__ uint32_t cut(uint32_t worker) const {
        return worker * quotient + min(worker, remainder);
    }

    // The last worker whose range starts at or before this unit.
    __device__ uint32_t worker_of(uint32_t unit) const {
        const uint32_t longer = remainder * (quotient + 1);
        return unit < longer ? unit / (quotient + 1) : remainder + (unit - longer) / quotient;
    }

    // The page at which a cut `offset` units into an item divides it.
    __device__ uint32_t cut_page(uint32_t offset, uint32_t pages) const {
        if (offset == 0)
            return 0;
        if (shared_pieces()) {
            const uint32_t count = pieces(pages);
            return offset >= count ? pages : offset * pages / count;
        }
        if (offset < ITEM_COST + MIN_PIECE)
            return 0;
        const uint32_t page = offset - ITEM_COST;
        return page + MIN_PIECE > pages ? pages : page;
    }

    // The page of the item at `base` with which this worker's range starts.
    __device__ uint32_t first_page(uint32_t worker, uint32_t base, uint32_t pages) const {
        const uint32_t unit = cut(worker);
        return unit <= base ? 0 : cut_page(unit - base, pages);
    }

    // The worker that has page 0 of the item at `base`.
    __device__ uint32_t first_worker(uint32_t base, uint32_t pages) const {
        uint32_t worker = worker_of(base);
        while (worker + 1 < workers && first_page(worker + 1, base, pages) == 0)
            worker++;
        return worker;
    }
};

// Whether the blocks can each take one piece: few sequences, few pages. `extent` is the lane's.
__device__ inline Division divide(const DecodeAttention &a, const Extent &extent, uint32_t lane) {
    const uint32_t blocks = gridDim.x;
    if (a.num_seqs <= 32) {
        const uint32_t pages = __reduce_add_sync(ALL_LANES, extent.pages) * a.num_heads;
        const uint32_t piece_pages = max(RING_PAGES, (pages + blocks - 1) / blocks);
        const Division shared = {blocks, 0, 0, piece_pages};
        const uint32_t units = extent.pages ? shared.pieces(extent.pages) : 0;
        const uint32_t total = __reduce_add_sync(ALL_LANES, units) * a.num_heads;
        if (piece_pages <= SHARED_PIECE_PAGES && total <= blocks)
            return {blocks, 0, total, piece_pages};
    }
    uint32_t units = extent.pages ? extent.pages + ITEM_COST : 0;
    for (uint32_t seq = 32 + lane; seq < a.num_seqs; seq += 32) {
        const uint32_t pages = extent_of(a, seq).pages;
        units += pages ? pages + ITEM_COST : 0;
    }
    const uint32_t total = __reduce_add_sync(ALL_LANES, units) * a.num_heads;
    const uint32_t workers = blocks * WARPS;
    return {workers, total / workers, total % workers, 0};
}

// A worker's way through its range, item by item; in each the pages [at.page, end), at least one.
struct Walk {
    Position at;
    uint32_t end, last_seq, last_head, last_end;

    __device__ Walk(const DecodeAttention &a, const Division &division, const Position &start,
                    const Position &stop)
        : at(start), last_seq(stop.seq), last_head(stop.head), last_end(stop.page) {
        set_end();
        if (at.page == end)
            next(a, division);
    }

    __device__ bool done() const {
        return at.seq > last_seq || (at.seq == last_seq && at.head > last_head) || end == 0;
    }

    // Only a range's first piece can be empty, when the cut was moved to the item's end.
    __device__ void next(const DecodeAttention &a, const Division &division) {
        at.base += division.units(at.extent.pages);
        at.page = 0;
        if (++at.head == a.num_heads) {
            at.head = 0;
            do {
                at.extent = extent_of(a, ++at.seq);
            } while (at.seq < a.num_seqs && at.extent.pages == 0);
        }
        set_end();
    }

  private:
    __device__ void set_end() {
        end = at.seq == last_seq && at.head == last_head ? last_end : at.extent.pages;
    }
};

// Up to 32 sequences, one a lane, and the units before the first and up to each one's end.
struct Group {
    Extent extent;
    uint32_t first_seq, before, end;

    __device__ Group(const DecodeAttention &a, const Division &division, const Extent &own,
                     uint32_t first, uint32_t before_, uint32_t lane)
        : extent(own), first_seq(first), before(before_),
          end(before_ + inclusive_scan(division.units(own.pages) * a.num_heads, lane)) {}

    // Where a unit of this group lies, and whether it does.
    __device__ bool locate(const DecodeAttention &a, const Division &division, uint32_t unit,
                           Position &position) const {
        const uint32_t hits = __ballot_sync(ALL_LANES, unit < end);
        if (unit < before || hits == 0)
            return false;
        const uint32_t source = __ffs(hits) - 1;
        const Extent found = {__shfl_sync(ALL_LANES, extent.row, source),
                              __shfl_sync(ALL_LANES, extent.context, source),
                              __shfl_sync(ALL_LANES, extent.pages, source)};
        const uint32_t length = division.units(found.pages);
        const uint32_t start = __shfl_sync(ALL_LANES, end, source) - length * a.num_heads;
        const uint32_t head = (unit - start) / length, base = start + head * length;
        position = {found, first_seq + source, head, division.cut_page(unit - base, found.pages),
                    base};
        return true;
    }
};

// The range of a worker.
__device__ inline Walk walk_of(const DecodeAttention &a, const Division &division, uint32_t worker,
                               Extent extent, uint32_t lane) {
    const uint32_t from = division.cut(worker), to = division.cut(worker + 1);
    Position start = {{0, 0, 0}, a.num_seqs, 0, 0, 0}, stop = start;
    for (uint32_t first = 0, before = 0; first < a.num_seqs; first += 32) {
        if (first > 0)
            extent = extent_of(a, first + lane);
        const Group group(a, division, extent, first, before, lane);
        group.locate(a, division, from, start);
        if (group.locate(a, division, to, stop))
            break;
        before = __shfl_sync(ALL_LANES, group.end, 31);
    }
    return Walk(a, division, start, stop);
}

} // namespace decode_attention
