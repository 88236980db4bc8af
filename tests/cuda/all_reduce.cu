// Checks and times cuda/all_reduce.cu on as many GPUs as there are (two ranks share one GPU where
// there is no other): `check` compares sums, norms, gathered logits and what is handed over with a
// host's, bit by bit; `soak CALLS` compares sums of many calls with random delays, recorded and
// not; `lost` sees that whoever waits in vain says so and ends; `time` gives microseconds a call.
#include "../../cuda/all_reduce.cu"

#include "ranks.cuh"

#include <cmath>
#include <string>

__global__ void compare(const float *x, uint32_t count, uint32_t call, uint32_t world,
                        uint32_t *wrong) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        if (__float_as_uint(x[i]) != __float_as_uint(sum_of(call, world, i)))
            atomicAdd(wrong, 1);
}
__global__ void compare_next(const float *x, uint32_t count, uint32_t *call, uint32_t world,
                             uint32_t *wrong) {
    const uint32_t now = *call;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x)
        if (__float_as_uint(x[i]) != __float_as_uint(sum_of(now, world, i)))
            atomicAdd(wrong, 1);
    __syncthreads();
    if (threadIdx.x == 0)
        *call = now + 1;
}

// `x`, if it is given, was handed over by rank `from`; `full`, of `columns`, if it is given, is
// what the last rank had.
__global__ void compare_handed(const float *x, const float *full, uint32_t count, uint32_t columns,
                               uint32_t *call, uint32_t from, uint32_t last, uint32_t *wrong) {
    const uint32_t now = *call;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const float sum = number(now, from, i) + number(now, from + 50, i) + 0.0f;
        if (x && __float_as_uint(x[i]) != __float_as_uint(sum))
            atomicAdd(wrong, 1);
        const float logit = number(now, last, i) + 0.0f;
        if (full && i < columns && __float_as_uint(full[i]) != __float_as_uint(logit))
            atomicAdd(wrong, 1);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *call = now + 1;
}

static void reduce(const Rank &rank, uint32_t rows, uint32_t cols, Then then) {
    launch(all_reduce_bf16, rank,
           ReduceArguments{rank.peers, rank.x, rank.residual, rank.gain, rank.weighted,
                           rank.squares, rows, cols, then, 0});
}

