// What the GPUs of one engine add up and put together. exchange.cuh has how numbers travel.
//
//   all_reduce_T     x = sum over ranks of x, and what follows:
//     STORE          x [rows, cols] f32 = the sum
//     ADD_NORM       residual += the sum; weighted [rows, cols] T = residual * gain / range;
//                    squares = sums of eight residual^2, as linear_arguments.cuh has them
//   gather_logits    full [rows, all columns] f32 = the ranks' columns side by side; a rank may
//                    have none
//   hand_over        x [count] f32 of rank `to` = x + delta of rank `from`
//
// Shapes: x, residual [rows, cols] f32, cols a multiple of 8; gain [cols] f32; rows * cols, and
// rows * the most columns of a rank, at most slot_floats; so is count, a multiple of 4. Terms are
// added in f32 in the order of ranks, and -0 counts as +0: all ranks get the same bits.
//
// Launch: BLOCKS blocks of THREADS, always, on all ranks the same calls in the same order.
//
//   rank 0:  |block 0: eighths 0..n/64|block 1| ...    each thread: send its eights, then for each
//   rank 1:  |block 0                 |block 1| ...    wait for the others', add, go on
//
// Bytes, of n = rows * cols floats: 4 n (world - 1) leave and arrive, over NVLink at up to 450 GB/s
// each way; 4 n * (1 + 2 (world - 1)) + 10 n of local memory. For one row latency is all: of the
// launch, of loading x, of the way to the other's memory, and of looking there: about 3 us
// expected.
//
// A rank that waits in vain (timeout, or the host's word) goes on with what is there, says so, and
// waits no more.
//
// Ladder
//   2026-11-28. First version; two H200s (NVLink, driver 580.159), chains of recorded calls: sum of
//   a
//     row of 8192 3.0 us, with the norm 3.6; of 64 rows 16.1, 19.1. A sum of pieces of 128
//     rows: 29.
//   2026-11-29. What up to four ranks have sent is looked at together. Expected: two looks of 0.7 us
//     less among four ranks. Four H200s, with the norm, before and after, 1, 2, 4, 8 rows: 4.14,
//     5.19, 6.59, 9.34 to 3.64, 4.30, 6.00, 8.92 us; 16, 64, 128: 15.4, 48.5, 96.9 to 15.1, 47.0,
//     91.8.

#include "exchange.cuh"
#include "linear_arguments.cuh"

using namespace qwen;
using namespace qwen::exchange;

namespace {

enum Then : uint32_t { STORE = 0, ADD_NORM = 1 };

struct ReduceArguments {
    Peers peers;
    float *x;          // 112
    float *residual;   // 120
    const float *gain; // 128
    void *weighted;    // 136
    float *squares;    // 144
    uint32_t rows;     // 152
    uint32_t cols;     // 156
    uint32_t then;     // 160
    uint32_t is_sent;  // 164  the linear before has sent x already
};
static_assert(sizeof(ReduceArguments) == 168, "as the host has it");

struct GatherArguments {
    Peers peers;
    const float *part;              // 112  [rows, of this rank]
    float *full;                    // 120  [rows, of all]
    uint32_t starts[MAX_WORLD + 1]; // 128  each rank's first column, then the number of all
    uint32_t rows;                  // 164
};
static_assert(sizeof(GatherArguments) == 168, "as the host has it");

struct HandArguments {
    Peers peers;
    float *x;           // 112
    const float *delta; // 120
    uint32_t count;     // 128
    uint32_t from, to;  // 132
    uint32_t unused;    // 140
};
static_assert(sizeof(HandArguments) == 144, "as the host has it");

using Four = Numbers<4>;

struct Eight {
    Four of[2];

    __device__ static Eight load(const float *from) {
        return {{Four::load(from), Four::load(from + 4)}};
    }
    __device__ void store(float *to) const { of[0].store(to), of[1].store(to + 4); }
    __device__ float at(int i) const { return of[i / 4].at[i % 4]; }
    __device__ void add(const Eight &other) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            of[i / 4].at[i % 4] += other.at(i);
    }
};

