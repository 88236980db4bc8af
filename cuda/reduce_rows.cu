// Sums over GPUs of many rows, each of which one rank adds up for all: prompts.
//
//   reduce_rows_T with a residual: the owner of a row does
//     residual += sum over ranks of x;  out = residual * rsqrt(mean(residual^2) + eps) * w
//     and writes `out` to all ranks. The residual of the others' rows stays as it was.
//   without: the owner writes the sum to x of all ranks.
//   gather_owned: to[i] = row rows[i] of the residual, from its owner.
//
// Shapes: x, residual [rows, cols] f32, w [cols] f32, out [rows, cols] T, to [number of wanted
// rows, cols] f32; cols a multiple of 8, at most MOST_COLS. Rank r owns rows r * each to (r + 1) *
// each, each = rows / world rounded up. Ranks reach each other's memory. Terms are added in f32 in
// the order of ranks; all ranks get the same bits.
//
// Launch of reduce_rows: any grid, the same on all ranks, of blocks that can all run at once.
//
//   rank 0, block b:  send its rows of 1's share to 1 | signal, wait for block b of the others
//   rank 1, block b:  send its rows of 0's share to 0 | signal, wait
//   both:             their own rows: add, norm, write to all | signal, wait
//
// The first signal says that all was sent, the second that what was written is there, and that what
// was sent has been read: the next call may send.
//
// Bytes, of n = rows * cols, with a residual: 6 n (world - 1) / world leave and arrive, each way of
// NVLink (450 GB/s). Of 2,048 rows of 8192 on two H200s: 50 MB, 126 us at 400 GB/s.
//
// Ladder (two H200s, NVLink, driver 580.159; 2,048 rows of 8192)
//   2026-11-28. Owners read x where the others have it, 128 blocks: 206 us (326 GB/s each way),
//   with
//     the norm 167 us (302 GB/s). 256 blocks: the same.
//   Sent to the owners, without a signal before, 256 blocks: 190 us (354 GB/s), with the norm 151
//   us
//     (334 GB/s).

#include "exchange.cuh"

using namespace qwen;
using namespace qwen::exchange;

namespace {

constexpr int NORM_THREADS = 512, KEPT = 4;
constexpr uint32_t MOST_COLS = NORM_THREADS * KEPT * 4;

struct RowsArguments {
    Peers peers;
    float *x[MAX_WORLD];        // 112  of each rank
    void *out[MAX_WORLD];       // 176  the same
    float *residual;            // 240  of this rank, or null
    const float *weight;        // 248
    uint32_t *flags[MAX_WORLD]; // 256  of each rank: [world][blocks], from whom
    uint32_t *counts;           // 320  of this rank: [blocks], signals so far
    float *staging[MAX_WORLD];  // 328  of each rank: [world][each][cols], from whom
    uint32_t rows, cols;        // 392
    float epsilon;              // 400
    uint32_t each;              // 404  rows of a rank
};
static_assert(sizeof(RowsArguments) == 408, "as the host has it");

// Block by block, all ranks have come so far. What they wrote before can be read.
__device__ void meet(const RowsArguments &a, uint32_t signal) {
    __syncthreads();
    if (threadIdx.x < a.peers.world && threadIdx.x != a.peers.rank) {
        const uint32_t peer = threadIdx.x;
        uint32_t *to = a.flags[peer] + a.peers.rank * gridDim.x + blockIdx.x;
        const uint32_t *from = a.flags[a.peers.rank] + peer * gridDim.x + blockIdx.x;
        __threadfence_system();
        asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(signal) : "memory");
        Patience patience(a.peers);
        uint32_t seen;
        do
            asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(from) : "memory");
        while (static_cast<int32_t>(seen - signal) < 0 && patience.lasts());
        __threadfence_system();
    }
    __syncthreads();
}

__device__ inline float4 add(float4 a, float4 b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Where rank `owner` finds `row`, which is its own, as rank `from` has sent it.
__device__ inline float *staged(const RowsArguments &a, uint32_t owner, uint32_t from,
                                uint32_t row) {
    return a.staging[owner] + uint64_t(from * a.each + row - owner * a.each) * a.cols;
}

// The rows of rank `owner` that this block has to do with.
struct Share {
    uint32_t begin, end;
    __device__ Share(const RowsArguments &a, uint32_t owner)
        : begin(owner * a.each + blockIdx.x), end(min((owner + 1) * a.each, a.rows)) {}
};

// Sends the block's rows of x to their owners.
__device__ void send_rows(const RowsArguments &a) {
    for (uint32_t owner = 0; owner < a.peers.world; owner++) {
        if (owner == a.peers.rank)
            continue;
        const Share share(a, owner);
        for (uint32_t row = share.begin; row < share.end; row += gridDim.x) {
            const float *from = a.x[a.peers.rank] + uint64_t(row) * a.cols;
            float *to = staged(a, owner, a.peers.rank, row);
            float4 v[KEPT];
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                const uint32_t col = (i * NORM_THREADS + threadIdx.x) * 4;
                if (col < a.cols)
                    v[i] = *reinterpret_cast<const float4 *>(from + col);
            }
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                const uint32_t col = (i * NORM_THREADS + threadIdx.x) * 4;
                if (col < a.cols)
                    *reinterpret_cast<float4 *>(to + col) = v[i];
            }
        }
    }
}