static uint64_t check_norm(std::vector<Rank> &ranks, uint32_t rows, uint32_t cols, uint32_t call) {
    const uint32_t count = rows * cols, world = ranks.size(), NORM_CALL = call ^ 0x55555555u;
    std::vector<float> residual(count), gain(cols);
    for (uint32_t i = 0; i < count; i++)
        residual[i] = number(NORM_CALL, 100, i);
    for (uint32_t i = 0; i < cols; i++)
        gain[i] = number(NORM_CALL, 101, i);
    for (Rank &rank : ranks) {
        CHECK(cudaSetDevice(rank.device));
        CHECK(cudaMemcpy(rank.residual, residual.data(), count * 4, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(rank.gain, gain.data(), cols * 4, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(rank.call, &call, 4, cudaMemcpyHostToDevice));
        make<<<64, 256, 0, rank.stream>>>(rank.x, count, rank.call, rank.peers.rank, true);
        reduce(rank, rows, cols, ADD_NORM);
    }
    wait_for(ranks);
    uint64_t wrong = 0;
    for (Rank &rank : ranks) {
        const auto got = fetch(rank.residual, count);
        const auto weighted = fetch(rank.weighted, count);
        const uint32_t tiles = (cols + 15) / 16;
        const auto squares = fetch(rank.squares, rows * tiles * 2);
        for (uint32_t i = 0; i < count; i++) {
            const float want = sum_of(call, world, i) + residual[i];
            const bf16 half = __float2bfloat16_rn(want * gain[i % cols]);
            wrong += memcmp(&got[i], &want, 4) != 0 || memcmp(&weighted[i], &half, 2) != 0;
        }
        for (uint32_t eighth = 0; eighth < count / 8; eighth++) {
            double sum = 0;
            for (uint32_t i = 0; i < 8; i++)
                sum += double(got[eighth * 8 + i]) * got[eighth * 8 + i];
            const uint32_t row = eighth / (cols / 8), at = eighth % (cols / 8);
            // Eight products and sums, each rounded once.
            wrong += !(std::fabs(squares[row * tiles * 2 + at] - sum) <= 9 * sum / (1 << 24));
        }
    }
    return wrong;
}

static uint64_t check_gather(std::vector<Rank> &ranks, uint32_t rows, uint32_t all, uint32_t call) {
    const uint32_t world = ranks.size();
    GatherArguments a{};
    for (uint32_t r = 0; r < world; r++)
        a.starts[r + 1] = a.starts[r] + all / world + (r < all % world);
    a.rows = rows;
    for (Rank &rank : ranks) {
        const uint32_t r = rank.peers.rank, width = a.starts[r + 1] - a.starts[r];
        CHECK(cudaSetDevice(rank.device));
        CHECK(cudaMemcpy(rank.call, &call, 4, cudaMemcpyHostToDevice));
        make<<<64, 256, 0, rank.stream>>>(rank.x, rows * width, rank.call, r, true);
        a.peers = rank.peers, a.part = rank.x, a.full = rank.full;
        launch(gather_logits, rank, a);
    }
    wait_for(ranks);
    uint64_t wrong = 0;
    for (Rank &rank : ranks) {
        const auto got = fetch(rank.full, size_t(rows) * all);
        for (uint32_t r = 0; r < world; r++) {
            const uint32_t width = a.starts[r + 1] - a.starts[r];
            for (uint32_t i = 0; i < rows * width; i++) {
                const float want = number(call, r, i) + 0.0f;
                const float found = got[size_t(i / width) * all + a.starts[r] + i % width];
                wrong += memcmp(&want, &found, 4) != 0;
            }
        }
    }
    return wrong;
}

// Steps of ranks with whole layers: streams are handed over, the last rank alone has logits; nobody
// waits on the host in between, and some are late.
static uint64_t check_relay(std::vector<Rank> &ranks, uint32_t steps) {
    const uint32_t world = ranks.size(), last = world - 1;
    for (Rank &rank : ranks) {
        CHECK(cudaSetDevice(rank.device));
        CHECK(cudaMemset(rank.call, 0, 4));
    }
    for (uint32_t step = 0; step < steps; step++)
        for (Rank &rank : ranks) {
            const uint32_t r = rank.peers.rank, count = 4 + step % 7 * 2048;
            const uint32_t columns = count - step % 2;
            const bool has_logits = step % 3 != 0; // a part of a prompt has none
            // Mostly forwards, as layers go.
            const uint32_t from = step % 5 == 0 ? last : step % last;
            const uint32_t to = step % 5 == 0 ? step % last : from + 1;
            CHECK(cudaSetDevice(rank.device));
            make<<<8, 256, 0, rank.stream>>>(rank.x, count, rank.call, r, true);
            make<<<8, 256, 0, rank.stream>>>(rank.residual, count, rank.call, r + 50, false);
            GatherArguments logits{rank.peers, rank.x, rank.full, {}, 1};
            logits.starts[world] = columns;
            if (has_logits)
                launch(gather_logits, rank, logits);
            launch(hand_over, rank,
                   HandArguments{rank.peers, rank.x, rank.residual, count, from, to, 0});
            compare_handed<<<1, 1024, 0, rank.stream>>>(r == to ? rank.x : nullptr,
                                                        has_logits ? rank.full : nullptr, count,
                                                        columns, rank.call, from, last, rank.wrong);
        }
    wait_for(ranks);
    uint64_t wrong = 0;
    for (Rank &rank : ranks)
        wrong += fetch(rank.peers.has_failed, 1)[0] + (fetch(rank.call, 1)[0] != steps);
    return wrong;
}

static int check(std::vector<Rank> &ranks) {
    const uint32_t world = ranks.size();
    uint64_t wrong = 0;
    uint32_t call = 0, cases = 0;
    for (uint32_t rows : {1, 2, 3, 7, 16, 64, 128})
        for (uint32_t cols : {8, 24, 2048, 5120, 8192}) {
            call++, cases += 3;
            for (Rank &rank : ranks) {
                CHECK(cudaSetDevice(rank.device));
                CHECK(cudaMemcpy(rank.call, &call, 4, cudaMemcpyHostToDevice));
                make<<<64, 256, 0, rank.stream>>>(rank.x, rows * cols, rank.call, rank.peers.rank,
                                                  true);
                reduce(rank, rows, cols, STORE);
                compare<<<64, 256, 0, rank.stream>>>(rank.x, rows * cols, call, world, rank.wrong);
            }
            wait_for(ranks);
            wrong += check_norm(ranks, rows, cols, ++call);
            wrong += check_gather(ranks, rows, cols % 3 == 0 ? cols + 1 : cols, ++call);
        }
    wrong += check_relay(ranks, 3000), cases += 3000;
    for (Rank &rank : ranks)
        wrong += fetch(rank.wrong, 1)[0];
    printf("check: %u ranks, %u cases, %llu wrong\n", world, cases, (unsigned long long)wrong);
    return wrong != 0;
}

static int soak(std::vector<Rank> &ranks, uint32_t calls) {
    constexpr uint32_t EACH = 50;
    const uint32_t world = ranks.size();
    std::vector<cudaGraphExec_t> graphs(world);
    const auto queue = [&](Rank &rank, uint32_t count) {
        for (uint32_t i = 0; i < EACH; i++) {
            const uint32_t some = count + i % 3 * 1024; // calls of several lengths
            make<<<8, 256, 0, rank.stream>>>(rank.x, some, rank.call, rank.peers.rank, true);
            reduce(rank, 1, some, STORE);
            compare_next<<<1, 1024, 0, rank.stream>>>(rank.x, some, rank.call, world, rank.wrong);
        }
    };
    for (Rank &rank : ranks) {
        CHECK(cudaSetDevice(rank.device));
        CHECK(cudaMemset(rank.call, 0, 4));
        cudaGraph_t graph;
        CHECK(cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal));
        queue(rank, 2048);
        CHECK(cudaStreamEndCapture(rank.stream, &graph));
        CHECK(cudaGraphInstantiate(&graphs[rank.peers.rank], graph, 0));
    }
    for (uint32_t done = 0; done < calls; done += EACH) {
        const bool is_eager = done / EACH % 8 == 7;
        for (Rank &rank : ranks) {
            CHECK(cudaSetDevice(rank.device));
            if (is_eager)
                queue(rank, 8192);
            else
                CHECK(cudaGraphLaunch(graphs[rank.peers.rank], rank.stream));
        }
        if (done / EACH % 64 == 63)
            wait_for(ranks);
    }
    wait_for(ranks);
    uint64_t wrong = 0;
    for (Rank &rank : ranks) {
        wrong += fetch(rank.wrong, 1)[0] + fetch(rank.peers.has_failed, 1)[0];
        wrong += fetch(rank.call, 1)[0] < calls;
    }
    printf("soak: %u ranks, %u calls, %llu wrong\n", world, calls, (unsigned long long)wrong);
    return wrong != 0;
}

static int lost(std::vector<Rank> &ranks, Shared *shared) {
    Rank &rank = ranks[0];
    CHECK(cudaSetDevice(rank.device));
    int bad = 0;
    for (bool is_told : {false, true}) {
        CHECK(cudaMemset(rank.peers.has_failed, 0, 4));
        memset(shared, 0, sizeof *shared);
        const uint64_t timeout = rank.peers.timeout_ns;
        rank.peers.timeout_ns = is_told ? 20'000'000'000 : 300'000'000;
        timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int i = 0; i < 100; i++)
            reduce(rank, 1, 8192, STORE);
        if (is_told)
            reinterpret_cast<volatile Shared *>(shared)->abandoned = 1;
        CHECK(cudaStreamSynchronize(rank.stream));
        clock_gettime(CLOCK_MONOTONIC, &end);
        const double ms = (end.tv_sec - begin.tv_sec) * 1e3 + (end.tv_nsec - begin.tv_nsec) * 1e-6;
        const uint32_t said = reinterpret_cast<volatile Shared *>(shared)->failed[0];
        printf("lost: %s: ended after %.1f ms, failed %u\n", is_told ? "told" : "timeout", ms,
               said);
        bad += ms > 1000 || said != (is_told ? 0u : 1u) || fetch(rank.peers.has_failed, 1)[0] != 1;
        rank.peers.timeout_ns = timeout;
    }
    return bad;
}

