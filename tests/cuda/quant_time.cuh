// The times of quant_linear.cu: each shape alone, and the linears of 72B as a chain.
#pragma once

namespace {

double read_gb_s() {
    const size_t bytes = size_t(4) << 30;
    uint4 *from;
    uint32_t *out;
    CHECK(cudaMalloc(&from, bytes)), CHECK(cudaMalloc(&out, 4));
    CHECK(cudaMemset(from, 1, bytes));
    float ms = graph_ms(
        [&](cudaStream_t s) { stream<4><<<num_sms() * 4, 512, 0, s>>>(from, bytes / 16, out); },
        10);
    CHECK(cudaFree(from)), CHECK(cudaFree(out));
    return bytes / ms * 1e-6;
}

// Random bytes are codes; scales of random bits may be anything but must not be NaN for nobody's
// sake: time does not depend on them.
struct Pool {
    uint8_t *memory;
    size_t bytes = size_t(8) << 30, at = 0;
    Pool() {
        CHECK(cudaMalloc(&memory, bytes));
        std::vector<uint32_t> noise(1 << 22);
        std::mt19937 random(7);
        for (uint32_t &word : noise)
            word = random() & 0xbbffbbffu;
        for (size_t i = 0; i < bytes; i += noise.size() * 4)
            CHECK(cudaMemcpy(memory + i, noise.data(), noise.size() * 4, cudaMemcpyDefault));
    }
    const void *take(size_t size) {
        if (at + size > bytes)
            at = 0;
        at += size;
        return memory + at - size;
    }
};

size_t packed_bytes(int bits, uint32_t n, uint32_t k) {
    const quant::Packed p(bits, k, 1, 0);
    return size_t((n + 63) / 64) * p.chunks * p.chunk_bytes;
}

const uint32_t SHAPES[][2] = {{24576, 8192}, {8192, 8192}, {49152, 8192}, {8192, 24576},
                              {12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}};

void once() {
    Pool pool;
    __half *x;
    void *out;
    CHECK(cudaMalloc(&x, 16 * 32768 * 2)), CHECK(cudaMemset(x, 0x35, 16 * 32768 * 2));
    CHECK(cudaMalloc(&out, 16 * 160000 * 4));
    for (int bits : {4, 8})
        for (const auto &shape : SHAPES) {
            const quant::Arguments a = {map_of(x, 8, shape[1]),
                                        pool.take(packed_bytes(bits, shape[0], shape[1])),
                                        nullptr,
                                        out,
                                        8,
                                        shape[0],
                                        shape[1],
                                        quant::STORE_F32,
                                        1,
                                        0};
            launch(bits, a, nullptr, false, num_sms());
        }
    CHECK(cudaDeviceSynchronize());
}

void time_shapes(Pool &pool, const __half *x, void *out, double read) {
    for (int bits : {4, 8})
        for (const auto &shape : SHAPES)
            for (uint32_t rows : {1u, 8u, 16u}) {
                const size_t bytes = packed_bytes(bits, shape[0], shape[1]);
                const int count = 24;
                for (bool dependent : {false, true}) {
                    float ms = graph_ms(
                        [&](cudaStream_t s) {
                            for (int i = 0; i < count; i++) {
                                const quant::Arguments a = {map_of(x, rows, shape[1]),
                                                            pool.take(bytes),
                                                            nullptr,
                                                            out,
                                                            rows,
                                                            shape[0],
                                                            shape[1],
                                                            quant::STORE_F32,
                                                            1,
                                                            0};
                                launch(bits, a, s, dependent, num_sms());
                            }
                        },
                        7);
                    const double us = ms * 1e3 / count;
                    if (!dependent)
                        std::printf("%d bits %6u x %5u rows %2u: %6.1f us %5.1f %% |", bits,
                                    shape[0], shape[1], rows, us, bytes / us * 1e-3 / read * 100);
                    else
                        std::printf(" dependent %6.1f us %5.1f %%\n", us,
                                    bytes / us * 1e-3 / read * 100);
                }
            }
}

// The linears of 20 layers of 72B, with stand-ins for the norms and attention between them.
void time_chain(Pool &pool, __half *x, void *out, double read) {
    for (int bits : {4, 8})
        for (uint32_t rows : {1u, 8u, 16u}) {
            const uint32_t layer[][3] = {{24576, 8192, quant::BIAS},
                                         {8192, 8192, quant::STORE_F32},
                                         {49152, 8192, quant::GATE_UP},
                                         {8192, 24576, quant::STORE_F32}};
            size_t bytes = 0;
            float ms = graph_ms(
                [&](cudaStream_t s) {
                    bytes = 0;
                    for (int i = 0; i < 80; i++) {
                        const auto &l = layer[i % 4];
                        const size_t size = packed_bytes(bits, l[0], l[1]);
                        bytes += size;
                        const quant::Arguments a = {map_of(x, rows, l[1]),
                                                    pool.take(size),
                                                    nullptr,
                                                    out,
                                                    rows,
                                                    l[0],
                                                    l[1],
                                                    l[2],
                                                    1,
                                                    0};
                        launch(bits, a, s, true, num_sms());
                        if (i % 4 == 2)
                            continue;
                        cudaLaunchAttribute attribute = {};
                        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
                        attribute.val.programmaticStreamSerializationAllowed = 1;
                        cudaLaunchConfig_t config = {};
                        config.gridDim = rows, config.blockDim = 256, config.stream = s;
                        config.attrs = &attribute, config.numAttrs = 1;
                        CHECK(cudaLaunchKernelEx(&config, small, (const uint4 *)out, (uint4 *)x,
                                                 1024u));
                    }
                },
                7);
            std::printf("chain 72B, 20 layers, %d bits, rows %2u: %.3f ms, %.1f %%\n", bits, rows,
                        ms, bytes / ms * 1e-6 / read * 100);
        }
}

void time_all() {
    const double read = read_gb_s();
    std::printf("streaming read: %.0f GB/s\n", read);
    Pool pool;
    __half *x;
    void *out;
    CHECK(cudaMalloc(&x, 16 * 32768 * 2)), CHECK(cudaMemset(x, 0x35, 16 * 32768 * 2));
    CHECK(cudaMalloc(&out, 16 * 160000 * 4)), CHECK(cudaMemset(out, 0, 16 * 160000 * 4));
    time_shapes(pool, x, out, read);
    time_chain(pool, x, out, read);
}

} // namespace
