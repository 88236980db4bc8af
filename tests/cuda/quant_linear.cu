// quant_linear against a slow float64 twin that dequantises code by code, then its times.
//
//   quant_linear [check | check,few | time | chain | check,time | once]
//   (few: small ones, for sanitizers; time: each shape and the chain of 72B's linears; once: each
//   shape once, to profile)
//
// Codes, scales, zeros and x are random; the twin reads them unpacked, so that it also judges the
// packing. A check fails where an error passes the bound of f32 sums and one rounding: of the sum S
// of |scale x| (code + zero), (k / 256 + 48) 2^-24, and 2^-11 of |y| for an output in f16. What an
// mma cuts off is not documented; four times 2^-24 of what it adds to is taken for it. Sums of x
// pass through two and two additions, and then with the products through four: 26. Roundings: times
// the zero and both halves together 2; the sums of 16 parts 15; scale, bias and stream 5; and one
// for each run of a part, k / 256 at most.

#include "../../cuda/quant_linear.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static void check_cuda(cudaError_t status, const char *what, int line) {
    if (status == cudaSuccess)
        return;
    std::printf("line %d: %s: %s\n", line, what, cudaGetErrorString(status));
    std::exit(1);
}
#define CHECK(x) check_cuda((x), #x, __LINE__)

#include "graph_timing.cuh"

namespace {

using qwen::linear::Arguments;
namespace linear = qwen::linear;

struct Kernel {
    void (*entry)(const Arguments);
    uint32_t shared_bytes;
};

Kernel kernel_of(int bits, uint32_t rows, bool any) {
    const auto few = bits == 4 ? (any ? quant_linear_4_8_any : quant_linear_4_8)
                               : (any ? quant_linear_8_8_any : quant_linear_8_8);
    const auto many = bits == 4 ? (any ? quant_linear_4_16_any : quant_linear_4_16)
                                : (any ? quant_linear_8_16_any : quant_linear_8_16);
    return rows <= 8 ? Kernel{few, quant::shared_bytes<1>} : Kernel{many, quant::shared_bytes<2>};
}

int num_sms() {
    static const int sms = [] {
        cudaDeviceProp device;
        CHECK(cudaGetDeviceProperties(&device, 0));
        for (int bits : {4, 8})
            for (uint32_t rows : {8u, 16u})
                for (bool any : {false, true}) {
                    const Kernel kernel = kernel_of(bits, rows, any);
                    CHECK(cudaFuncSetAttribute(kernel.entry,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               kernel.shared_bytes));
                }
        std::printf("%s, %d SMs\n", device.name, device.multiProcessorCount);
        return device.multiProcessorCount;
    }();
    return sms;
}

// A product with `weights`, as packed; what only some epilogues want is set by the caller.
Arguments product(const void *weights, const void *x, void *out, uint32_t rows, uint32_t n,
                  uint32_t k, uint32_t epilogue) {
    Arguments a = {};
    a.weights = weights, a.x = x, a.out = out;
    a.rows = rows, a.n = n, a.k = k, a.epilogue = epilogue, a.groups = 1;
    return a;
}

// `split` as the library chooses it, unless it is given.
void launch(int bits, Arguments a, cudaStream_t stream, bool dependent, int grid,
            uint32_t split = 0) {
    const Kernel kernel = kernel_of(bits, a.rows, a.groups > 1 || a.has_zeros);
    a.split = split ? split : quant::split_of(a.rows, a.n, num_sms());
    quant::divide(a, grid);
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = a.split;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid / a.split * a.split;
    config.blockDim = quant::NUM_THREADS;
    config.dynamicSmemBytes = kernel.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1 + dependent;
    CHECK(cudaLaunchKernelEx(&config, kernel.entry, a));
}

// A quantised matrix as it is published, and how the kernel wants it.
struct Matrix {
    int bits;
    uint32_t n, k, group; // of k that share a scale
    bool has_zeros;
    std::vector<uint8_t> codes;  // [n][k]
    std::vector<float> scales;   // [n][k / group], exact in f16
    std::vector<uint16_t> zeros; // the same