template <typename T> struct Row {
    const RowsArguments &a;
    uint64_t start; // of the row
    float4 kept[KEPT];

    __device__ static uint32_t col(int i) { return (i * NORM_THREADS + threadIdx.x) * 4; }

    __device__ void load(uint32_t row) {
        const uint32_t own = a.peers.rank;
        for (uint32_t rank = 0; rank < a.peers.world; rank++) {
            const float *from = rank == own ? a.x[own] + start : staged(a, own, rank, row);
            float4 term[KEPT];
#pragma unroll
            for (int i = 0; i < KEPT; i++)
                if (col(i) < a.cols)
                    // Not by the first cache: others write here.
                    term[i] = __ldcg(reinterpret_cast<const float4 *>(from + col(i)));
#pragma unroll
            for (int i = 0; i < KEPT; i++)
                kept[i] = rank == 0 ? term[i] : add(kept[i], term[i]);
        }
    }
    __device__ void store_sum() const {
        for (uint32_t rank = 0; rank < a.peers.world; rank++)
#pragma unroll
            for (int i = 0; i < KEPT; i++)
                if (col(i) < a.cols)
                    *reinterpret_cast<float4 *>(a.x[rank] + start + col(i)) = kept[i];
    }
    __device__ void add_residual(float &squares) {
#pragma unroll
        for (int i = 0; i < KEPT; i++)
            if (col(i) < a.cols) {
                float4 *at = reinterpret_cast<float4 *>(a.residual + start + col(i));
                const float4 v = kept[i] = add(*at, kept[i]);
                *at = v;
                squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            }
    }
    __device__ void store_normed(float scale) const {
        struct alignas(8) Four {
            T at[4];
        };
#pragma unroll
        for (int i = 0; i < KEPT; i++)
            if (col(i) < a.cols) {
                const float4 v = kept[i];
                const float4 w = *reinterpret_cast<const float4 *>(a.weight + col(i));
                const Four four = {from_f32<T>(v.x * scale * w.x), from_f32<T>(v.y * scale * w.y),
                                   from_f32<T>(v.z * scale * w.z), from_f32<T>(v.w * scale * w.w)};
                for (uint32_t rank = 0; rank < a.peers.world; rank++)
                    *reinterpret_cast<Four *>(static_cast<T *>(a.out[rank]) + start + col(i)) =
                        four;
            }
    }
};

template <typename T> __device__ void reduce_rows(const RowsArguments &a) {
    __shared__ float scratch[2][NORM_THREADS / 32];
    wait_for_predecessor();
    release_successor();
    // The flags are EMPTY at first, which is one less than the first signal.
    const uint32_t signal = a.counts[blockIdx.x] + EMPTY + 1;
    send_rows(a);
    meet(a, signal);
    const Share share(a, a.peers.rank);
    uint32_t turn = 0;
    for (uint32_t row = share.begin; row < share.end; row += gridDim.x, turn ^= 1) {
        Row<T> r{a, uint64_t(row) * a.cols, {}};
        r.load(row);
        if (a.residual == nullptr) {
            r.store_sum();
            continue;
        }
        float squares = 0.0f;
        r.add_residual(squares);
        const float mean = block_sum<NORM_THREADS>(squares, scratch[turn]) / float(a.cols);
        r.store_normed(1.0f / sqrtf(mean + a.epsilon));
    }
    meet(a, signal + 1);
    if (threadIdx.x == 0)
        a.counts[blockIdx.x] += 2;
}

struct GatherArguments {
    float *to;
    const float *residual[MAX_WORLD];
    const uint32_t *wanted;
    uint32_t each, cols;
};

} // namespace

extern "C" {

__global__ void __launch_bounds__(NORM_THREADS, 2)
    reduce_rows_bf16(const __grid_constant__ RowsArguments a) {
    reduce_rows<bf16>(a);
}

__global__ void __launch_bounds__(NORM_THREADS, 2)
    reduce_rows_f16(const __grid_constant__ RowsArguments a) {
    reduce_rows<f16>(a);
}

// One block a wanted row.
__global__ void __launch_bounds__(256) gather_owned(const __grid_constant__ GatherArguments a) {
    wait_for_predecessor();
    release_successor();
    const uint32_t row = a.wanted[blockIdx.x];
    const float *from = a.residual[row / a.each] + uint64_t(row) * a.cols;
    float *to = a.to + uint64_t(blockIdx.x) * a.cols;
    for (uint32_t col = threadIdx.x * 4; col < a.cols; col += blockDim.x * 4)
        *reinterpret_cast<float4 *>(to + col) =
            __ldcg(reinterpret_cast<const float4 *>(from + col));
}
}
