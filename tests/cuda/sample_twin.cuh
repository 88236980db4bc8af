// The definition of sampling in float64, with a full sort, and how far a GPU may be from it; a part
// of sample.cu.
//
// A drawn token must be the twin's. It may differ only where the twin says that rounding decides:
// GPU weights have a relative error of 3 * 2^-24 * |x - max| / T (subtraction, slope, product) plus
// 2^-22 (exp2) and an absolute one of 2^-41 (fixed point). The sum of those bounds E moves an edge
// of the draw by at most 2 E, and the nucleus' cut too; such tokens count as excused.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace {

constexpr uint32_t CANARY = 0xabcdabcdu;

// splitmix64
struct Random {
    uint64_t state;
    uint64_t bits() {
        uint64_t x = state += 0x9e3779b97f4a7c15ull;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
        return x ^ (x >> 31);
    }
    double uniform() { return double(bits() >> 11) / double(1ull << 53); }
    uint32_t below(uint32_t n) { return uint32_t(bits() % n); }
    float normal() {
        return float(std::sqrt(-2 * std::log(1 - uniform())) *
                     std::cos(6.283185307179586 * uniform()));
    }
    template <class T> T pick(const std::vector<T> &from) {
        return from[below(uint32_t(from.size()))];
    }
};

// ---- the twin ----------------------------------------------------------------------------------

struct Case {
    std::vector<float> logits;
    std::vector<uint2> seen;
    SampleRow row;
};

enum class Verdict { same, excused, wrong };

struct Twin {
    std::vector<float> x;                      // logits after penalties
    std::vector<double> weight, error, before; // before: the running sum in front of an id
    std::vector<char> kept, doubtful;
    double total = 0, bound = 0;
    uint32_t fixed_token = CANARY; // the answer, where nothing is drawn

    explicit Twin(const Case &c);
    void penalise(const Case &c);
    bool settle(const SampleRow &p);
    void filter(const SampleRow &p);
    void nucleus(const std::vector<uint32_t> &order, double top_p);
    Verdict judge(uint32_t token, double uniform) const;
};

Twin::Twin(const Case &c) {
    penalise(c);
    if (settle(c.row))
        return;
    const float max = *std::max_element(x.begin(), x.end());
    for (float logit : x) {
        // A difference that no f32 holds counts as infinite, as in the definition.
        const double below = std::isinf(logit - max) ? -INFINITY : double(logit) - double(max);
        const double shifted = below / double(c.row.temperature);
        const double w = std::exp(shifted);
        const double relative = 3 * 0x1p-24 * -shifted + 0x1p-22;
        weight.push_back(w);
        error.push_back(w > 0 ? w * relative * (1 + 1e-3) + 0x1p-41 : 0);
    }
    filter(c.row);
    before.resize(x.size());
    double errors = 0;
    for (size_t i = 0; i < x.size(); i++) {
        before[i] = total;
        total += kept[i] ? weight[i] : 0;
        errors += kept[i] || doubtful[i] ? error[i] : 0;
        bound += doubtful[i] ? weight[i] : 0;
    }
    bound += 2 * errors;
}

void Twin::penalise(const Case &c) {
    x = c.logits;
    const SampleRow &p = c.row;
    for (const uint2 &entry : c.seen) {
        if (entry.x >= x.size())
            continue;
        volatile float logit = x[entry.x];
        if (p.repetition != 1.0f)
            logit = logit < 0 ? logit * p.repetition : logit / p.repetition;
        volatile float frequency = p.frequency * float(entry.y);
        volatile float both = p.presence + frequency;
        if (entry.y > 0)
            logit = logit - both;
        x[entry.x] = logit;
    }
}

bool Twin::settle(const SampleRow &p) {
    uint32_t best = 0;
    bool bad = false;
    for (uint32_t i = 0; i < x.size(); i++) {
        bad |= std::isnan(x[i]) || x[i] == INFINITY;
        best = x[i] > x[best] ? i : best;
    }
    if (bad || x[best] == -INFINITY)
        fixed_token = 0xffffffffu;
    else if (p.temperature == 0)
        fixed_token = best;
    return fixed_token != CANARY;
}

void Twin::filter(const SampleRow &p) {
    std::vector<uint32_t> order(x.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
    kept.assign(x.size(), 1);
    doubtful.assign(x.size(), 0);
    if (p.top_k > 0 && p.top_k < x.size()) {
        const float kth = x[order[p.top_k - 1]];
        for (uint32_t id : order)
            kept[id] = x[id] >= kth;
    }
    if (p.top_p < 1)
        nucleus(order, p.top_p);
    for (uint32_t id : order) {
        doubtful[id] |= kept[id] && id != order[0] && std::fabs(weight[id] - p.min_p) <= error[id];
        kept[id] = kept[id] && (weight[id] >= p.min_p || id == order[0]);
    }
}

void Twin::nucleus(const std::vector<uint32_t> &order, double top_p) {
    double sum = 0, errors = 0, above = 0;
    for (uint32_t id : order) {
        sum += kept[id] ? weight[id] : 0;
        errors += kept[id] ? error[id] : 0;
    }
    const double mass = top_p * sum;
    for (uint32_t id : order) {
        if (!kept[id])
            break;
        kept[id] = above < mass;
        doubtful[id] = id != order[0] && std::fabs(above - mass) <= 2 * errors;
        above += weight[id];
    }
}

Verdict Twin::judge(uint32_t token, double uniform) const {
    if (fixed_token != CANARY)
        return token == fixed_token ? Verdict::same : Verdict::wrong;
    if (token >= x.size() || x[token] == -INFINITY || !(kept[token] || doubtful[token]))
        return Verdict::wrong;
    const double target = uniform * total;
    const double after = before[token] + (kept[token] ? weight[token] : 0);
    if (kept[token] && before[token] <= target && target < after)
        return Verdict::same;
    const bool near = target >= before[token] - bound && target <= after + bound;
    return near ? Verdict::excused : Verdict::wrong;
}

} // namespace
