// Operands of the quantised linear's matrix instructions: codes as f16 in registers, x out of
// shared memory. No kernels here; quant_linear.cu has the story.
#pragma once

#include "quant_layout.cuh"
#include "skinny_ring.cuh"

namespace quant {

using namespace qwen::linear;

// Warps that multiply, each a part of a stage's k.
constexpr uint32_t PARTS = 8, NUM_CONSUMERS = PARTS * 32, NUM_THREADS = NUM_CONSUMERS + 128;
constexpr uint32_t X_FEEDERS = 2; // warps
constexpr uint32_t MAX_STAGES = 8;
// Stages on their way, at most: they keep the bus full, and x waits for all of them.
constexpr uint32_t IN_FLIGHT = 2;
constexpr uint32_t MAX_ROWS = 16;
// k of a stage of weights and of a slice of x, and of a warp's part of them. NT below: rows of x
// / 8.
template <int BITS> constexpr uint32_t slice_k = 4096 / BITS;
template <int BITS> constexpr uint32_t part_k = slice_k<BITS> / PARTS;
// Tiles that share one pass over x, at most.
template <int NT> constexpr uint32_t group_tiles = 6 / NT;
// Slices of x on their way or in use; bytes of x, of the ring of weights.
template <int BITS, int NT> constexpr uint32_t x_slices = (NT == 1 ? 3 : 2) * BITS / 4;
template <int NT> constexpr uint32_t x_bytes = NT == 1 ? 49152 : 65536;
template <int NT> constexpr uint32_t ring_bytes = (NT == 1 ? 5 : 4) * 8 * 4224;
// Of a tile, the sums of the parts, which lie where x was.
template <int NT> constexpr uint32_t tile_sums_bytes = PARTS *NT * 2048;
template <int NT>
constexpr uint32_t shared_bytes = x_bytes<NT> + ring_bytes<NT> +
                                  (4 * MAX_STAGES + 4) * 8 + MAX_ROWS * 4;
static_assert(shared_bytes<1> == 218464 && shared_bytes<2> == 201056, "the launch contract");
static_assert(shared_bytes<1> <= 227 * 1024 && shared_bytes<2> <= 227 * 1024,
              "what a block may have");

// Most tiles of a pair of blocks that share them, by halves of k.
constexpr uint32_t PAIR_TILES = 3;

// For the host: 2 where pairs of blocks are to share tiles, by halves of k. That pays where the
// tiles come out more even, and, for more than eight rows, where a block would have one tile, for
// which it reads as many bytes of x as of weights. What a row's sums are added up from depends on
// this.
inline uint32_t split_of(uint32_t rows, uint32_t n, uint32_t blocks) {
    if (blocks < 2)
        return 1;
    const uint32_t all = (n + TILE_ROWS - 1) / TILE_ROWS, pairs = blocks / 2;
    const uint32_t alone = (all + blocks - 1) / blocks, paired = (all + pairs - 1) / pairs;
    const bool pays = paired < 2 * alone || (rows > 8 && alone == 1);
    return paired <= PAIR_TILES && pays ? 2 : 1;
}

// For the host: divides the tiles among the blocks of a grid, or its pairs.
inline void divide(Arguments &a, uint32_t grid) {
    const uint32_t all = (a.n + TILE_ROWS - 1) / TILE_ROWS, shares = grid / a.split;
    const uint32_t most = a.split == 2 ? PAIR_TILES : a.rows <= 8 ? group_tiles<1> : group_tiles<2>;
    a.tiles = (all + shares - 1) / shares;
    const uint32_t passes = (a.tiles + most - 1) / most;
    a.group = (a.tiles + passes - 1) / passes;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

using skinny::load_shared;

__device__ inline uint32_t load_word(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}
// d = a b + c: 16 rows of weights x 8 rows of x x 16 k.
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                           const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}
__device__ inline __half2 half2_of(uint32_t v) { return *reinterpret_cast<__half2 *>(&v); }

// Sums of products are kept in units of the smallest f16, which is what a code of 1 is as one.
constexpr float UNIT = 1.0f / (1 << 24);

// A lane's codes of a part, of rows g and g + 8 of 16, as subnormal f16: the bits of a code are
// those of the number. Steps are of 16 k; the codes of odd ones are ODD times too large.
template <int BITS> struct Codes;

template <> struct Codes<4> {
    static constexpr int LOADS = 2; // of 512 bytes a warp
    static constexpr float ODD = 16.0f;
    static constexpr uint32_t MIDDLE = 8;
    uint4 v[LOADS]; // of 64 k: {32 k: rows g, g + 8}, {the next 32 k: the same}

    template <int STEP> __device__ void operand(uint32_t (&a)[4]) const {
        constexpr uint32_t MASK = STEP % 2 == 0 ? 0x000f000fu : 0x00f000f0u;
        const uint4 &four = v[STEP / 4];
        const uint32_t low = STEP / 2 % 2 == 0 ? four.x : four.z,
                       high = STEP / 2 % 2 == 0 ? four.y : four.w;
        a[0] = low & MASK, a[1] = high & MASK, a[2] = low >> 8 & MASK, a[3] = high >> 8 & MASK;
    }
};

template <> struct Codes<8> {
    static constexpr int LOADS = 2;
    static constexpr float ODD = 1.0f;
    static constexpr uint32_t MIDDLE = 128;
    uint4 v[LOADS]; // of 32 k: {16 k: rows g, g + 8}, {the next 16 k: the same}

    template <int STEP> __device__ void operand(uint32_t (&a)[4]) const {
        const uint4 &four = v[STEP / 2];
        const uint32_t low = STEP % 2 == 0 ? four.x : four.z,
                       high = STEP % 2 == 0 ? four.y : four.w;
        a[0] = __byte_perm(low, 0, 0x4140), a[1] = __byte_perm(high, 0, 0x4140);
        a[2] = __byte_perm(low, 0, 0x4342), a[3] = __byte_perm(high, 0, 0x4342);
    }
};

// A slice of x in shared memory: boxes of 64 k x 8 NT rows of 128 bytes, whose sixteenths are in
// swizzled order.
template <int BITS, int NT> struct XSlice {
    static constexpr uint32_t ROWS_BYTES = 1024; // of 64 k of eight rows
    static constexpr uint32_t BOXES = slice_k<BITS> / 64, BOX_BYTES = NT * ROWS_BYTES;
    static constexpr uint32_t BYTES = BOXES * BOX_BYTES;
    static constexpr uint32_t CHUNKS = slice_k<BITS> / CHUNK_K;

    // Both steps' operands of block `block` of a slice, for eight rows. The lane's part of even
    // blocks is at `lane_offset` from their box, that of odd ones at `lane_offset` ^ 64.
    __device__ static void load(uint32_t (&b)[4], const uint32_t (&slice)[2], int block, int rows) {
        const uint32_t at = slice[block % 2] + block / 2 * BOX_BYTES + rows * ROWS_BYTES;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                     : "r"(at));
    }
    __device__ static uint32_t lane_offset() {
        const uint32_t lane = threadIdx.x % 32;
        return lane % 8 * 128 + (lane / 8 ^ lane % 8) * 16;
    }
};

