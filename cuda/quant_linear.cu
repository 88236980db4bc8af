// Linear layers of quantised weights for few rows: y[rows, n] = x[rows, k] W[n, k]^T, W as in
// quant_layout.cuh.
//
//   quant_linear_4_8, _4_16    codes of 4 bits, 1..8 or 1..16 rows of x (f16)
//   quant_linear_8_8, _8_16    codes of 8 bits
//   the same with _any         any group and zeros; those without: groups of 128 or more, no zeros
//
// Arguments (one struct by value, see quant_layout.cuh; every pointer 16-byte aligned): a tensor
// map of x, packed weights, bias [n] f32 or NULL, and one of the epilogues
//   BIAS:      out [rows, n] f16    = y (+ bias)
//   STORE_F32: out [rows, n] f32    = y (+ bias)
//   ADD_F32:   out [rows, n] f32   += y (+ bias)             (the residual stream)
//   GATE_UP:   out [rows, n/2] f16  = up * silu(gate); rows of W in blocks of 16: 8 gate rows, then
//              the up rows of the same 8 outputs; no bias
// n is a multiple of 8, of 16 for GATE_UP; k of 128.
//
// Arithmetic: code - zero is a small integer, exact in f16; products with x are summed in f32 over
// the 32, 64 or 128 k of a chunk that share a scale, and times the scale in f32. One rounding to
// f16 at the end. A row's bits depend on that row and W only: not on the number of rows, the kernel
// (_8 or _16), the grid or the run.
//
// Launch: grid = number of SMs (any grid is right), block = NUM_THREADS, dynamic shared memory =
// shared_bytes, one block an SM. Needs sm_90a; the entry points exist on other machines and do
// nothing. Dependent launch is optional: weights are requested before griddepcontrol.wait.
//
//   feeder --> ring of weights (stages of 33 KB: 8 chunks of 4 bits, 4 of 8) --+
//   feeder of x, by tensor map --> ring of slices of x --------------------------+--> 4 warpgroups
//
// A warpgroup takes a quarter of each stage's k: codes to f16 in registers, which are wgmma's first
// operand, with x in shared memory as the second, so that 16 rows cost what 8 do. A stage is for
// one tile; up to 6 tiles (3 of 16 rows) share a slice of x. At the end the warpgroups' sums are
// added in the place of x.
//
// Bytes: n k bits / 8 (1 + 16 / (bits * group)) from memory; x from the L2, 2 rows k for each tile
// of a block when it has one, a third or sixth of it when it has more. Instructions: 107 a warp and
// chunk at 4 bits, of 220 that fit in a chunk's time on the bus.
//
// Ladder (H200, 2026-11-25, 4,540 GB/s; share of a streaming read for the linears of 20 layers of
// 72B with dependent launch and stand-ins for norms and attention, at 1, 8 and 16 rows)
//   mma.sync, x in registers, 8 warps, tiles of 16 rows. 4 bits 62.0, 60.3, 47.0; 8
//   bits 92.7, 90.2, 81.1. wgmma with codes in registers; x copied and summed (zeros taken from the
//   sums) by three warps:
//     66.2, 62.2, 51.7. A slice of x takes 0.9 us, more than one tile of weights.
//   x by cp.async: 66.0, 64.1, 44.5. fence.proxy.async waits for all copies that are on their way.
//   x by tensor map, two warps sum it on the matrix units: 73.4, 71.6, 56.6. They queue behind
//   wgmma. Stages of two chunks a warpgroup: 73.6, 72.3, 57.3. No sums: the zero is subtracted from
//   every code (9 instructions for 8 codes instead of 5, but
//     half the sums to scale); one half of a chunk is converted while another is
//     multiplied: 77.6, 75.9, 67.5. Compute alone (no copies) takes 0.9 us a stage, the bus 0.97:
//     too near to make up a late start.
//   Sums of all tiles added at once, no branch for missing chunks: 79.8, 79.9, 73.0; 8
//   bits 93.0, 92.2, 90.8. In isolation (four warps a scheduler): converting and wgmma take 129
//   cycles a chunk and scheduler,
//     converting and mma.sync with ldmatrix 110, wgmma alone 106, mma.sync alone 46.
#include "quant_operand.cuh"

