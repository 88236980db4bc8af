// Checks and times prefill_attention.cu and prefill_attention_sm90.cu.
//
//   prefill_attention [all | check | quick | time | N] [substring of an implementation's name]
//
// quick: few small shapes, for compute-sanitizer. N: two launches over a prompt of N tokens, for a
// profiler. prefill_attention_sdpa.py times PyTorch on the same shapes.
//
// The reference is float64: a plain kernel (one block a row and head) gives every output, and host
// loops give a sample of them again to vouch for that kernel.
//
// Tolerance, element by element, with u the unit roundoff of T (2^-8 bf16, 2^-11 f16), o the exact
// output and A = sum p |v| / sum p:
//   probabilities are rounded to T before the second product:   at most u A
//   the output is rounded to T:                                 at most u |o|
//   scores are f32 sums of D products (D / 16 tensor-core steps, each cutting below 2^-23 of the
//   running sum, which stays under 4 * 0.7 sqrt(D) * 8 here), and an error d in a score moves p by
//   d in numerator and denominator:                             under 2e-4 A
//   the second product adds n / 16 steps the same way:          n / 16 * 2^-23 A
// The mean error is far below that because roundings of single probabilities are independent: a
// quarter of the mean bound is allowed. Outputs that a launch must leave alone are poisoned before
// it, cache slots that no token owns are NaN, block table entries past a context are wild.
#include "prefill_attention.cuh"

static int failures = 0;
static void expect(bool good, const std::string &what) {
    if (good)
        return;
    ++failures;
    if (failures < 40)
        printf("FAIL %s\n", what.c_str());
}

static std::string describe(const Shape &shape, int d, const char *dtype, const char *name) {
    std::string text = std::string(name) + " " + dtype + " D=" + std::to_string(d) + " heads " +
                       std::to_string(shape.num_heads) + "/" + std::to_string(shape.num_kv_heads);
    for (size_t s = 0; s < shape.rows.size(); ++s)
        text += (s ? " " : " rows@context ") + std::to_string(shape.rows[s]) + "@" +
                std::to_string(shape.contexts[s]);
    return text;
}

struct Errors {
    double worst = 0, mean = 0, worst_ratio = 0; // ratio: error over its tolerance
};

template <typename T>
Errors compare(const Batch<T> &batch, const std::vector<T> &out, const std::vector<double> &exact,
               const std::vector<double> &absolute, uint32_t flags, const std::string &name) {
    const Shape &shape = batch.shape;
    const double u = std::is_same<T, __half>::value ? 1.0 / 2048 : 1.0 / 256;
    const size_t width = size_t(shape.num_heads) * batch.d;
    Errors errors;
    double error_sum = 0, bound_sum = 0;
    size_t count = 0, bad = 0, touched = 0;
    for (size_t s = 0; s < shape.rows.size(); ++s) {
        const bool skipped =
            shape.contexts[s] == 0 || (shape.rows[s] == 1 && !(flags & prefill::FLAG_SINGLE_ROWS));
        for (size_t at = batch.cu_seqlens[s] * width; at < batch.cu_seqlens[s + 1] * width; ++at) {
            uint16_t bits;
            memcpy(&bits, &out[at], 2);
            if (skipped) {
                touched += bits != 0xFFFF;
                continue;
            }
            const double error = fabs(double(float(out[at])) - exact[at]);
            const double bound = u * (absolute[at] + fabs(exact[at])) +
                                 (2e-4 + shape.contexts[s] / 16 * 1.2e-7) * absolute[at];
            if (!(error <= bound))
                ++bad;
            errors.worst = std::max(errors.worst, error);
            errors.worst_ratio = std::max(errors.worst_ratio, error / bound);
            error_sum += error, bound_sum += bound, ++count;
        }
    }
    for (size_t at = size_t(batch.total_rows) * width; at < out.size(); ++at) {
        uint16_t bits;
        memcpy(&bits, &out[at], 2);
        touched += bits != 0xFFFF;
    }
    errors.mean = count ? error_sum / count : 0;
    expect(bad == 0, name + ": " + std::to_string(bad) + " outputs out of tolerance, worst " +
                         std::to_string(errors.worst) + ", ratio " +
                         std::to_string(errors.worst_ratio));
    expect(error_sum <= bound_sum / 4, name + ": mean error " + std::to_string(errors.mean));
    expect(touched == 0,
           name + ": wrote " + std::to_string(touched) + " outputs that are not its own");
    return errors;
}

