// What a warp of decode attention has on its way: the pages of its pieces, and this step's rows,
// which are rotated here and appended to the cache.
#pragma once

#include "decode_division.cuh"

namespace decode_attention {

// What a warp knows of a piece, in shared memory, written when its first page is requested.
struct Piece {
    uint32_t head, page, end, base;
    Extent extent;
    float query_scale;

    __device__ bool whole() const { return page == 0 && end == extent.pages; }
};

// A piece and its row: the query head, cosines and sines, copied along with the first page, because
// under full load a read that is waited for takes microseconds.
template <class S> struct PieceSlot {
    alignas(16) Piece piece;
    alignas(16) typename S::T query[S::D];
    alignas(16) float cosines[S::D / 2];
    alignas(16) float sines[S::D / 2];
};

// The requesting half of a warp. It runs up to STAGES pages ahead of the reading half, with its own
// walk; no other warp is waited for. Each step is one group of copies, so that waiting for a page
// is waiting for its group.
template <class S> struct Producer {
    const DecodeAttention &a;
    const Division &division;
    Walk walk;
    unsigned char *stages;
    PieceSlot<S> *slots;
    uint32_t lane, first, stride;             // the warp's first page within a piece, its step
    uint32_t page = 0, table_page = 0;        // next page; the page of lane 0's number
    uint32_t numbers = 0;                     // page numbers, one a lane, `stride` pages apart
    uint32_t filled = 0, slot = 0;            // next stage, next slot
    uint32_t begun = 0;                       // pieces begun so far
    bool rows_ready = false;                  // this step's rows may be read
    const unsigned char *head_keys = nullptr; // of the piece's head in page 0

    static_assert(sizeof(PieceSlot<S>) == piece_bytes(S::D));

    __device__ Producer(const DecodeAttention &a_, const Division &division_, const Walk &range,
                        unsigned char *shared, uint32_t warp, uint32_t lane_)
        : a(a_), division(division_), walk(range), stages(shared + warp * STAGES * S::STAGE_BYTES),
          slots(reinterpret_cast<PieceSlot<S> *>(shared + ring_bytes(S::D) + partials_bytes(S::D)) +
                warp * PIECES),
          lane(lane_), first(division_.shared_pieces() ? warp : 0),
          stride(division_.shared_pieces() ? WARPS : 1) {
        if (!walk.done())
            begin_piece();
    }

    // Requests the next page of the range, if there is one.
    __device__ void step() {
        while (!walk.done() && page >= walk.end) {
            walk.next(a, division);
            if (!walk.done())
                begin_piece();
        }
        if (!walk.done()) {
            if (page >= table_page + 32 * stride)
                load_numbers();
            request_page();
            page += stride;
        }
        copy_commit();
    }

    // The predecessor is done: requests the rows of the pieces begun before.
    __device__ void request_rows() {
        rows_ready = true;
        for (uint32_t i = 0; i < begun; i++)
            request_row(slots[i]);
        copy_commit();
    }

  private:
    __device__ void begin_piece() {
        page = walk.at.page + first;
        load_numbers();
        head_keys = static_cast<const unsigned char *>(a.cache) +
                    size_t(kv_head_of(a, walk.at.head)) * S::HALF_BYTES;
        Piece &piece = slots[slot].piece;
        if (lane == 0) {
            piece.head = walk.at.head;
            piece.page = walk.at.page;
            piece.end = walk.end;
            piece.base = walk.at.base;
            piece.extent = walk.at.extent;
        }
        __syncwarp();
        if (rows_ready)
            request_row(slots[slot]);
        slot = slot + 1 == PIECES ? 0 : slot + 1;
        begun++;
    }

    __device__ void load_numbers() {
        table_page = page;
        const uint32_t wanted = page + lane * stride;
        const uint32_t *table = a.block_table + size_t(walk.at.seq) * a.max_pages;
        numbers = wanted < walk.end ? table[wanted] : 0;
    }

    __device__ void request_page() {
        const uint32_t index = stride == 1 ? page - table_page : (page - table_page) / WARPS;
        const uint32_t number = __shfl_sync(ALL_LANES, numbers, index);
        const size_t values = size_t(a.num_kv_heads) * S::HALF_BYTES;
        const unsigned char *keys = head_keys + number * (2 * values);
        const uint32_t stage = shared_address(stages + filled * S::STAGE_BYTES);
#pragma unroll
        for (uint32_t i = 0; i < 2 * S::LOADS; i++) {
            const uint32_t half = i / S::LOADS,
                           token = i % S::LOADS * S::LOAD_ROWS + lane / S::ROW_LANES;
            copy_16(stage + half * S::HALF_BYTES + S::chunk_offset(token, lane % S::ROW_LANES),
                    keys + half * values + (i % S::LOADS * 32 + lane) * 16);
        }
        filled = filled + 1 == STAGES ? 0 : filled + 1;
    }

    // 16 bytes a lane: the query, the cosines and the sines take ROW_LANES lanes each.
    __device__ void request_row(PieceSlot<S> &to) {
        const uint32_t row = to.piece.extent.row, chunk = lane % S::ROW_LANES;
        const size_t width = size_t(a.num_heads + 2 * a.num_kv_heads) * S::D;
        const size_t angles = size_t(row) * (S::D / 2) + chunk * 4;
        const typename S::T *query = static_cast<const typename S::T *>(a.qkv) + row * width +
                                     to.piece.head * S::D + chunk * 8;
        if (lane < S::ROW_LANES) {
            copy_16(shared_address(to.query + chunk * 8), query);
            copy_16(shared_address(to.sines + chunk * 4), a.sines + angles);
        } else if (lane < 2 * S::ROW_LANES) {
            copy_16(shared_address(to.cosines + chunk * 4), a.cosines + angles);
        }
        if (lane == 0)
            copy_4(shared_address(&to.piece.query_scale), a.query_scale + row);
    }
};

// Rotates 8 dimensions a lane in f32. Each product is rounded, as in the reference, so that the
// cache gets the same bits.
template <class S>
__device__ void rotate(const PieceSlot<S> &slot, uint4 own_bits, uint4 partner_bits, uint32_t lane,
                       float (&out)[8]) {
    constexpr uint32_t HALF_LANES = S::ROW_LANES / 2;
    const float sign = lane % S::ROW_LANES < HALF_LANES ? -1.0f : 1.0f;
    const uint32_t angle = lane % HALF_LANES * 8;
    float own[8], partner[8];
    unpack<typename S::T>(own_bits, own);
    unpack<typename S::T>(partner_bits, partner);
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        out[i] = __fadd_rn(__fmul_rn(own[i], slot.cosines[angle + i]),
                           __fmul_rn(sign * partner[i], slot.sines[angle + i]));
    }
}