namespace quant {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using qwen::hopper::mma_wait;
using skinny::barrier_arrive, skinny::barrier_expect, skinny::barrier_init, skinny::barrier_wait;

// Which tiles a block owns, and in groups of how many it takes them.
template <int NT> struct Share {
    uint32_t first, tiles, group;
    __device__ explicit Share(const Arguments &a) {
        const uint32_t all = (a.n + TILE_ROWS - 1) / TILE_ROWS;
        const uint32_t most = (all + gridDim.x - 1) / gridDim.x;
        first = min(blockIdx.x * most, all);
        tiles = min(most, all - first);
        const uint32_t passes = max((most + group_tiles<NT> - 1) / group_tiles<NT>, 1);
        group = (most + passes - 1) / passes;
    }
    __device__ uint32_t passes() const { return (tiles + group - 1) / group; }
};

struct Ring {
    uint32_t size, at = 0, parity = 0;
    __device__ explicit Ring(uint32_t size) : size(size) {}
    __device__ void next() {
        if (++at == size)
            at = 0, parity ^= 1;
    }
};

// Two rings, of weights and of x, with a full and an empty barrier for each place. Between two
// passes the place of x is that of the warpgroups' sums; `pass_done` gives it back.
template <int BITS, int NT, bool ANY> struct Shared {
    using Slice = XSlice<BITS, NT>;
    uint32_t x, weights, full, empty, x_full, x_empty, pass_done;
    float *sums;
    __device__ explicit Shared(unsigned char *base) {
        x = skinny::shared_address(base);
        weights = x + x_bytes<NT>;
        sums = reinterpret_cast<float *>(base);
        full = weights + ring_bytes<NT>, empty = full + MAX_STAGES * 8;
        x_full = empty + MAX_STAGES * 8, x_empty = x_full + MAX_STAGES * 8,
        pass_done = x_empty + MAX_STAGES * 8;
    }
    __device__ void init_barriers() const {
        const uint32_t i = threadIdx.x;
        if (i < MAX_STAGES) {
            barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, NUM_CONSUMERS / 32);
            barrier_init(x_full + 8 * i, 1), barrier_init(x_empty + 8 * i, NUM_CONSUMERS / 32);
        }
        if (i == MAX_STAGES)
            barrier_init(pass_done, NUM_CONSUMERS / 32);
        skinny::barrier_init_fence();
    }
    // Weights of a stage, and how many stages there are.
    __device__ static uint32_t stage_bytes(const Packed &packed) {
        return Slice::CHUNKS * packed.chunk_bytes;
    }
    __device__ static uint32_t num_stages(const Packed &packed) {
        return min(ring_bytes<NT> / stage_bytes(packed), MAX_STAGES);
    }
};

// One thread: keeps the ring of weights full, from before the predecessor has ended.
template <int BITS, int NT, bool ANY>
__device__ inline void feed(const Arguments &a, const Shared<BITS, NT, ANY> &s) {
    constexpr uint32_t CHUNKS = XSlice<BITS, NT>::CHUNKS;
    const Packed packed(BITS, a.k, a.groups, a.has_zeros);
    const Share<NT> share(a);
    const uint32_t stage_bytes = s.stage_bytes(packed);
    const uint64_t tile_bytes = uint64_t(packed.chunks) * packed.chunk_bytes;
    const uint64_t policy = skinny::evict_first_policy();
    Ring at(s.num_stages(packed));
    qwen::release_successor();
    uint32_t unit = 0;
    for (uint32_t done = 0; done < share.tiles; done += share.group) {
        const uint32_t tiles = min(share.tiles - done, share.group);
        const char *group =
            static_cast<const char *>(a.weights) + (share.first + done) * tile_bytes;
        for (uint32_t chunk = 0; chunk < packed.chunks; chunk += CHUNKS) {
            const uint32_t bytes = min(CHUNKS, packed.chunks - chunk) * packed.chunk_bytes;
            const char *from = group + chunk * packed.chunk_bytes;
            for (uint32_t t = 0; t < tiles; t++, unit++, from += tile_bytes, at.next()) {
                if (unit >= at.size)
                    barrier_wait(s.empty + 8 * at.at, at.parity ^ 1);
                barrier_expect(s.full + 8 * at.at, bytes);
                skinny::copy_row(s.weights + at.at * stage_bytes, from, bytes, s.full + 8 * at.at,
                                 policy);
            }
        }
    }
}

