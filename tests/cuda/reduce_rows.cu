// Checks and times cuda/reduce_rows.cu on as many GPUs as there are (two ranks share one GPU where
// there is no other): `check` compares sums bit by bit and norms with float64, for many calls with
// random delays; `time` gives microseconds a call.
#include "../../cuda/reduce_rows.cu"

#include "ranks.cuh"

#include <cmath>
#include <string>

constexpr uint32_t MOST_ROWS = 2112, MOST_BLOCKS = 256;
// Two ranks on one GPU must find room together.
static uint32_t blocks_a_rank = MOST_BLOCKS;
constexpr float EPSILON = 1e-6f;

struct Rows {
    Rank rank;
    float *x, *residual, *staging;
    bf16 *out;
    uint32_t *flags, *counts, *wanted;
    float *gathered;
};

static std::vector<Rows> make_rows(std::vector<Rank> &ranks) {
    std::vector<Rows> all;
    for (Rank &rank : ranks) {
        CHECK(cudaSetDevice(rank.device));
        Rows r{rank};
        const size_t most = size_t(MOST_ROWS) * MOST_COLS;
        r.staging = take<float>(most + ranks.size() * MOST_COLS);
        r.x = take<float>(most), r.residual = take<float>(most), r.out = take<bf16>(most);
        r.flags = take<uint32_t>(ranks.size() * MOST_BLOCKS);
        const std::vector<uint32_t> empty(ranks.size() * MOST_BLOCKS, EMPTY);
        CHECK(cudaMemcpy(r.flags, empty.data(), empty.size() * 4, cudaMemcpyHostToDevice));
        r.counts = take<uint32_t>(MOST_BLOCKS), r.wanted = take<uint32_t>(64);
        r.gathered = take<float>(64 * MOST_COLS);
        all.push_back(r);
    }
    return all;
}

static RowsArguments arguments(const std::vector<Rows> &all, const Rows &own, uint32_t rows,
                               uint32_t cols, bool with_norm) {
    RowsArguments a{own.rank.peers};
    for (size_t r = 0; r < all.size(); r++)
        a.x[r] = all[r].x, a.out[r] = all[r].out, a.flags[r] = all[r].flags,
        a.staging[r] = all[r].staging;
    a.residual = with_norm ? own.residual : nullptr, a.weight = own.rank.gain;
    a.counts = own.counts, a.rows = rows, a.cols = cols, a.epsilon = EPSILON;
    a.each = (rows + all.size() - 1) / all.size();
    return a;
}

static void reduce(const std::vector<Rows> &all, const Rows &own, uint32_t rows, uint32_t cols,
                   bool with_norm) {
    launch(reduce_rows_bf16, own.rank, arguments(all, own, rows, cols, with_norm), blocks_a_rank,
           NORM_THREADS);
}

static void wait_for(std::vector<Rows> &all) {
    for (Rows &own : all) {
        CHECK(cudaSetDevice(own.rank.device));
        CHECK(cudaStreamSynchronize(own.rank.stream));
    }
}