template <typename T>
std::vector<T> run_poisoned(const Impl &impl, const Batch<T> &batch, uint32_t flags) {
    CHECK(cudaMemset(batch.out->data, 0xFF, batch.out->size * sizeof(T)));
    impl.run(batch.launch(flags), batch.d, std::is_same<T, __half>::value);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    return batch.out->host();
}

template <typename T> static bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

// Reference of a whole batch; samples of it are recomputed on the host.
template <typename T>
void make_reference(const Batch<T> &batch, std::vector<double> &exact,
                    std::vector<double> &absolute, int host_samples) {
    const Shape &shape = batch.shape;
    const size_t size = size_t(batch.total_rows) * shape.num_heads * batch.d;
    Device<double> e(size), a(size);
    const int max_keys = *std::max_element(shape.contexts.begin(), shape.contexts.end());
    const int rows_at_once = std::max(1, int(4e9 / 8 / max_keys / shape.num_heads));
    Device<double> scores(size_t(std::min(rows_at_once, batch.total_rows)) * shape.num_heads *
                          max_keys);
    for (int row = 0; row < batch.total_rows; row += rows_at_once) {
        const dim3 grid(std::min(rows_at_once, batch.total_rows - row), shape.num_heads);
        reference<T><<<grid, 128>>>(e.data, a.data, scores.data, max_keys, batch.launch(0), batch.d,
                                    row, 1);
        CHECK(cudaDeviceSynchronize());
    }
    exact = e.host(), absolute = a.host();

    const std::vector<T> qkv = batch.qkv->host(), cache = batch.cache->host();
    std::mt19937 random(7);
    const int d = batch.d;
    for (int n = 0; n < host_samples; ++n) {
        const int s = random() % shape.rows.size();
        if (shape.contexts[s] == 0 || shape.rows[s] == 0)
            continue;
        const int i = n % 3 == 0 ? 0 : random() % shape.rows[s], head = random() % shape.num_heads;
        const int row = batch.cu_seqlens[s] + i,
                  kv_head = head * shape.num_kv_heads / shape.num_heads;
        const int position = shape.contexts[s] - shape.rows[s] + i;
        const T *q = &qkv[(size_t(row) * (shape.num_heads + 2 * shape.num_kv_heads) + head) * d];
        auto slot = [&](int key, int value) {
            const size_t page = batch.block_table[size_t(s) * batch.max_pages + key / PAGE_TOKENS];
            return &cache[(((page * 2 + value) * shape.num_kv_heads + kv_head) * PAGE_TOKENS +
                           key % PAGE_TOKENS) *
                          d];
        };
        std::vector<double> p(position + 1);
        double top = -1e300, sum = 0, worst = 0;
        for (int key = 0; key <= position; ++key) {
            double dot = 0;
            for (int c = 0; c < d; ++c)
                dot += double(float(q[c])) * double(float(slot(key, 0)[c]));
            p[key] = dot / sqrt(double(d)), top = std::max(top, p[key]);
        }
        for (double &x : p)
            x = exp(x - top), sum += x;
        for (int c = 0; c < d; ++c) {
            double o = 0;
            for (int key = 0; key <= position; ++key)
                o += p[key] * double(float(slot(key, 1)[c]));
            worst = std::max(worst,
                             fabs(o / sum - exact[(size_t(row) * shape.num_heads + head) * d + c]));
        }
        expect(worst < 1e-10,
               "the reference kernel disagrees with the host by " + std::to_string(worst));
    }
}