// One thread: keeps the ring of x full.
template <int BITS, int NT, bool ANY>
__device__ inline void feed_x(const Arguments &a, const Shared<BITS, NT, ANY> &s) {
    using Slice = XSlice<BITS, NT>;
    const Share<NT> share(a);
    const uint32_t passes = share.passes();
    Ring at(x_slices<BITS, NT>);
    uint32_t slice = 0; // of all passes
    asm volatile("prefetch.tensormap [%0];" ::"l"(&a.x) : "memory");
    qwen::wait_for_predecessor();
    for (uint32_t pass = 0; pass < passes; pass++) {
        if (pass > 0)
            barrier_wait(s.pass_done, (pass - 1) & 1);
        for (uint32_t k = 0; k < a.k; k += slice_k<BITS>, slice++, at.next()) {
            if (slice >= at.size)
                barrier_wait(s.x_empty + 8 * at.at, at.parity ^ 1);
            const uint32_t full = s.x_full + 8 * at.at;
            barrier_expect(full, Slice::VALUE_BYTES);
#pragma unroll
            for (uint32_t b = 0; b < Slice::BLOCKS; b++)
                qwen::hopper::load_box(s.x + at.at * Slice::VALUE_BYTES +
                                           b * NT * Slice::BLOCK_BYTES,
                                       &a.x, k + b * 64, 0, full);
        }
    }
}

// A warp's part of a chunk: 16 rows of W.
template <int BITS, bool ANY> struct Chunk {
    static constexpr int BLOCKS = ANY ? 4 : 1; // that may have scales of their own
    Codes<BITS> codes;
    uint32_t scales[BLOCKS], zeros[BLOCKS]; // of rows g and g + 8

    // A chunk beyond the last gets a scale of 0; its codes are old ones, and its x is 0.
    __device__ void load(const Arguments &a, const Packed &packed, uint32_t at, bool is_there) {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
        for (int i = 0; i < Codes<BITS>::LOADS; i++)
            codes.v[i] = load_shared(at + (warp * Codes<BITS>::LOADS * 32 + lane) * 16 + i * 512);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            const uint32_t scale = at + packed.code_bytes + (warp * 8 + lane / 4) * 4 +
                                   (ANY ? b * a.groups / 4 * 128 : 0);
            scales[b] = is_there ? load_word(scale) : 0;
            zeros[b] = BITS == 4 ? 0x48004800u : 0x58005800u; // 8, 128
            if (ANY && a.has_zeros && is_there)
                zeros[b] = load_word(scale + packed.scale_bytes);
        }
    }
    __device__ Zero zero(int b, int half) const {
        const __half2 both = half2_of(zeros[b]);
        return ANY ? Zero(half == 0 ? __low2half(both) : __high2half(both)) : Zero::middle<BITS>();
    }
    // p (+)= some steps, from FIRST on, times their k of chunk number `index` of the slice of x at
    // `x`, asynchronously. Block B has their scale.
    template <int NT, bool GOES_ON, int FIRST, int B, int... I>
    __device__ void issue(float (&p)[NT * 4], uint32_t x, uint32_t index,
                          std::integer_sequence<int, I...>) const {
        const Zero zeros[2] = {zero(B, 0), zero(B, 1)};
        uint32_t op[sizeof...(I)][4];
        (codes.template operand<FIRST + I>(op[I], zeros), ...);
        qwen::hopper::mma_fence();
        (mma < GOES_ON || I != 0 > (p, op[I], XSlice<BITS, NT>::descriptor(x, index, FIRST + I)),
         ...);
        qwen::hopper::mma_commit();
    }
    template <int NT, int HALF>
    __device__ void issue_half(float (&p)[NT * 4], uint32_t x, uint32_t index) const {
        issue<NT, HALF == 1, 4 * HALF, 0>(p, x, index, std::make_integer_sequence<int, 4>());
    }
    template <int NT, int B>
    __device__ void issue_block(float (&p)[NT * 4], uint32_t x, uint32_t index) const {
        issue<NT, false, 2 * B, B>(p, x, index, std::make_integer_sequence<int, 2>());
    }
    template <int NT>
    __device__ void add(float (&acc)[NT * 4], const float (&p)[NT * 4], int b) const {
        const float2 s = __half22float2(half2_of(scales[b]));
#pragma unroll
        for (int i = 0; i < NT * 4; i++)
            acc[i] = fmaf(i % 4 < 2 ? s.x : s.y, p[i], acc[i]);
    }
};

