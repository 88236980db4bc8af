// The reference of the decode attention harness: random inputs of a case, laid out as the engine
// lays them out, and what must come out, computed in f64.
#pragma once

#include "decode_launch.cuh"

#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>

using decode_attention::PAGE_TOKENS;

static float widen(uint16_t bits, Type type) {
    if (type == Type::bf16) {
        const uint32_t wide = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &wide, 4);
        return x;
    }
    __half half;
    memcpy(&half, &bits, 2);
    return __half2float(half);
}

static const float *value_table(Type type) {
    static const std::vector<float> *tables = [] {
        auto *made = new std::vector<float>[2];
        for (int t = 0; t < 2; t++) {
            for (uint32_t x = 0; x < 65536; x++)
                made[t].push_back(widen(uint16_t(x), Type(t)));
        }
        return made;
    }();
    return tables[int(type)].data();
}

static float value_of(uint16_t bits, Type type) { return value_table(type)[bits]; }

static uint16_t bits_of(float x, Type type) {
    uint16_t bits;
    if (type == Type::bf16) {
        const __nv_bfloat16 rounded = __float2bfloat16_rn(x);
        memcpy(&bits, &rounded, 2);
    } else {
        const __half rounded = __float2half_rn(x);
        memcpy(&bits, &rounded, 2);
    }
    return bits;
}

// Half the distance to the next number, relative: 8 and 11 bits of precision.
static double unit_roundoff(Type type) { return type == Type::bf16 ? 0x1p-8 : 0x1p-11; }

// Near N(0, 1), cheaply: the sum of four uniform numbers.
static float normal(std::mt19937_64 &random) {
    const uint64_t x = random();
    float sum = -2.0f;
    for (int j = 0; j < 4; j++)
        sum += float(x >> (16 * j) & 0xffff) / 65536.0f;
    return sum * 1.732f;
}

constexpr uint16_t POISON = 0x7fff; // not a number in both types

struct Sequence {
    uint32_t context, rows;
};

struct Case {
    std::string name;
    Type type;
    uint32_t head_dim, num_heads, num_kv_heads;
    std::vector<Sequence> seqs;
    float key_size = 1.0f; // larger: a more peaked softmax
};

static void parallel_for(size_t count, const std::function<void(size_t)> &body) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < std::min(16u, std::max(1u, std::thread::hardware_concurrency()));
         t++) {
        threads.emplace_back([&] {
            for (size_t i; (i = next++) < count;)
                body(i);
        });
    }
    for (std::thread &thread : threads)
        thread.join();
}

// Inputs of a case, and what must come out of it.
struct Problem {
    const Case &c;
    uint32_t rows = 0, max_pages = 1, num_pages = 0;
    std::vector<uint16_t> qkv, cache;
    std::vector<float> cosines, sines, query_scale;
    std::vector<uint32_t> cu_seqlens, context_lens, block_table;
    std::vector<int32_t> slots;
    std::vector<uint16_t> cache_after;
    std::vector<double> attended, tolerance; // NaN where the kernel must not write

    Problem(const Case &of, uint64_t seed) : c(of) {
        std::mt19937_64 random(seed);
        lay_out(random);
        fill(random);
        expect();
    }

    size_t row_width() const { return size_t(c.num_heads + 2 * c.num_kv_heads) * c.head_dim; }

    // The first element of a token's key (0) or value (1).
    size_t cache_index(uint32_t page, uint32_t which, uint32_t kv_head, uint32_t offset) const {
        const size_t half = (size_t(page) * 2 + which) * c.num_kv_heads + kv_head;
        return (half * PAGE_TOKENS + offset) * c.head_dim;
    }