// Eight of `x` summed over all ranks, in their order; `own` is this rank's. Several are looked at
// together, as registers have room; of two ranks there is but one to look at.
__device__ Eight sum_of_ranks(const ReduceArguments &a, const Call &call, const Eight &own,
                              uint64_t at, Patience &patience) {
    constexpr int TOGETHER = 4;
    Eight sum;
    if (a.peers.world == 2) {
        Eight other;
        call.receive(other.of, 1 - a.peers.rank, at, patience);
        sum = own;
        sum.add(other); // in either order the same
        return sum;
    }
#pragma unroll 1
    for (uint32_t first = 0; first < a.peers.world; first += TOGETHER) {
        Four terms[TOGETHER][2];
        call.receive_several(terms, first, at, patience);
#pragma unroll
        for (uint32_t i = 0; i < TOGETHER; i++) {
            const bool is_own = first + i == a.peers.rank;
            const Eight term = {{is_own ? own.of[0] : terms[i][0],
                                 is_own ? own.of[1] : terms[i][1]}};
            if (first + i == 0)
                sum = term;
            else if (first + i < a.peers.world)
                sum.add(term);
        }
    }
    return sum;
}

// What becomes of an eighth of a row; what that reads is asked for before the sum is there.
template <typename T> struct AddNorm {
    uint64_t at, squares_at;
    Eight residual, gain;

    __device__ AddNorm(const ReduceArguments &a, uint32_t eighth) : at(uint64_t(eighth) * 8) {
        const uint32_t eighths = a.cols / 8, row = eighth / eighths, col = eighth % eighths * 8;
        squares_at = linear::squares_at(row, col, a.cols) + col / 8 % 2;
        residual = Eight::load(a.residual + at);
        gain = Eight::load(a.gain + col);
    }
    __device__ void finish(const ReduceArguments &a, Eight sum) const {
        sum.add(residual);
        sum.store(a.residual + at);
        Vec8<T> weighted;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            weighted.at[i] = from_f32<T>(linear::weigh<T>(sum.at(i), gain.at(i)));
            squares += sum.at(i) * sum.at(i);
        }
        reinterpret_cast<Vec8<T> *>(a.weighted)[at / 8] = weighted;
        a.squares[squares_at] = squares;
    }
};

template <typename T> __device__ void all_reduce(const ReduceArguments &a) {
    wait_for_predecessor();
    release_successor();
    const Call call(a.peers);
    const uint32_t count = a.rows * a.cols;
    const Part part(count / 8);
    const auto own = [&](uint32_t eighth) {
        const Eight x = Eight::load(a.x + uint64_t(eighth) * 8);
        return Eight{{sendable(x.of[0]), sendable(x.of[1])}};
    };
    for (uint32_t i = part.begin + threadIdx.x; i < part.end && !a.is_sent; i += THREADS) {
        const Eight x = own(i);
        call.send(x.of[0], uint64_t(i) * 8);
        call.send(x.of[1], uint64_t(i) * 8 + 4);
    }
    Patience patience(a.peers);
    for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += THREADS) {
        const uint64_t at = uint64_t(i) * 8;
        if (a.then == ADD_NORM) {
            const AddNorm<T> next(a, i);
            next.finish(a, sum_of_ranks(a, call, own(i), at, patience));
        } else {
            sum_of_ranks(a, call, own(i), at, patience).store(a.x + at);
        }
    }
    call.end(count);
}