    uint32_t num_groups() const { return k / group; }
    uint32_t chunk_groups() const { return group < 128 ? 128 / group : 1; }
    // Codes and zeros are summed apart: what the errors of their sums are in proportion to.
    double weight_size(uint32_t row, uint32_t at) const {
        size_t g = size_t(row) * num_groups() + at / group;
        return double(scales[g]) * (int(codes[size_t(row) * k + at]) + int(zeros[g]));
    }
    double weight(uint32_t row, uint32_t at) const {
        size_t g = size_t(row) * num_groups() + at / group;
        return double(scales[g]) * (int(codes[size_t(row) * k + at]) - int(zeros[g]));
    }
};

Matrix random_matrix(std::mt19937 &random, int bits, uint32_t n, uint32_t k, uint32_t group,
                     bool zeros) {
    Matrix m = {bits, n, k, group, zeros, {}, {}, {}};
    m.codes.resize(size_t(n) * k);
    for (uint8_t &code : m.codes)
        code = uint8_t(random() >> (32 - bits));
    for (size_t i = 0; i < size_t(n) * m.num_groups(); i++) {
        m.scales.push_back(__half2float(
            __float2half((1.0f + float(random() % 1000) * 0.01f) * (bits == 4 ? 1e-3f : 6e-5f))));
        m.zeros.push_back(zeros ? random() % (1u << bits) + (random() % 4 == 0) : 1u << (bits - 1));
    }
    return m;
}

uint16_t f16_bits(float v) {
    __half h = __float2half(v);
    return *reinterpret_cast<uint16_t *>(&h);
}

// One word of codes: those of `row` at k + `offsets`, `bits` each.
uint32_t word_of(const Matrix &m, uint32_t row, uint32_t k, const std::vector<uint32_t> &offsets) {
    uint32_t word = 0;
    for (size_t i = 0; i < offsets.size(); i++)
        if (row < m.n)
            word |= uint32_t(m.codes[size_t(row) * m.k + k + offsets[i]]) << (m.bits * i);
    return word;
}

// The words of 16 bytes of one lane: rows g and g + 8 of two blocks of k.
void pack_four(const Matrix &m, uint32_t row, uint32_t k, uint32_t t, uint32_t *words) {
    const bool four = m.bits == 4;
    const std::vector<uint32_t> offsets =
        four ? std::vector<uint32_t>{2 * t,     2 * t + 16, 2 * t + 8, 2 * t + 24,
                                     2 * t + 1, 2 * t + 17, 2 * t + 9, 2 * t + 25}
             : std::vector<uint32_t>{2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9};
    for (uint32_t j = 0; j < 2; j++)
        for (uint32_t h = 0; h < 2; h++)
            words[2 * j + h] = word_of(m, row + 8 * h, k + j * (four ? 32 : 16), offsets);
}

void pack_chunk(const Matrix &m, const quant::Packed &p, uint32_t tile, uint32_t chunk,
                uint8_t *to) {
    const uint32_t k0 = chunk * quant::CHUNK_K, loads = m.bits == 4 ? 2 : 4;
    uint32_t *words = reinterpret_cast<uint32_t *>(to);
    for (uint32_t w = 0; w < 4; w++)
        for (uint32_t i = 0; i < loads; i++)
            for (uint32_t lane = 0; lane < 32; lane++, words += 4)
                pack_four(m, tile * 64 + w * 16 + lane / 4, k0 + i * (128 / loads), lane % 4,
                          words);
    uint16_t *scales = reinterpret_cast<uint16_t *>(to + p.code_bytes),
             *zeros = scales + p.scale_bytes / 2;
    for (uint32_t g = 0; g < m.chunk_groups(); g++)
        for (uint32_t r = 0; r < 64 && tile * 64 + r < m.n; r++) {
            const size_t from = size_t(tile * 64 + r) * m.num_groups() +
                                (k0 + g * 128 / m.chunk_groups()) / m.group;
            const uint32_t at = g * 64 + r / 16 * 16 + r % 8 * 2 + r / 8 % 2;
            scales[at] = f16_bits(m.scales[from]);
            if (m.has_zeros)
                zeros[at] = f16_bits(m.zeros[from]);
        }
}

std::vector<uint8_t> pack(const Matrix &m) {
    const quant::Packed p(m.bits, m.k, m.chunk_groups(), m.has_zeros);
    const uint32_t tiles = (m.n + 63) / 64;
    std::vector<uint8_t> packed(size_t(tiles) * p.chunks * p.chunk_bytes);
    for (uint32_t tile = 0; tile < tiles; tile++)
        for (uint32_t c = 0; c < p.chunks; c++)
            pack_chunk(m, p, tile, c,
                       packed.data() + (size_t(tile) * p.chunks + c) * p.chunk_bytes);
    return packed;
}

template <typename T> T *upload(const std::vector<T> &from) {
    T *to;
    CHECK(cudaMalloc(&to, from.size() * sizeof(T)));
    CHECK(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyDefault));
    return to;
}