    void lay_out(std::mt19937_64 &random) {
        cu_seqlens.push_back(0);
        for (const Sequence &seq : c.seqs) {
            rows += seq.rows;
            cu_seqlens.push_back(rows);
            context_lens.push_back(seq.context);
            const uint32_t pages = (seq.context + PAGE_TOKENS - 1) / PAGE_TOKENS;
            max_pages = std::max(max_pages, pages + 3);
            num_pages += pages;
        }
        num_pages += 5;
        std::vector<uint32_t> free(num_pages);
        std::iota(free.begin(), free.end(), 0u);
        std::shuffle(free.begin(), free.end(), random);
        block_table.assign(size_t(c.seqs.size()) * max_pages, 0xffffffffu);
        slots.assign(rows, -1);
        for (size_t s = 0; s < c.seqs.size(); s++) {
            uint32_t *table = &block_table[s * max_pages];
            for (uint32_t t = 0; t < c.seqs[s].context; t += PAGE_TOKENS) {
                table[t / PAGE_TOKENS] = free.back();
                free.pop_back();
            }
            for (uint32_t r = 0; r < c.seqs[s].rows && c.seqs[s].context > 0; r++) {
                const uint32_t position = c.seqs[s].context - c.seqs[s].rows + r;
                slots[cu_seqlens[s] + r] =
                    int32_t(table[position / PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS);
            }
        }
    }

    void fill(std::mt19937_64 &random) {
        qkv.resize(rows * row_width());
        for (uint16_t &x : qkv)
            x = bits_of(normal(random), c.type);
        cache.assign(size_t(num_pages) * 2 * c.num_kv_heads * PAGE_TOKENS * c.head_dim, POISON);
        for (size_t s = 0; s < c.seqs.size(); s++) {
            for (uint32_t t = 0; t + c.seqs[s].rows < c.seqs[s].context; t++) {
                const uint32_t page = block_table[s * max_pages + t / PAGE_TOKENS];
                for (uint32_t which = 0; which < 2; which++) {
                    for (uint32_t h = 0; h < c.num_kv_heads; h++) {
                        uint16_t *to = &cache[cache_index(page, which, h, t % PAGE_TOKENS)];
                        for (uint32_t d = 0; d < c.head_dim; d++) {
                            const float size = which == 0 ? c.key_size : 1.0f;
                            to[d] = bits_of(size * normal(random), c.type);
                        }
                    }
                }
            }
        }
        for (uint32_t row = 0; row < rows; row++) {
            query_scale.push_back(0.5f + float(random() % 1000) / 700.0f);
            for (uint32_t d = 0; d < c.head_dim / 2; d++) {
                const float angle = float(random() % 100000) * 1e-3f;
                cosines.push_back(cosf(angle));
                sines.push_back(sinf(angle));
            }
        }
    }

    // A head of a row, rotated in f32 without fused products.
    std::vector<float> rotated(uint32_t row, uint32_t head) const {
        const uint32_t half = c.head_dim / 2;
        const uint16_t *from = &qkv[row * row_width() + size_t(head) * c.head_dim];
        std::vector<float> to(c.head_dim);
        for (uint32_t d = 0; d < half; d++) {
            const float x = value_of(from[d], c.type), y = value_of(from[d + half], c.type);
            const float cosine = cosines[row * half + d], sine = sines[row * half + d];
            volatile float xc = x * cosine, ys = y * sine, yc = y * cosine, xs = x * sine;
            to[d] = xc - ys;
            to[d + half] = yc + xs;
        }
        return to;
    }

    void expect() {
        cache_after = cache;
        attended.assign(size_t(rows) * c.num_heads * c.head_dim, NAN);
        tolerance.assign(attended.size(), 0.0);
        std::vector<std::pair<uint32_t, uint32_t>> items;
        for (uint32_t s = 0; s < c.seqs.size(); s++) {
            if (c.seqs[s].rows != 1 || c.seqs[s].context == 0)
                continue;
            const uint32_t row = cu_seqlens[s], slot = uint32_t(slots[row]);
            for (uint32_t h = 0; h < c.num_kv_heads; h++) {
                const std::vector<float> key = rotated(row, c.num_heads + h);
                const size_t k = cache_index(slot / PAGE_TOKENS, 0, h, slot % PAGE_TOKENS);
                const size_t v = cache_index(slot / PAGE_TOKENS, 1, h, slot % PAGE_TOKENS);
                const uint16_t *value =
                    &qkv[row * row_width() + size_t(c.num_heads + c.num_kv_heads + h) * c.head_dim];
                for (uint32_t d = 0; d < c.head_dim; d++) {
                    cache_after[k + d] = bits_of(key[d], c.type);
                    cache_after[v + d] = value[d];
                }
            }
            for (uint32_t h = 0; h < c.num_heads; h++)
                items.push_back({s, h});
        }
        parallel_for(items.size(), [&](size_t i) { attend(items[i].first, items[i].second); });
    }

    // Attention of one head in f64 over the rounded keys and values. The tolerance of an element:
    // its rounding to T, and f32 errors relative to A = sum of weight x |value|: a score of
    // head_dim products, S the largest sum of their magnitudes, errs by at most head_dim 2^-24 S
    // and moves a weight by as much; a sum over n tokens errs by about sqrt(n) roundings; exp2 and
    // the merges by a few ulp.
    void attend(uint32_t s, uint32_t head) {
        const uint32_t n = c.seqs[s].context, dims = c.head_dim, row = cu_seqlens[s];
        const uint32_t kv_head = head / (c.num_heads / c.num_kv_heads);
        std::vector<float> query = rotated(row, head);
        for (float &x : query)
            x = value_of(bits_of(x * query_scale[row], c.type), c.type);
        const float *table = value_table(c.type);
        std::vector<double> scores(n);
        double largest = -INFINITY, magnitude = 0;
        for (uint32_t t = 0; t < n; t++) {
            const uint16_t *key = token(s, t, 0, kv_head);
            double score = 0, size = 0;
            for (uint32_t d = 0; d < dims; d++) {
                const double product = double(query[d]) * table[key[d]];
                score += product;
                size += std::fabs(product);
            }
            scores[t] = score / std::sqrt(double(dims));
            largest = std::max(largest, scores[t]);
            magnitude = std::max(magnitude, size / std::sqrt(double(dims)));
        }
        std::vector<double> sum(dims, 0.0), absolute(dims, 0.0);
        double total = 0;
        for (uint32_t t = 0; t < n; t++) {
            const double weight = std::exp(scores[t] - largest);
            total += weight;
            const uint16_t *value = token(s, t, 1, kv_head);
            for (uint32_t d = 0; d < dims; d++) {
                const double x = table[value[d]];
                sum[d] += weight * x;
                absolute[d] += weight * std::fabs(x);
            }
        }
        const double relative = (dims * magnitude + 4 * std::sqrt(double(n)) + 16) * 0x1p-24;
        for (uint32_t d = 0; d < dims; d++) {
            const size_t index = (size_t(row) * c.num_heads + head) * dims + d;
            attended[index] = sum[d] / total;
            tolerance[index] =
                unit_roundoff(c.type) * std::fabs(sum[d] / total) + relative * absolute[d] / total;
        }
    }

    const uint16_t *token(uint32_t s, uint32_t t, uint32_t which, uint32_t kv_head) const {
        const uint32_t page = block_table[size_t(s) * max_pages + t / PAGE_TOKENS];
        return &cache_after[cache_index(page, which, kv_head, t % PAGE_TOKENS)];
    }
};