// How a lane of the feeders copies its part of each slice of x: sixteenths of some rows of some
// boxes. What is beyond x becomes zero.
template <int BITS, int NT> struct XCopier {
    using Slice = XSlice<BITS, NT>;
    static constexpr uint32_t BOXES = Slice::BOXES / X_FEEDERS; // of a lane
    const char *from;                                           // of its first row
    uint32_t rows, k, first_box;

    __device__ XCopier(const Arguments &a, uint32_t warp)
        : rows(a.rows), k(a.k), first_box(warp * BOXES) {
        const uint32_t lane = threadIdx.x % 32;
        from = static_cast<const char *>(a.x) +
               (uint64_t(min(lane / 8, rows - 1)) * k + first_box * 64 + lane % 8 * 8) * 2;
    }
    __device__ void copy(uint32_t slice, uint32_t slice_at) const {
        const uint32_t at = slice_at + first_box * 64, lane = threadIdx.x % 32;
        const uint32_t count = at < k ? min((k - at) / 64, BOXES) : 0; // that are not beyond x
#pragma unroll(NT == 1 ? 2 : 1)
        for (uint32_t i = 0; i < NT * 2; i++) {
            const uint32_t row = i * 4 + lane / 8;
            const bool is_there = row < rows;
            const char *start = from + (is_there ? uint64_t(i) * 8 * k : 0) + slice_at * 2;
            const uint32_t to = slice + first_box * Slice::BOX_BYTES + row / 8 * Slice::ROWS_BYTES +
                                row % 8 * 128 + (lane % 8 ^ row % 8) * 16;
#pragma unroll
            for (uint32_t box = 0; box < BOXES; box++)
                // Where nothing is wanted no address is looked at.
                skinny::copy_16(to + box * Slice::BOX_BYTES, start + box * 128,
                                is_there && box < count);
        }
    }
};

// The address of one's own shared memory in block `rank` of the cluster.
__device__ inline uint32_t address_in(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
__device__ inline void store_there(uint32_t address, const float (&v)[4]) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]),
                 "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
}
__device__ inline void arrive_there(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier)
                 : "memory");
}
// Waits for the first phase, and sees what those of the cluster have written who have arrived.
__device__ inline void wait_for_cluster(uint32_t barrier) {
    asm volatile("{\n.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0;\n"
                 "@!p bra again;\n}" ::"r"(barrier)
                 : "memory");
}
// Is the phase with this parity over?
__device__ inline bool barrier_is_over(uint32_t bar, uint32_t parity) {
    uint32_t is_over;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(is_over)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return is_over;
}
// Behind a fence.mbarrier_init, which is all that the other block must see.
__device__ inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                     : "memory");
}

// Arrives when all that this thread has asked for till now has come.
__device__ inline void arrive_when_copied(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

#endif

} // namespace quant
