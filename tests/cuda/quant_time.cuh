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
        for (const auto &shape : SHAPES)
            for (uint32_t rows : {8u, 16u})
                launch(bits,
                       product(pool.take(packed_bytes(bits, shape[0], shape[1])), x, out, rows,
                               shape[0], shape[1], linear::STORE_F32),
                       nullptr, false, num_sms());
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
                                const Arguments a = product(pool.take(bytes), x, out, rows,
                                                            shape[0], shape[1], linear::STORE_F32);
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

// A layer of 72B: its linears; `fused`, where they do the norms between them.
struct Linear {
    uint32_t n, k, epilogue, fused;
    bool normalised, norm_after, attention_after;
};
const Linear LAYER[] = {
    {24576, 8192, linear::BIAS, linear::BIAS, true, false, true},
    {8192, 8192, linear::STORE_F32, linear::ADD_NORM, false, true, false},
    {49152, 8192, linear::GATE_UP, linear::GATE_UP, true, false, false},
    {8192, 24576, linear::STORE_F32, linear::ADD_NORM, false, true, false},
};

void stand_in(uint32_t rows, const void *from, void *to, cudaStream_t s) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = rows, config.blockDim = 256, config.stream = s;
    config.attrs = &attribute, config.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&config, small, (const uint4 *)from, (uint4 *)to, 1024u));
}

// The linears of 20 layers, as one of some ranks has them, with stand-ins for attention and, unless
// they are fused, norms.
void time_chain(Pool &pool, __half *x, float *out, double read, uint32_t ranks) {
    float *squares = out + 16 * 49152, *gain = squares + 16 * 1024;
    for (int bits : {4, 8})
        for (bool fused : {false, true})
            for (uint32_t rows : {1u, 8u, 16u}) {
                size_t bytes = 0;
                float ms = graph_ms(
                    [&](cudaStream_t s) {
                        bytes = 0;
                        for (int i = 0; i < 80; i++) {
                            Linear l = LAYER[i % 4];
                            (l.norm_after ? l.k : l.n) /= ranks;
                            const size_t size = packed_bytes(bits, l.n, l.k);
                            bytes += size;
                            Arguments a = product(pool.take(size), x, out, rows, l.n, l.k,
                                                  fused ? l.fused : l.epilogue);
                            a.normalised = fused && l.normalised, a.epsilon = 1e-6f;
                            a.squares = squares, a.gain = gain, a.weighted = x;
                            launch(bits, a, s, true, num_sms());
                            if (l.attention_after || (l.norm_after && !fused))
                                stand_in(rows, out, x, s);
                        }
                    },
                    7);
                std::printf("chain 72B / %u, 20 layers, %d bits, norms %s, rows %2u: %.3f ms, %.1f %%\n",
                            ranks, bits, fused ? "inside" : "apart", rows, ms,
                            bytes / ms * 1e-6 / read * 100);
            }
}

void time_all(bool shapes) {
    const double read = read_gb_s();
    std::printf("streaming read: %.0f GB/s\n", read);
    Pool pool;
    __half *x;
    float *out;
    CHECK(cudaMalloc(&x, 16 * 32768 * 2)), CHECK(cudaMemset(x, 0x35, 16 * 32768 * 2));
    CHECK(cudaMalloc(&out, 16 * 160000 * 4)), CHECK(cudaMemset(out, 0, 16 * 160000 * 4));
    if (shapes)
        time_shapes(pool, x, out, read);
    for (uint32_t ranks : {1u, 2u})
        time_chain(pool, x, out, read, ranks);
}

} // namespace
