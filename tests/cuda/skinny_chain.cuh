// Checks the linears between two attentions (o, norm, gate and up, down, norm, qkv), which do the
// norms themselves, against float64: one linear more each time, and each is checked on what those
// before it really left. Part of skinny_linear.cu.
#pragma once

// x = T(stream * gain / range), and the row's range / rms, which multiplies what comes of it, in float64. One
// block a row.
template <typename T>
__global__ void norm_twin(const float *stream, const float *gain, T *x, double *scales, uint32_t k,
                          double epsilon) {
    __shared__ double sums[256];
    const float *row = stream + (uint64_t)blockIdx.x * k;
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < k; i += 256)
        sum += (double)row[i] * row[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int o = 128; o; o /= 2) {
        if (threadIdx.x < o)
            sums[threadIdx.x] += sums[threadIdx.x + o];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        scales[blockIdx.x] = qwen::linear::weighted_range<T> / sqrt(sums[0] / k + epsilon);
    for (uint32_t i = threadIdx.x; i < k; i += 256)
        put(x + (uint64_t)blockIdx.x * k + i, qwen::linear::weigh<T>(row[i], gain[i]));
}

// Device memory that frees itself.
template <typename E> struct Block {
    E *p;
    uint64_t count;
    explicit Block(uint64_t n) : count(n) { CHECK(cudaMalloc(&p, n * sizeof(E))); }
    Block(const Block &) = delete;
    ~Block() { cudaFree(p); }
    std::vector<E> get() const {
        std::vector<E> h(count);
        CHECK(cudaMemcpy(h.data(), p, count * sizeof(E), cudaMemcpyDeviceToHost));
        return h;
    }
    void copy(const Block &from, uint64_t at, uint64_t n) {
        CHECK(cudaMemcpy(p, from.p + at, n * sizeof(E), cudaMemcpyDeviceToDevice));
    }
};
template <typename E> void draw(Block<E> &to, uint64_t seed, float scale) {
    fill<<<512, 256>>>(to.p, to.count, seed, scale);
}

template <typename T> struct ChainCase {
    uint32_t hidden, width, qkv, rows;
    static constexpr float EPSILON = 1e-6f;
    Block<T> o{(uint64_t)hidden * hidden}, gate_up{2ull * width * hidden},
        down{(uint64_t)hidden * width}, in{(uint64_t)qkv * hidden};
    Block<T> attended{(uint64_t)rows * hidden}, inner{(uint64_t)rows * width},
        heads{(uint64_t)rows * qkv}, weighted{(uint64_t)rows * hidden},
        x{(uint64_t)rows * hidden};
    Block<float> before{(uint64_t)rows * hidden}, stream{(uint64_t)rows * hidden},
        gain0{hidden}, gain1{hidden}, bias{qkv},
        squares{rows * (hidden / 8ull + 2)};
    Block<double> scales{rows};

    ChainCase(uint32_t h, uint32_t w, uint32_t q, uint32_t r, uint64_t seed)
        : hidden(h), width(w), qkv(q), rows(r) {
        draw(o, seed, 1 / sqrtf(h)), draw(gate_up, seed + 1, 1 / sqrtf(h));
        draw(down, seed + 2, 1 / sqrtf(w)), draw(in, seed + 3, 1 / sqrtf(h));
        draw(attended, seed + 4, 1), draw(before, seed + 5, 3), draw(bias, seed + 6, 1);
        draw(gain0, seed + 7, 1), draw(gain1, seed + 8, 0.5f);
    }

    // The first `count` linears for rows first .. first + of.
    void run(uint32_t count, uint32_t first, uint32_t of, int grid) {
        stream.copy(before, (uint64_t)first * hidden, (uint64_t)of * hidden);
        for (Block<T> *b : {&inner, &heads, &weighted})
            CHECK(cudaMemset(b->p, 0xff, b->count * sizeof(T)));
        CHECK(cudaMemset(squares.p, 0xff, squares.count * 4));
        Arguments a[4] = {
            plain(o.p, attended.p + (uint64_t)first * hidden, stream.p, of, hidden, hidden,
                  skinny::ADD_NORM),
            plain(gate_up.p, weighted.p, inner.p, of, 2 * width, hidden, skinny::GATE_UP),
            plain(down.p, inner.p, stream.p, of, hidden, width, skinny::ADD_NORM),
            plain(in.p, weighted.p, heads.p, of, qkv, hidden, skinny::BIAS)};
        a[0].gain = gain0.p, a[2].gain = gain1.p, a[3].bias = bias.p;
        for (int i = 0; i < 4; i++) {
            a[i].weighted = weighted.p, a[i].squares = squares.p;
            a[i].normalised = i % 2, a[i].epsilon = EPSILON;
        }
        for (uint32_t i = 0; i < count; i++)
            launch(kernel_of<T>(of > 8), grid, shared_of(of > 8), a[i], 0, i > 0);
        CHECK(cudaDeviceSynchronize());
    }

    // Products in float64, and the roots of the sums of squared terms.
    struct Twin {
        std::vector<double> y, walk;
    };
    Twin product(const T *w, const T *of, uint32_t n, uint32_t k) {
        uint64_t all = (uint64_t)rows * n;
        Block<double> y(all), walk(all);
        twin<<<(all * 32 + 255) / 256, 256>>>(w, of, y.p, walk.p, rows, n, k);
        CHECK(cudaDeviceSynchronize());
        return {y.get(), walk.get()};
    }
    // The product of what `normalise` left.
    Twin normalised_product(const T *w, uint32_t n) {
        Twin t = product(w, x.p, n, hidden);
        std::vector<double> by = scales.get();
        for (size_t i = 0; i < t.y.size(); i++)
            t.y[i] *= by[i / n], t.walk[i] *= by[i / n];
        return t;
    }
    void normalise(const float *gain) {
        norm_twin<<<rows, 256>>>(stream.p, gain, x.p, scales.p, hidden, (double)EPSILON);
    }
};