template <int BITS, int NT, bool ANY> struct Consumer {
    using Slice = XSlice<BITS, NT>;
    static constexpr uint32_t GROUP = group_tiles<NT>, CHUNKS = group_chunks<BITS>;
    const Arguments &a;
    const Shared<BITS, NT, ANY> &s;
    const Packed packed;
    uint32_t warp, lane, wg;

    __device__ Consumer(const Arguments &a, const Shared<BITS, NT, ANY> &s)
        : a(a), s(s), packed(BITS, a.k, a.groups, a.has_zeros), warp(threadIdx.x / 32 % 4),
          lane(threadIdx.x % 32), wg(__shfl_sync(~0u, threadIdx.x / 128, 0)) {}

    __device__ void arrive(uint32_t barrier) const {
        __syncwarp();
        if (lane == 0)
            barrier_arrive(barrier);
    }
    // acc += a chunk in registers times the slice of x at `x`, of which it is number `index`.
    __device__ void multiply(float (&acc)[NT * 4], const Chunk<BITS, ANY> &chunk, uint32_t x,
                             uint32_t index) const {
        float p[NT * 4];
        chunk.template issue_half<NT, 0>(p, x, index);
        chunk.template issue_half<NT, 1>(p, x, index);
        mma_wait<0>();
        chunk.template add<NT>(acc, p, 0);
    }
    // The same of two, with one half always on its way while the next is converted.
    __device__ void multiply(float (&acc)[NT * 4], const Chunk<BITS, ANY> (&two)[2], uint32_t x,
                             uint32_t index) const {
        float p[2][NT * 4];
        two[0].template issue_half<NT, 0>(p[0], x, index);
        two[0].template issue_half<NT, 1>(p[0], x, index);
        mma_wait<1>();
        two[1].template issue_half<NT, 0>(p[1], x, index + 1);
        mma_wait<1>();
        two[0].template add<NT>(acc, p[0], 0);
        two[1].template issue_half<NT, 1>(p[1], x, index + 1);
        mma_wait<0>();
        two[1].template add<NT>(acc, p[1], 0);
    }
    template <int B>
    __device__ void multiply_block(float (&acc)[NT * 4], const Chunk<BITS, ANY> &chunk, uint32_t x,
                                   uint32_t index) const {
        float p[NT * 4];
        chunk.template issue_block<NT, B>(p, x, index);
        mma_wait<0>();
        chunk.template add<NT>(acc, p, B);
    }
    // A stage times a slice of x; of the stage, `chunks` are there.
    __device__ void stage(float (&acc)[NT * 4], uint32_t weights, uint32_t empty, uint32_t x,
                          uint32_t chunks) const {
        Chunk<BITS, ANY> chunk[CHUNKS];
        const uint32_t first = wg * CHUNKS, from = weights + first * packed.chunk_bytes;
#pragma unroll
        for (uint32_t c = 0; c < CHUNKS; c++)
            chunk[c].load(a, packed, from + c * packed.chunk_bytes, first + c < chunks);
        if constexpr (!ANY && CHUNKS == 2)
            multiply(acc, chunk, x, first);
        else
#pragma unroll
            for (uint32_t c = 0; c < CHUNKS; c++)
                if constexpr (ANY) {
                    multiply_block<0>(acc, chunk[c], x, first + c),
                        multiply_block<1>(acc, chunk[c], x, first + c);
                    multiply_block<2>(acc, chunk[c], x, first + c),
                        multiply_block<3>(acc, chunk[c], x, first + c);
                } else {
                    multiply(acc, chunk[c], x, first + c);
                }
        arrive(empty);
    }

    // Adds the warpgroups' sums of some tiles, always in the same order, and finishes them.
    __device__ void reduce(uint32_t first, uint32_t tiles, const float (&acc)[GROUP][NT * 4]) const;

    __device__ void run() const {
        const Share<NT> share(a);
        const uint32_t stage_bytes = s.stage_bytes(packed);
        Ring at(s.num_stages(packed)), x_at(x_slices<BITS, NT>);
        qwen::wait_for_predecessor();
        for (uint32_t done = 0; done < share.tiles; done += share.group) {
            const uint32_t tiles = min(share.tiles - done, share.group);
            float acc[GROUP][NT * 4] = {};
            for (uint32_t chunk = 0; chunk < packed.chunks; chunk += Slice::CHUNKS) {
                const uint32_t x = s.x + x_at.at * Slice::VALUE_BYTES;
                barrier_wait(s.x_full + 8 * x_at.at, x_at.parity);
#pragma unroll
                for (uint32_t t = 0; t < GROUP; t++) {
                    if (t >= tiles)
                        break;
                    barrier_wait(s.full + 8 * at.at, at.parity);
                    stage(acc[t], s.weights + at.at * stage_bytes, s.empty + 8 * at.at, x,
                          packed.chunks - chunk);
                    at.next();
                }
                arrive(s.x_empty + 8 * x_at.at);
                x_at.next();
            }
            reduce(share.first + done, tiles, acc);
        }
    }
};