// VECTOR columns at a time.
template <int VECTOR> struct Gather {
    const GatherArguments &a;
    const Call call;
    Patience patience;

    __device__ explicit Gather(const GatherArguments &a) : a(a), call(a.peers), patience(a.peers) {}

    // `rank` has no columns.
    __device__ void without(uint32_t rank) {
        if (rank != a.peers.rank)
            return call.await(rank, patience);
        for (uint32_t peer = 0; peer < a.peers.world; peer++)
            if (peer != rank)
                call.greet(peer);
    }
    __device__ void columns_of(uint32_t rank) {
        const uint32_t start = a.starts[rank], width = a.starts[rank + 1] - start;
        const uint64_t all = a.starts[a.peers.world];
        if (width == 0)
            return without(rank);
        const Part part(a.rows * width / VECTOR);
        // Whoever has no columns has had nothing to do for a while.
        const bool is_idle = a.starts[a.peers.rank] == a.starts[a.peers.rank + 1];
        if (is_idle && part.begin < part.end)
            call.wait(rank, part.begin * VECTOR, patience);
        for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += THREADS) {
            const uint32_t at = i * VECTOR, row = at / width, col = at % width;
            Numbers<VECTOR> v;
            if (rank == a.peers.rank) {
                v = sendable(Numbers<VECTOR>::load(a.part + at));
                call.send(v, at);
            } else {
                Numbers<VECTOR> received[1];
                call.receive(received, rank, at, patience);
                v = received[0];
            }
            v.store(a.full + row * all + start + col);
        }
    }
    __device__ void run() {
        const uint32_t world = a.peers.world;
        for (uint32_t i = 0; i < world; i++) // its own first
            columns_of((a.peers.rank + i) % world);
        uint32_t most = 0;
        for (uint32_t rank = 0; rank < world; rank++)
            most = max(most, a.starts[rank + 1] - a.starts[rank]);
        call.end(a.rows * most);
    }
};

__device__ void hand_on(const HandArguments &a) {
    wait_for_predecessor();
    release_successor();
    const Call call(a.peers);
    Patience patience(a.peers);
    const uint32_t rank = a.peers.rank, world = a.peers.world;
    const Part part(a.count / 4);
    for (uint32_t peer = 0; peer < world; peer++)
        if (peer != rank && !(rank == a.from && peer == a.to))
            call.greet(peer);
    if (rank == a.from)
        for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += THREADS) {
            const uint64_t at = uint64_t(i) * 4;
            const Four x = Four::load(a.x + at), delta = Four::load(a.delta + at);
            Four sum;
#pragma unroll
            for (int j = 0; j < 4; j++)
                sum.at[j] = x.at[j] + delta.at[j];
            call.send_to(a.to, sendable(sum), at);
        }
    if (rank == a.to && part.begin < part.end) {
        call.wait(a.from, uint64_t(part.begin) * 4, patience);
        for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += THREADS) {
            const uint64_t at = uint64_t(i) * 4;
            Four received[1];
            call.receive(received, a.from, at, patience);
            received[0].store(a.x + at);
        }
    }
    for (uint32_t peer = 0; peer < world; peer++)
        if (peer != rank && !(rank == a.to && peer == a.from))
            call.await(peer, patience);
    call.end(rank == a.to ? a.count : 1);
}

} // namespace

extern "C" {

__global__ void __launch_bounds__(THREADS, 2)
    all_reduce_bf16(const __grid_constant__ ReduceArguments a) {
    all_reduce<bf16>(a);
}

__global__ void __launch_bounds__(THREADS, 2)
    all_reduce_f16(const __grid_constant__ ReduceArguments a) {
    all_reduce<f16>(a);
}

__global__ void __launch_bounds__(THREADS, 2)
    gather_logits(const __grid_constant__ GatherArguments a) {
    wait_for_predecessor();
    release_successor();
    uint32_t odd = 0;
    for (uint32_t rank = 0; rank <= a.peers.world; rank++)
        odd |= a.starts[rank] % 4;
    if (odd == 0)
        Gather<4>(a).run();
    else
        Gather<1>(a).run();
}

__global__ void __launch_bounds__(THREADS, 2) hand_over(const __grid_constant__ HandArguments a) {
    hand_on(a);
}
}