// A sum errs as `check` says. The scale of a normalised row is an f32 sum of squares, none of them
// negative, in sums of sums: a few dozen units at most; the square root halves that.
static double steps_of(uint32_t k, bool normalised) {
    return (k / 16.0 + 64) * 6 * std::ldexp(1.0, -23) + (normalised ? std::ldexp(1.0, -18) : 0);
}

template <typename E>
bool compare(const char *what, const std::vector<E> &got, const std::vector<double> &want,
             const std::vector<double> &allowed) {
    double worst = 0;
    uint64_t wrong = 0;
    for (size_t i = 0; i < got.size(); i++) {
        double error = std::fabs((double)(float)got[i] - want[i]) / allowed[i];
        if (!(error <= 1) && wrong++ < 4)
            printf("  %s %zu: %g, not %g\n", what, i, (double)(float)got[i], want[i]);
        if (!(error <= worst))
            worst = error;
    }
    printf(" %s %.3f", what, worst);
    return wrong == 0;
}

template <typename T>
bool check_stream(const char *what, const std::vector<float> &got, const std::vector<float> &before,
                  const typename ChainCase<T>::Twin &t, uint32_t k) {
    std::vector<double> want(got.size()), allowed(got.size());
    for (size_t i = 0; i < got.size(); i++) {
        want[i] = t.y[i] + before[i];
        allowed[i] = steps_of(k, false) * t.walk[i] + std::fabs(want[i]) * std::ldexp(1.0, -23);
    }
    return compare(what, got, want, allowed);
}

template <typename T>
bool check_rounded(const char *what, const std::vector<T> &got, std::vector<double> want,
                   std::vector<double> allowed) {
    double half_ulp = std::is_same<T, __nv_bfloat16>::value ? 1.0 / 256 : 1.0 / 2048;
    for (size_t i = 0; i < want.size(); i++)
        allowed[i] += std::fabs(want[i]) * half_ulp + std::ldexp(1.0, -25);
    return compare(what, got, want, allowed);
}

template <typename T> bool check_gate_up(ChainCase<T> &c, const std::vector<T> &got) {
    typename ChainCase<T>::Twin t = c.normalised_product(c.gate_up.p, 2 * c.width);
    std::vector<double> want(got.size()), allowed(got.size());
    double steps = steps_of(c.hidden, true);
    for (size_t i = 0; i < got.size(); i++) {
        size_t row = i / c.width, o = i % c.width;
        size_t g = row * 2 * c.width + o / 8 * 16 + o % 8, u = g + 8;
        double silu = t.y[g] / (1 + std::exp(-t.y[g]));
        want[i] = t.y[u] * silu;
        allowed[i] = steps * (1.1 * std::fabs(t.y[u]) * t.walk[g] + std::fabs(silu) * t.walk[u] +
                              steps * t.walk[g] * t.walk[u]) +
                     std::fabs(want[i]) * std::ldexp(1.0, -20);
    }
    return check_rounded<T>("gate_up", got, want, allowed);
}