template <typename T>
void check_shape(const Shape &shape, int d, uint64_t seed, const char *filter) {
    const char *dtype = std::is_same<T, __half>::value ? "f16" : "bf16";
    Batch<T> batch(shape, d, seed);
    std::vector<double> exact, absolute;
    make_reference(batch, exact, absolute, 24);
    for (const Impl &impl : implementations()) {
        if (!strstr(impl.name, filter))
            continue;
        const std::string name = describe(shape, d, dtype, impl.name);
        for (uint32_t flags = 0; flags < 2; ++flags) {
            const std::vector<T> out = run_poisoned(impl, batch, flags);
            const Errors errors = compare(batch, out, exact, absolute, flags, name);
            bool same = true;
            for (int again = 0; again < 3; ++again)
                same &= same_bits(out, run_poisoned(impl, batch, flags));
            expect(same, name + ": two runs differ");
            if (flags)
                printf(
                    "%-5s %-4s D=%-3d heads %2d/%-2d seqs %-2zu rows %-5d max err %.2e mean %.2e "
                    "max err/tol %.2f\n",
                    impl.name, dtype, d, shape.num_heads, shape.num_kv_heads, shape.rows.size(),
                    batch.total_rows, errors.worst, errors.mean, errors.worst_ratio);
        }
    }
}

// One sequence in a single launch, and in several with the cache already holding later tokens:
// the same bits are expected.
template <typename T> void check_chunks(int d, const std::vector<int> &cuts, const char *filter) {
    const Shape whole{4, 4, {cuts.back()}, {cuts.back()}};
    Batch<T> batch(whole, d, 99);
    for (const Impl &impl : implementations()) {
        if (!strstr(impl.name, filter))
            continue;
        const std::vector<T> once = run_poisoned(impl, batch, 1);
        CHECK(cudaMemset(batch.out->data, 0xFF, batch.out->size * sizeof(T)));
        int begin = 0;
        for (int end : cuts) {
            const size_t width = size_t(whole.num_heads + 2 * whole.num_kv_heads) * d;
            Device<uint32_t> cu(std::vector<uint32_t>{0, uint32_t(end - begin)});
            Device<uint32_t> ctx(std::vector<uint32_t>{uint32_t(end)});
            Launch l = batch.launch(1);
            l.out = batch.out->data + size_t(begin) * whole.num_heads * d;
            l.qkv = batch.qkv->data + begin * width;
            l.cu_seqlens = cu.data, l.context_lens = ctx.data;
            l.total_rows = l.buffer_rows = end - begin;
            impl.run(l, d, std::is_same<T, __half>::value);
            CHECK(cudaDeviceSynchronize());
            begin = end;
        }
        const bool same = same_bits(once, batch.out->host());
        expect(same, std::string(impl.name) + ": chunks give other bits than one launch");
        printf("%-5s D=%-3d %zu chunks: %s\n", impl.name, d, cuts.size(),
               same ? "same bits" : "DIFFERENT");
    }
}

template <typename T> void check_quick(const char *filter) {
    for (int d : {64, 128}) {
        check_shape<T>(Shape{2, 1, {2, 1, 130, 5, 0, 65}, {2, 300, 147, 0, 0, 65}}, d, 3, filter);
        check_shape<T>(Shape{1, 1, {300}, {300}}, d, 4, filter);
    }
}