static uint64_t check_case(std::vector<Rows> &all, uint32_t rows, uint32_t cols, uint32_t call) {
    const uint32_t count = rows * cols, world = all.size(), each = (rows + world - 1) / world;
    std::vector<float> residual(count), gain(cols);
    for (uint32_t i = 0; i < count; i++)
        residual[i] = number(call ^ 0x55555555u, 100, i);
    for (uint32_t i = 0; i < cols; i++)
        gain[i] = number(call ^ 0x55555555u, 101, i);
    const std::vector<uint32_t> wanted = {0, rows / 3, rows - 1};
    for (Rows &own : all) {
        CHECK(cudaSetDevice(own.rank.device));
        CHECK(cudaMemcpy(own.residual, residual.data(), count * 4, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(own.rank.gain, gain.data(), cols * 4, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(own.rank.call, &call, 4, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(own.wanted, wanted.data(), 12, cudaMemcpyHostToDevice));
    }
    for (Rows &own : all) {
        CHECK(cudaSetDevice(own.rank.device));
        const uint32_t r = own.rank.peers.rank;
        make<<<64, 256, 0, own.rank.stream>>>(own.x, count, own.rank.call, r, true);
        reduce(all, own, rows, cols, true); // x is as it was, but for what the owner read
        make<<<64, 256, 0, own.rank.stream>>>(own.x, count, own.rank.call, r, true);
        reduce(all, own, rows, cols, false);
        GatherArguments a{own.gathered, {}, own.wanted, each, cols};
        for (uint32_t other = 0; other < world; other++)
            a.residual[other] = all[other].residual;
        launch(gather_owned, own.rank, a, 3, 256);
    }
    wait_for(all);
    uint64_t wrong = 0;
    for (Rows &own : all) {
        const auto x = fetch(own.x, count);
        const auto out = fetch(own.out, count);
        const auto gathered = fetch(own.gathered, 3 * cols);
        for (uint32_t row = 0; row < rows; row++) {
            double squares = 0.0;
            std::vector<float> stream(cols);
            for (uint32_t col = 0; col < cols; col++) {
                // The kernel adds terms as they are: -0 + -0 is -0.
                float sum = number(call, 0, row * cols + col);
                for (uint32_t r = 1; r < world; r++)
                    sum += number(call, r, row * cols + col);
                wrong += memcmp(&x[row * cols + col], &sum, 4) != 0;
                stream[col] = residual[row * cols + col] + sum;
                squares += double(stream[col]) * stream[col];
            }
            const double scale = 1.0 / std::sqrt(squares / cols + EPSILON);
            for (uint32_t col = 0; col < cols; col++) {
                const double want = stream[col] * scale * gain[col];
                // Half a step of bf16, and a few of f32 before it.
                const double allowed = std::fabs(want) / 256.0 * 1.001 + 1e-38;
                const double got = __bfloat162float(out[row * cols + col]);
                wrong += !(std::fabs(got - want) <= allowed);
            }
            for (uint32_t i = 0; i < 3; i++)
                if (wanted[i] == row)
                    wrong += memcmp(&gathered[i * cols], stream.data(), cols * 4) != 0;
        }
    }
    return wrong;
}

static int check(std::vector<Rows> &all) {
    uint64_t wrong = 0;
    uint32_t call = 0;
    for (uint32_t repeat = 0; repeat < 8; repeat++)
        for (uint32_t rows : {1, 3, 129, 200, 511})
            for (uint32_t cols : {8, 1032, 4096, 8192})
                if (repeat == 0 || rows * cols < 1 << 20)
                    wrong += check_case(all, rows, cols, ++call);
    for (Rows &own : all)
        wrong += fetch(own.rank.peers.has_failed, 1)[0];
    printf("check: %zu ranks, %u cases, %llu wrong\n", all.size(), call, (unsigned long long)wrong);
    return wrong != 0;
}

static void time_calls(std::vector<Rows> &all) {
    constexpr uint32_t EACH = 40;
    for (bool with_norm : {false, true})
        for (uint32_t rows : {129, 256, 512, 1024, 2048}) {
            float best = 1e9f;
            for (int repeat = 0; repeat < 5; repeat++) {
                cudaEvent_t begin, end;
                CHECK(cudaSetDevice(all[0].rank.device));
                CHECK(cudaEventCreate(&begin));
                CHECK(cudaEventCreate(&end));
                for (size_t i = all.size(); i-- > 0;) {
                    CHECK(cudaSetDevice(all[i].rank.device));
                    reduce(all, all[i], rows, 8192, with_norm); // the next ones begin together
                    if (i == 0)
                        CHECK(cudaEventRecord(begin, all[0].rank.stream));
                    for (uint32_t n = 0; n < EACH; n++)
                        reduce(all, all[i], rows, 8192, with_norm);
                }
                CHECK(cudaEventRecord(end, all[0].rank.stream));
                wait_for(all);
                float ms;
                CHECK(cudaEventElapsedTime(&ms, begin, end));
                best = std::min(best, ms);
            }
            const double us = best * 1e3 / EACH, world = all.size();
            const double bytes = (with_norm ? 6.0 : 8.0) * rows * 8192 * (world - 1) / world;
            printf("time: %zu ranks, %-8s %4u rows of 8192: %7.2f us, %5.0f GB/s each way\n",
                   all.size(), with_norm ? "sum+norm" : "sum", rows, us, bytes / us / 1e3);
        }
}

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "check";
    int devices;
    std::vector<Rank> ranks = make_ranks(devices, nullptr);
    std::vector<Rows> all = make_rows(ranks);
    if (devices == 1)
        blocks_a_rank = MOST_BLOCKS / 2;
    printf("%zu ranks on %d devices\n", ranks.size(), devices);
    if (mode == "check")
        return check(all);
    if (mode == "time")
        time_calls(all);
    return 0;
}