template <typename T> bool check_qkv(ChainCase<T> &c, const std::vector<T> &got) {
    typename ChainCase<T>::Twin t = c.normalised_product(c.in.p, c.qkv);
    std::vector<float> bias = c.bias.get();
    std::vector<double> want(got.size()), allowed(got.size());
    for (size_t i = 0; i < got.size(); i++) {
        want[i] = t.y[i] + bias[i % c.qkv];
        allowed[i] = steps_of(c.hidden, true) * (t.walk[i] + std::fabs(t.y[i])) +
                     std::fabs(want[i]) * std::ldexp(1.0, -23);
    }
    return check_rounded<T>("qkv", got, want, allowed);
}

template <typename E> bool same_bits(const E *a, const E *b, size_t count) {
    return memcmp(a, b, count * sizeof(E)) == 0;
}

// All four linears again: on another grid, and each row alone.
template <typename T>
bool check_bits(ChainCase<T> &c, const std::vector<float> &stream, const std::vector<T> &heads) {
    bool same = true;
    for (int grid : {num_sms, num_sms / 3 + 1, 1}) {
        if (grid == 1 && c.hidden > 2048)
            continue;
        c.run(4, 0, c.rows, grid);
        same &= same_bits(c.stream.get().data(), stream.data(), stream.size()) &&
                same_bits(c.heads.get().data(), heads.data(), heads.size());
    }
    for (uint32_t row = 0; row < c.rows; row++) {
        c.run(4, row, 1, num_sms);
        same &= same_bits(c.stream.get().data(), &stream[row * c.hidden], c.hidden) &&
                same_bits(c.heads.get().data(), &heads[row * c.qkv], c.qkv);
    }
    return same;
}

template <typename T>
void check_chain(uint32_t hidden, uint32_t width, uint32_t qkv, uint32_t rows, uint64_t seed) {
    ChainCase<T> c(hidden, width, qkv, rows, seed);
    printf("chain hidden %5u width %5u qkv %5u rows %u: error/allowed", hidden, width, qkv, rows);
    c.run(1, 0, rows, num_sms);
    std::vector<float> before = c.before.get(), first = c.stream.get();
    bool good = check_stream<T>("o", first, before, c.product(c.o.p, c.attended.p, hidden, hidden),
                                hidden);
    c.normalise(c.gain0.p);
    c.run(2, 0, rows, num_sms);
    good &= check_gate_up(c, c.inner.get()) && first == c.stream.get();
    auto product = c.product(c.down.p, c.inner.p, hidden, width);
    c.run(3, 0, rows, num_sms);
    std::vector<float> second = c.stream.get();
    good &= check_stream<T>("down", second, first, product, width);
    c.normalise(c.gain1.p);
    c.run(4, 0, rows, num_sms);
    std::vector<T> heads = c.heads.get();
    good &= check_qkv(c, heads) && second == c.stream.get();
    bool same = check_bits(c, second, heads);
    failures += !(good && same);
    printf("%s%s\n", same ? "" : " UNSTABLE", good && same ? " ok" : " FAIL");
}

template <typename T> void check_chains(uint64_t seed) {
    struct Shape {
        uint32_t hidden, width, qkv;
    } shapes[] = {{64, 64, 64},        {576, 1536, 1728},    {1024, 1088, 520},
                  {2048, 5504, 6144},  {4096, 11008, 12288}, {5120, 13696, 15360},
                  {8192, 24576, 24576}};
    for (auto s : shapes)
        for (uint32_t rows : {1u, 2u, 3u, 7u, 8u, 9u, 16u}) {
            if (s.hidden > 4096 && rows != 1 && rows != 8 && rows != 16)
                continue;
            check_chain<T>(s.hidden, s.width, s.qkv, rows, seed += 20);
        }
}