__device__ inline float gated(float gate, float up) { return up * (gate / (1.0f + expf(-gate))); }

// Outputs n and n + 8 of a row.
__device__ inline void finish(const Arguments &a, uint32_t row, uint32_t n, float low, float high) {
    if (row >= a.rows || n >= a.n)
        return;
    if (a.epilogue == GATE_UP) {
        const uint64_t at = uint64_t(row) * (a.n / 2) + n / 16 * 8 + n % 8;
        static_cast<__half *>(a.out)[at] = __float2half_rn(gated(low, high));
        return;
    }
    const uint64_t at = uint64_t(row) * a.n + n;
#pragma unroll
    for (uint32_t h = 0; h < 16; h += 8) {
        float y = h == 0 ? low : high;
        if (n + h >= a.n)
            return;
        if (a.bias)
            y += a.bias[n + h];
        float *wide = static_cast<float *>(a.out) + at + h;
        if (a.epilogue == STORE_F32)
            *wide = y;
        else if (a.epilogue == ADD_F32)
            *wide += y;
        else
            static_cast<__half *>(a.out)[at + h] = __float2half_rn(y);
    }
}

__device__ inline void consumers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(NUM_CONSUMERS) : "memory");
}

template <int BITS, int NT, bool ANY>
__device__ inline void Consumer<BITS, NT, ANY>::reduce(uint32_t first, uint32_t tiles,
                                                       const float (&acc)[GROUP][NT * 4]) const {
    float *mine = s.sums + threadIdx.x % 128;
    consumers_sync(); // x has been read
#pragma unroll
    for (uint32_t t = 0; t < GROUP; t++) {
        if (t >= tiles)
            break;
#pragma unroll
        for (uint32_t i = 0; i < NT * 4; i++)
            mine[((t * NT * 4 + i) * WARPGROUPS + wg) * 128] = acc[t][i];
    }
    consumers_sync();
    // Of a tile and eight rows of x, two rows of x a thread.
    for (uint32_t i = wg; i < tiles * NT * 2; i += WARPGROUPS) {
        const uint32_t tile = i / (NT * 2), m = i / 2 % NT, odd = i % 2;
        const float *low = mine + (tile * NT * 4 + m * 4 + odd) * WARPGROUPS * 128,
                    *high = low + 2 * WARPGROUPS * 128;
        finish(a, m * 8 + lane % 4 * 2 + odd, (first + tile) * TILE_ROWS + warp * 16 + lane / 4,
               ((low[0] + low[128]) + low[256]) + low[384],
               ((high[0] + high[128]) + high[256]) + high[384]);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    arrive(s.pass_done);
}

template <int BITS, int NT, bool ANY> __device__ inline void linear(const Arguments &a) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Shared<BITS, NT, ANY> s(memory);
    if (threadIdx.x < 32)
        s.init_barriers();
    __syncthreads();
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be uniform
    if (warp < NUM_CONSUMERS / 32) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
        Consumer<BITS, NT, ANY>(a, s).run();
        return;
    }
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (warp == NUM_CONSUMERS / 32 && skinny::elect())
        feed<BITS, NT, ANY>(a, s);
    else if (warp == NUM_CONSUMERS / 32 + 1 && skinny::elect())
        feed_x<BITS, NT, ANY>(a, s);
}
#else
template <int BITS, int NT, bool ANY> __device__ inline void linear(const Arguments &) {}
#endif

} // namespace quant

#define QUANT_ENTRY(name, BITS, NT, ANY)                                                           \
    extern "C" __global__ void __launch_bounds__(quant::NUM_THREADS, 1)                            \
        name(const __grid_constant__ quant::Arguments a) {                                         \
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