static void time_calls(std::vector<Rank> &ranks) {
    constexpr uint32_t EACH = 200;
    const uint32_t world = ranks.size();
    const char *const names[] = {"sum", "sum+norm", "handed"};
    for (uint32_t what : {0, 1, 2})
        for (uint32_t rows : {1, 2, 4, 8, 16, 32, 64, 128}) {
            std::vector<cudaGraphExec_t> graphs(world);
            for (Rank &rank : ranks) {
                CHECK(cudaSetDevice(rank.device));
                cudaGraph_t graph;
                CHECK(cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal));
                for (uint32_t i = 0; i < EACH; i++)
                    if (what < 2)
                        reduce(rank, rows, 8192, Then(what));
                    else
                        launch(
                            hand_over, rank,
                            HandArguments{rank.peers, rank.x, rank.residual, rows * 8192, 0, 1, 0});
                CHECK(cudaStreamEndCapture(rank.stream, &graph));
                CHECK(cudaGraphInstantiate(&graphs[rank.peers.rank], graph, 0));
            }
            float best = 1e9f;
            for (int repeat = 0; repeat < 6; repeat++) {
                cudaEvent_t begin, end;
                CHECK(cudaSetDevice(ranks[0].device));
                CHECK(cudaEventCreate(&begin));
                CHECK(cudaEventCreate(&end));
                for (uint32_t i = world; i-- > 0;) {
                    Rank &rank = ranks[i];
                    CHECK(cudaSetDevice(rank.device));
                    for (int times = 0; times < 2; times++) { // the second one begins together
                        if (i == 0 && times == 1)
                            CHECK(cudaEventRecord(begin, rank.stream));
                        CHECK(cudaGraphLaunch(graphs[i], rank.stream));
                    }
                    if (i == 0)
                        CHECK(cudaEventRecord(end, rank.stream));
                }
                wait_for(ranks);
                float ms;
                CHECK(cudaEventElapsedTime(&ms, begin, end));
                best = std::min(best, ms);
            }
            printf("time: %u ranks, %-8s %3u rows of 8192: %6.2f us\n", world, names[what], rows,
                   best * 1e3 / EACH);
        }
}

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "check";
    int devices;
    Shared *shared;
    std::vector<Rank> ranks = make_ranks(devices, &shared);
    printf("%zu ranks on %d devices\n", ranks.size(), devices);
    if (mode == "check")
        return check(ranks);
    if (mode == "soak")
        return soak(ranks, argc > 2 ? atoi(argv[2]) : 1000000);
    if (mode == "lost")
        return lost(ranks, shared);
    if (mode == "time")
        time_calls(ranks);
    return 0;
}