template <typename T> void check_dtype(const char *filter) {
    const std::vector<int> rows = {2, 17, 64, 127, 128, 129, 1000, 4097};
    const std::vector<int> prefixes = {0, 1, 16, 100, 1000};
    for (int d : {64, 128}) {
        for (size_t turn = 0; turn < prefixes.size(); ++turn) {
            const int heads[3][2] = {{4, 4}, {4, 2}, {6, 2}};
            Shape shape{heads[turn % 3][0], heads[turn % 3][1], {}, {}};
            for (size_t i = 0; i < rows.size(); ++i) {
                shape.rows.push_back(rows[i]);
                shape.contexts.push_back(rows[i] + prefixes[(i + turn) % prefixes.size()]);
                if (i == 1)
                    shape.rows.push_back(1), shape.contexts.push_back(77);
                if (i == 2)
                    shape.rows.push_back(0), shape.contexts.push_back(0);
                if (i == 3)
                    shape.rows.push_back(3), shape.contexts.push_back(0);
            }
            check_shape<T>(shape, d, 100 + turn, filter);
        }
        Shape many{2, 1, {}, {}}; // more sequences than lanes of a warp
        for (int s = 0; s < 75; ++s)
            many.rows.push_back(s * 7 % 23), many.contexts.push_back(s * 7 % 23 + s * 13 % 150);
        check_shape<T>(many, d, 5, filter);
        check_shape<T>(Shape{1, 1, {1}, {1}}, d, 6, filter);
        check_shape<T>(Shape{1, 1, {2}, {2}}, d, 7, filter);
        check_shape<T>(Shape{64, 64, {300}, {812}}, d, 8, filter);
        check_chunks<T>(d, {297, 298, 300, 1000}, filter);
        check_chunks<T>(d, {128, 256, 1024, 1500}, filter);
    }
}

// TFLOP/s of a causal prompt of n tokens, 64 heads of 128, bf16.
static void time_prompt(int n, const char *filter) {
    using T = __nv_bfloat16;
    const int heads = 64, d = 128;
    Batch<T> first(Shape{heads, heads, {n}, {n}}, d, 1),
        second(Shape{heads, heads, {n}, {n}}, d, 2);
    const double flops = 4.0 * d * heads * n * (n + 1.0) / 2;
    for (const Impl &impl : implementations()) {
        if (!strstr(impl.name, filter))
            continue;
        const int runs = std::max(5, int(1.5e14 / flops));
        cudaEvent_t begin, end;
        CHECK(cudaEventCreate(&begin));
        CHECK(cudaEventCreate(&end));
        std::vector<double> times;
        impl.run(first.launch(0), d, false);
        for (int i = 0; i < runs; ++i) {
            CHECK(cudaEventRecord(begin));
            impl.run((i % 2 ? first : second).launch(0), d, false);
            CHECK(cudaEventRecord(end));
            CHECK(cudaEventSynchronize(end));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, begin, end));
            times.push_back(ms);
        }
        std::sort(times.begin(), times.end());
        const double median = times[times.size() / 2], rate = flops / median / 1e9;
        printf("TIME %-8s n=%-6d median %9.1f us  p5 %9.1f  p95 %9.1f  %6.1f TFLOP/s  %4.1f %% of "
               "670\n",
               impl.name, n, median * 1e3, times[times.size() / 20] * 1e3,
               times[times.size() - 1 - times.size() / 20] * 1e3, rate, rate / 6.7);
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::string what = argc > 1 ? argv[1] : "all";
    const char *filter = argc > 2 ? argv[2] : "";
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    printf("%s, %d SMs\n", device.name, device.multiProcessorCount);
    if (atoi(what.c_str()) > 0) {
        Batch<__nv_bfloat16> batch(Shape{64, 64, {atoi(what.c_str())}, {atoi(what.c_str())}}, 128,
                                   1);
        for (const Impl &impl : implementations())
            for (int i = 0; i < 2 && strstr(impl.name, filter); ++i)
                impl.run(batch.launch(0), 128, false);
        CHECK(cudaDeviceSynchronize());
    }
    if (what == "quick") {
        check_quick<__nv_bfloat16>(filter);
        check_quick<__half>(filter);
        printf("%s\n", failures ? "CHECKS FAILED" : "all checks passed");
    }
    if (what == "all" || what == "check") {
        check_dtype<__nv_bfloat16>(filter);
        check_dtype<__half>(filter);
        printf("%s\n", failures ? "CHECKS FAILED" : "all checks passed");
    }
    if (!failures && (what == "all" || what == "time"))
        for (int n : {2048, 6144, 14336, 30720})
            time_prompt(n, filter);
    return failures != 0;
}