// The query as mma wants its second operand, 16 dimensions a step: rotated, scaled, rounded to T,
// the same in all 8 columns, so that every lane gets scores it can use.
template <class S> struct Query {
    uint2 steps[S::D / 16];
};

template <class S> __device__ Query<S> make_query(PieceSlot<S> &slot, uint32_t lane) {
    using T = typename S::T;
    const uint32_t chunk = lane % S::ROW_LANES, partner = chunk ^ (S::ROW_LANES / 2);
    uint4 *head = reinterpret_cast<uint4 *>(slot.query);
    float x[8];
    rotate<S>(slot, head[chunk], head[partner], lane, x);
    const float scale = slot.piece.query_scale;
#pragma unroll
    for (float &part : x)
        part = __fmul_rn(part, scale);
    __syncwarp(); // all lanes have read the head
    if (lane < S::ROW_LANES)
        head[chunk] = pack<T>(x);
    __syncwarp();
    Query<S> query;
#pragma unroll
    for (uint32_t i = 0; i < S::D / 16; i++) {
        const uint32_t *pairs = reinterpret_cast<const uint32_t *>(slot.query) + i * 8 + lane % 4;
        query.steps[i] = {pairs[0], pairs[4]};
    }
    return query;
}

// The newest token of a sequence, which the cache does not hold yet, as loaded: 8 dimensions a
// lane.
struct Newest {
    uint4 key, key_partner, value;
    int32_t slot;
};

// What the predecessor wrote never goes through the read-only path, which may hold older data.
template <class S>
__device__ Newest load_newest(const DecodeAttention &a, const Piece &piece, uint32_t lane) {
    const uint32_t chunk = lane % S::ROW_LANES, row = piece.extent.row;
    const size_t width = size_t(a.num_heads + 2 * a.num_kv_heads) * S::ROW_LANES;
    const uint32_t key_head = a.num_heads + kv_head_of(a, piece.head);
    const uint4 *key = static_cast<const uint4 *>(a.qkv) + row * width + key_head * S::ROW_LANES;
    return {__ldcg(key + chunk), __ldcg(key + (chunk ^ (S::ROW_LANES / 2))),
            __ldcg(key + a.num_kv_heads * S::ROW_LANES + chunk), __ldcg(a.slots + row)};
}

// Appends the newest token to the cache; one query head of a group does.
template <class S>
__device__ void append(const DecodeAttention &a, const Newest &newest, uint4 key, uint32_t head,
                       uint32_t lane) {
    const uint32_t kv_head = kv_head_of(a, head);
    const bool first_of_group = head == 0 || kv_head_of(a, head - 1) != kv_head;
    if (newest.slot < 0 || !first_of_group || lane >= S::ROW_LANES)
        return;
    const uint32_t page = uint32_t(newest.slot) / PAGE_TOKENS;
    const uint32_t token = uint32_t(newest.slot) % PAGE_TOKENS;
    unsigned char *keys = static_cast<unsigned char *>(a.cache) +
                          (size_t(page) * 2 * a.num_kv_heads + kv_head) * S::HALF_BYTES +
                          token * S::ROW_BYTES + lane * 16;
    *reinterpret_cast<uint4 *>(keys) = key;
    *reinterpret_cast<uint4 *>(keys + size_t(a.num_kv_heads) * S::HALF_BYTES) = newest.value;
}

// Completes the last page in its stage: the newest token, and zeros for values past the context
// (whatever lies there, times a weight of 0, may be NaN).
template <class S>
__device__ void complete(const DecodeAttention &a, const PieceSlot<S> &slot, const Newest &newest,
                         unsigned char *stage, uint32_t lane) {
    const uint32_t token = (slot.piece.extent.context - 1) % PAGE_TOKENS;
    float key[8];
    rotate<S>(slot, newest.key, newest.key_partner, lane, key);
    const uint4 new_key = pack<typename S::T>(key);
    append<S>(a, newest, new_key, slot.piece.head, lane);
    for (uint32_t t = token + lane / S::ROW_LANES; t < PAGE_TOKENS; t += S::LOAD_ROWS) {
        unsigned char *to = stage + S::chunk_offset(t, lane % S::ROW_LANES);
        if (t == token)
            *reinterpret_cast<uint4 *>(to) = new_key;
        *reinterpret_cast<uint4 *>(to + S::HALF_BYTES) =
            t == token ? newest.value : uint4{0, 0, 0, 0};
    }
    __syncwarp();
}

} // namespace decode_attention
