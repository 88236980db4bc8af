// Times the skinny linear kernel: matrices alone, and chains as one decode step has them, as shares of
// a streaming read of the same run. Part of skinny_linear.cu.
#pragma once

#include "graph_timing.cuh"

struct Matrix {
    const void *weights;
    uint32_t n, k;
};

struct Bench {
    char *buffer;
    size_t capacity = 38ull << 30, at = 0;
    char *x, *out;
    double peak = 0; // bytes a millisecond

    void prepare() {
        CHECK(cudaMalloc(&buffer, capacity));
        fill<<<num_sms * 8, 256>>>((__nv_bfloat16 *)buffer, capacity / 2, 7, 0.011f);
        CHECK(cudaMalloc(&x, 16 * 32768 * 4));
        fill<<<512, 256>>>((__nv_bfloat16 *)x, 16 * 32768 * 2, 9, 1.0f);
        CHECK(cudaMalloc(&out, 16 * 160000 * 4));
        fill<<<512, 256>>>((float *)out, 16 * 160000, 10, 1.0f);
        CHECK(cudaDeviceSynchronize());
    }
    void measure_peak() {
        for (int blocks : {2, 3, 4}) {
            size_t bytes = 16ull << 30;
            float ms8 = graph_ms(
                [&](cudaStream_t s) {
                    stream<8><<<num_sms * blocks, 512, 0, s>>>((uint4 *)buffer, bytes / 16,
                                                               (uint32_t *)out);
                },
                5);
            float ms4 = graph_ms(
                [&](cudaStream_t s) {
                    stream<4><<<num_sms * blocks, 512, 0, s>>>((uint4 *)buffer, bytes / 16,
                                                               (uint32_t *)out);
                },
                5);
            peak = std::max(peak, bytes / (double)std::min(ms8, ms4));
        }
        printf("streaming read: %.0f GB/s\n", peak / 1e6);
    }
    Matrix place(uint32_t n, uint32_t k) {
        size_t bytes = ((size_t)n * k * 2 + 255) / 256 * 256;
        if (at + bytes > capacity)
            at = 0;
        at += bytes;
        return {buffer + at - bytes, n, k};
    }
    void linear(Matrix m, uint32_t rows, uint32_t epilogue, cudaStream_t s, bool pdl) {
        Arguments a = plain(m.weights, x, out, rows, m.n, m.k, epilogue);
        launch(kernel_of<__nv_bfloat16>(rows > 8), num_sms, shared_of(rows > 8), a, s, pdl);
    }
    void step(uint32_t rows, uint32_t hidden, cudaStream_t s, bool pdl) {
        cudaLaunchAttribute attribute;
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t c = {};
        c.gridDim = rows, c.blockDim = 256, c.stream = s, c.attrs = &attribute, c.numAttrs = pdl;
        CHECK(cudaLaunchKernelEx(&c, small, (const uint4 *)out, (uint4 *)x, hidden / 8));
    }
};

static void time_matrices(Bench &b, bool all) {
    struct Shape {
        uint32_t n, k, epilogue;
    } shapes[] = {{24576, 8192, 0},  {8192, 8192, 2},  {49152, 8192, 3}, {8192, 24576, 2},
                  {152064, 8192, 1}, {12288, 4096, 0}, {4096, 4096, 2},  {22016, 4096, 3},
                  {4096, 11008, 2},  {15360, 5120, 0}, {5120, 5120, 2},  {27392, 5120, 3},
                  {5120, 13696, 2},  {6144, 2048, 0},  {2048, 2048, 2},  {11008, 2048, 3},
                  {2048, 5504, 2},   {1728, 576, 0},   {576, 576, 2},    {3072, 576, 3},
                  {576, 1536, 2},    {49152, 576, 1}};
    printf(
        "%16s | us, GB/s, share of the streaming read: each kernel alone | with dependent launch\n",
        "n x k");
    for (auto p : shapes)
        for (uint32_t rows : {1u, 8u, 16u}) {
            if (!all && (p.n * (uint64_t)p.k < 8192ull * 8192 || rows == 16))
                continue;
            double bytes = (double)p.n * p.k * 2;
            int count = std::max(4, std::min(200, (int)(12e9 / bytes)));
            float t[2];
            for (int pdl = 0; pdl < 2; pdl++) {
                b.at = 0;
                t[pdl] = graph_ms(
                             [&](cudaStream_t s) {
                                 for (int i = 0; i < count; i++)
                                     b.linear(b.place(p.n, p.k), rows, p.epilogue, s, pdl);
                             },
                             5) /
                         count;
            }
            printf("%8u x %5u, rows %2u: %7.1f us %5.0f GB/s %5.1f %% | %7.1f us %5.0f GB/s %5.1f "
                   "%%\n",
                   p.n, p.k, rows, t[0] * 1e3, bytes / t[0] / 1e6, 100 * bytes / t[0] / b.peak,
                   t[1] * 1e3, bytes / t[1] / 1e6, 100 * bytes / t[1] / b.peak);
        }
}

struct Model {
    const char *name;
    uint32_t hidden, width, vocab, layers;
};

// norm, qkv, attention, o, norm, gate-up, down; then norm and the head.
static void time_chain(Bench &b, const Model &m, uint32_t rows) {
    struct Step {
        Matrix matrix;
        uint32_t epilogue;
        bool small;
    };
    std::vector<Step> steps;
    double bytes = 0;
    b.at = 0;
    auto add = [&](uint32_t n, uint32_t k, uint32_t e, bool small) {
        steps.push_back({b.place(n, k), e, small});
        bytes += (double)n * k * 2;
    };
    uint32_t h = m.hidden;
    for (uint32_t l = 0; l < m.layers; l++) {
        add(3 * h, h, 0, true), add(h, h, 2, true);
        add(2 * m.width, h, 3, true), add(h, m.width, 2, false);
    }
    add(m.vocab, h, 1, true);
    auto chain = [&](bool pdl, bool small) {
        float ms = graph_ms(
            [&](cudaStream_t s) {
                for (size_t i = 0; i < steps.size(); i++) {
                    if (small && steps[i].small)
                        b.step(rows, h, s, pdl);
                    b.linear(steps[i].matrix, rows, steps[i].epilogue, s, pdl);
                }
            },
            7);
        printf(" | %7.3f ms %5.1f %%", ms, 100 * bytes / ms / b.peak);
    };
    printf("chain %4s, %u layers, rows %2u: plain, dependent launch, without small", m.name,
           m.layers, rows);
    chain(false, true), chain(true, true), chain(true, false);
    printf("\n");
}