// ---- check -------------------------------------------------------------------------------------

constexpr float EPSILON = 1e-6f;

struct Problem {
    Matrix m;
    uint32_t rows, epilogue;
    bool has_bias;
    std::vector<__half> x;
    std::vector<float> bias, before;  // `before` is in out already: ADD_F32, ADD_NORM
    std::vector<float> gain, squares; // of the norm after, and, unless empty, of the one before

    bool adds() const { return epilogue == linear::ADD_F32 || epilogue == linear::ADD_NORM; }
    double scale(uint32_t row) const {
        if (squares.empty())
            return 1;
        const size_t of_row = squares.size() / rows;
        double sum = 0;
        for (size_t i = 0; i < of_row; i++)
            sum += squares[row * of_row + i];
        return linear::weighted_range<__half> / std::sqrt(sum / m.k + double(EPSILON));
    }
};

// Products of the twin and the sums of their sizes, [rows][n].
void twin(const Problem &p, std::vector<double> &y, std::vector<double> &size) {
    const Matrix &m = p.m;
    y.assign(size_t(p.rows) * m.n, 0), size = y;
    std::vector<double> x(p.x.size());
    for (uint32_t row = 0; row < p.rows; row++) {
        const double scale = p.scale(row);
        for (uint32_t k = 0; k < m.k; k++)
            x[size_t(row) * m.k + k] = double(__half2float(p.x[size_t(row) * m.k + k])) * scale;
    }
    for (uint32_t n = 0; n < m.n; n++)
        for (uint32_t k = 0; k < m.k; k++) {
            const double w = m.weight(n, k), w_size = m.weight_size(n, k);
            for (uint32_t row = 0; row < p.rows; row++) {
                const double v = x[size_t(row) * m.k + k];
                y[size_t(row) * m.n + n] += w * v;
                size[size_t(row) * m.n + n] += w_size * std::fabs(v);
            }
        }
    for (size_t i = 0; i < y.size(); i++)
        y[i] += p.has_bias ? p.bias[i % m.n] : 0.0f;
}

// The worst error of `got` as a part of what is allowed.
double judge(const Problem &p, const std::vector<uint8_t> &got) {
    std::vector<double> y, size;
    twin(p, y, size);
    const uint32_t n = p.m.n;
    const double eps = (p.m.k / 256 + 48) * std::pow(2.0, -24), round = std::pow(2.0, -11);
    double worst = 0;
    for (uint32_t row = 0; row < p.rows; row++)
        for (uint32_t i = 0; i < n; i++) {
            size_t at = size_t(row) * n + i;
            double want = y[at], bound = eps * size[at] + 1e-7, have;
            if (p.epilogue == linear::GATE_UP) {
                if (i % 16 >= 8)
                    continue;
                double gate = y[at], up = y[at + 8], silu = gate / (1 + std::exp(-gate));
                want = up * silu;
                bound = eps * (size[at + 8] * std::fabs(silu) + 1.1 * size[at] * std::fabs(up)) +
                        4e-7 * std::fabs(want) + round * std::fabs(want) + 1e-7;
                size_t out = size_t(row) * (n / 2) + i / 16 * 8 + i % 8;
                have = __half2float(reinterpret_cast<const __half *>(got.data())[out]);
            } else if (p.epilogue == linear::BIAS) {
                bound += round * std::fabs(want);
                have = __half2float(reinterpret_cast<const __half *>(got.data())[at]);
            } else {
                have = reinterpret_cast<const float *>(got.data())[at];
                want += p.adds() ? p.before[at] : 0.0f;
                bound += std::pow(2.0, -23) * (std::fabs(want) + 1);
            }
            worst = std::max(worst, std::fabs(have - want) / bound);
            if (!std::isfinite(have))
                worst = INFINITY;
        }
    return worst;
}

// What a launch leaves: `out`, and the rest of an ADD_NORM.
struct Result {
    std::vector<uint8_t> out;
    std::vector<__half> weighted;
    std::vector<float> squares;
    bool operator==(const Result &o) const {
        return out == o.out && squares == o.squares &&
               !std::memcmp(weighted.data(), o.weighted.data(), weighted.size() * 2);
    }
};

Result run(const Problem &p, int grid, uint32_t rows, uint32_t split) {
    const Matrix &m = p.m;
    Result result;
    result.out.resize(size_t(rows) * m.n * 4);
    std::copy_n(reinterpret_cast<const uint8_t *>(p.before.data()), result.out.size(),
                result.out.data());
    result.weighted.resize(size_t(rows) * m.n);
    result.squares.resize(size_t(rows) * ((m.n + 15) / 16) * 2);
    const std::vector<uint8_t> packed = pack(m);
    uint8_t *weights = upload(packed), *out = upload(result.out);
    __half *x = upload(p.x), *weighted = upload(result.weighted);
    float *bias = upload(p.bias), *gain = upload(p.gain),
          *squares = upload(p.squares.empty() ? result.squares : p.squares);
    Arguments a = product(weights, x, out, rows, m.n, m.k, p.epilogue);
    a.bias = p.has_bias ? bias : nullptr;
    a.groups = m.chunk_groups(), a.has_zeros = m.has_zeros;
    a.gain = gain, a.weighted = weighted, a.squares = squares;
    a.normalised = !p.squares.empty(), a.epsilon = EPSILON;
    launch(m.bits, a, nullptr, false, grid, split);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(result.out.data(), out, result.out.size(), cudaMemcpyDefault));
    CHECK(cudaMemcpy(result.weighted.data(), weighted, result.weighted.size() * 2,
                     cudaMemcpyDefault));
    if (p.epilogue == linear::ADD_NORM)
        CHECK(cudaMemcpy(result.squares.data(), squares, result.squares.size() * 4,
                         cudaMemcpyDefault));
    for (void *memory : {(void *)weights, (void *)out, (void *)x, (void *)weighted, (void *)bias,
                         (void *)gain, (void *)squares})
        CHECK(cudaFree(memory));
    return result;
}

// Of an ADD_NORM: `weighted` and `squares` are what the stream that it left says.
bool judge_norm(const Problem &p, const Result &got) {
    const uint32_t n = p.m.n, blocks = (n + 15) / 16 * 2;
    const float *stream = reinterpret_cast<const float *>(got.out.data());
    for (uint32_t row = 0; row < p.rows; row++) {
        double squares = 0, sums = 0;
        for (uint32_t i = 0; i < n; i++) {
            const float y = stream[size_t(row) * n + i];
            squares += double(y) * y;
            const __half want = __float2half(linear::weigh<__half>(y, p.gain[i]));
            if (__half2float(want) != __half2float(got.weighted[size_t(row) * n + i]))
                return false;
        }
        for (uint32_t i = 0; i < (n + 7) / 8; i++)
            sums += got.squares[size_t(row) * blocks + i];
        // Sums of eight squares, in f32: each is off by 8 roundings at most.
        if (std::fabs(sums - squares) > 8 * std::pow(2.0, -24) * squares)
            return false;
    }
    return true;
}

Problem random_problem(std::mt19937 &random, int bits, uint32_t n, uint32_t k, uint32_t rows,
                       uint32_t group, bool zeros, uint32_t epilogue, bool normalised) {
    Problem p = {
        random_matrix(random, bits, n, k, group, zeros), rows, epilogue, false, {}, {}, {}, {}, {}};
    p.has_bias = epilogue != linear::GATE_UP && random() % 2;
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < size_t(rows) * k; i++)
        p.x.push_back(__float2half(normal(random)));
    for (uint32_t i = 0; i < n; i++)
        p.bias.push_back(normal(random)), p.gain.push_back(normal(random));
    for (size_t i = 0; i < size_t(rows) * n; i++)
        p.before.push_back(normal(random));
    for (size_t i = 0; normalised && i < size_t(rows) * ((k + 15) / 16) * 2; i++)
        p.squares.push_back(std::fabs(normal(random)) * 2048); // x is of the size of a stream / 16
    return p;
}

// As blocks or as pairs of them.
bool check_split(std::mt19937 &random, const Problem &p, uint32_t split) {
    const Result all = run(p, num_sms(), p.rows, split);
    // Pairs have but one pass, for which a smaller grid may be too small.
    const int grid = split == 1 ? 1 + random() % 200 : num_sms() + random() % 64;
    const Result again = run(p, grid, p.rows, split), alone = run(p, num_sms(), 1, split);
    const double worst = judge(p, all.out);
    // The first row alone, by whatever kernel that takes: the same bits.
    const size_t row_bytes = p.epilogue == linear::GATE_UP ? p.m.n
                             : p.epilogue == linear::BIAS  ? 2 * p.m.n
                                                           : 4 * p.m.n;
    const bool same =
        all == again &&
        std::equal(alone.out.begin(), alone.out.begin() + long(row_bytes), all.out.begin());
    const bool ok = worst <= 1 && same && (p.epilogue != linear::ADD_NORM || judge_norm(p, all));
    std::printf("%s %d bits %5u x %5u rows %2u group %5u zeros %d epilogue %u bias %d normalised "
                "%d split %u: error/allowed %.3f, %s\n",
                ok ? "ok  " : "FAIL", p.m.bits, p.m.n, p.m.k, p.rows, p.m.group, p.m.has_zeros,
                p.epilogue, p.has_bias, !p.squares.empty(), split, worst,
                same ? "same bits" : "OTHER BITS");
    return ok;
}

bool check(bool few) {
    std::mt19937 random(20261125);
    const uint32_t ns[] = {16, 32, 144, 1024, 2128, 4096},
                   ks[] = {128, 384, 1024, 1152, 2048, 5504};
    bool good = true;
    for (int bits : {4, 8})
        for (uint32_t n : ns) {
            if (few && n > 144)
                break;
            for (int i = 0; i < 6; i++) {
                uint32_t k = ks[random() % 6], rows = 1 + random() % 16;
                uint32_t groups[] = {32, 64, 128, 128, k};
                uint32_t group = groups[random() % 5], epilogue = random() % 5;
                const bool zeros = random() % 3 == 0,
                           normalised = epilogue != linear::ADD_NORM && random() % 2 == 0;
                const Problem p = random_problem(random, bits, n, k, i < 2 ? 1 + 7 * i : rows,
                                                 group, zeros, epilogue, normalised);
                for (uint32_t split : {1u, 2u})
                    good &= check_split(random, p, split);
            }
        }
    std::printf("%s\n", good ? "all checks passed" : "CHECKS FAILED");
    return good;
}

} // namespace

#include "quant_time.cuh"

int main(int argc, char **argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::string what = argc > 1 ? argv[1] : "check,time";
    const bool good =
        what.find("check") == std::string::npos || check(what.find("few") != std::string::npos);
    if (what == "once")
        once();
    const bool shapes = what.find("time") != std::string::npos;
    if (good && (shapes || what.find("chain") != std::string::npos))
        time_all(shapes);
    return good ? 0 : 1;
}
