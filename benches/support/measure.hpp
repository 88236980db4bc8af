// measure.hpp: some requests at once through the C ABI, and what their arrival times say.
//
// Every time is taken where a caller gets the token: scheduling, sampling, detokenising and the
// completion queue are inside.
#pragma once

#include "ceilings.hpp"

#include <qwen.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

/// Sizes of an opened model, from the engine's own report.
struct Model {
    double layers, hidden, head_cols, width, vocab, ranks;
    double weight_bytes, kv_token_bytes;
    /// Of an element of the embedding table, which is never quantised.
    double table_element_bytes;

    static Model of(const qwen::Engine &engine) {
        const std::string info = engine.info();
        const auto size = [&](const char *key) { return json_number(info, key); };
        // Ids of ordinary tokens: prompts are made of these.
        auto tokenizer = engine.tokenizer();
        const double ranks = json_number(tokenizer.info(), "end_of_text");
        const double head_cols = size("num_heads") * size("head_dim");
        return {size("num_layers"),   size("hidden_size"),   head_cols,
                size("intermediate_size"), size("vocab_size"), ranks,
                size("weight_bytes"), size("kv_token_bytes"),
                json_text(info, "weight_format") == "f32" ? 4.0 : 2.0};
    }

    double layer_parameters() const { return layers * hidden * (4.0 * head_cols + 3.0 * width); }
    double table_parameters() const { return vocab * hidden; }
    /// Bytes of weights that each decode step reads: of the embedding table it reads a row a token. (Of a
    /// stored quantised model this counts, too, what loading drops: zero points that are all the
    /// middle, and biases of zero, about 1 %.)
    double step_weight_bytes() const {
        return weight_bytes - table_parameters() * table_element_bytes;
    }
    /// A prompt of `n` tokens: linears, causal attention, and the head for one row.
    double prefill_flops(double n) const {
        return 2.0 * layer_parameters() * n + 2.0 * layers * head_cols * n * (n + 1.0) +
               2.0 * table_parameters();
    }
};

/// One cell of the grid.
struct Cell {
    int context, batch, generate;
};

struct Figures {
    /// Until the first token: mean over the sequences, and the last of them.
    double first_s, first_all_s;
    /// Of one sequence: (n - 1) / (last - first), mean. Of all together while all are decoding.
    double decode_tok_s, all_tok_s;
    /// Between tokens of one sequence while all are decoding.
    double gap_p5_ms, gap_p50_ms, gap_p95_ms;
    /// Generated tokens over the wall time of prompts and generation, as the model card counts.
    double card_tok_s;
    double step_bytes, read_bytes_per_s, prefill_flops_per_s;
    /// Part of the steps' time for which the GPU did nothing; negative where it is not known.
    double idle_share;
};

/// What the engine has counted so far.
struct Counted {
    double forward_us, device_us;

    static Counted by(const qwen::Engine &engine) {
        const std::string metrics = engine.metrics();
        return {json_number(metrics, "forward_us"), json_number(metrics, "device_us")};
    }
    double idle_share_since(const Counted &before) const {
        const double busy = device_us - before.device_us, all = forward_us - before.forward_us;
        return busy > 0.0 && all > 0.0 ? 1.0 - busy / all : -1.0;
    }
};

/// Arrival of each token of each sequence, in seconds from the submission of the first.
using Arrivals = std::vector<std::vector<double>>;

inline Arrivals run(const qwen::Engine &engine, const Model &model, const Cell &cell,
                    const qwen::Options &generation, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<qwen::Request> requests;
    for (int i = 0; i < cell.batch; i++) {
        std::vector<uint32_t> prompt(static_cast<std::size_t>(cell.context));
        for (uint32_t &id : prompt)
            id = static_cast<uint32_t>(random() % static_cast<uint64_t>(model.ranks));
        requests.push_back(qwen::Request::tokens(engine, prompt, generation));
    }
    qwen::Queue queue;
    Arrivals arrivals(requests.size());
    const double start = now_s();
    for (std::size_t i = 0; i < requests.size(); i++)
        requests[i].submit(queue, i);
    for (std::size_t running = requests.size(); running > 0;) {
        const qwen::Events events = queue.next();
        const double now = now_s() - start;
        for (const qwen::EventView event : events) {
            if (event.kind() == QWEN_EVENT_FAILED)
                throw event.error();
            auto &times = arrivals[event.tag()];
            times.insert(times.end(), event.tokens().size(), now);
            running -= event.kind() == QWEN_EVENT_FINISHED;
        }
    }
    for (const auto &times : arrivals)
        if (times.size() != static_cast<std::size_t>(cell.generate))
            throw std::runtime_error("a reply has " + std::to_string(times.size()) + " tokens");
    return arrivals;
}

/// Value at `share` (0 to 1) of `values`, which get sorted.
inline double percentile(std::vector<double> &values, double share) {
    if (values.empty())
        return 0.0;
    std::sort(values.begin(), values.end());
    return values[static_cast<std::size_t>(std::lround(share * double(values.size() - 1)))];
}

inline Figures figures(const Model &model, const Cell &cell, const Arrivals &arrivals) {
    Figures f = {};
    const double n = cell.generate, batch = cell.batch;
    double all_from = 0.0, all_to = 1e300, end = 0.0;
    for (const auto &times : arrivals) {
        f.first_s += times.front() / batch;
        // Where all tokens were read at once nothing is known of the time between them.
        const double took = times.back() - times.front();
        f.decode_tok_s += took > 1e-6 ? (n - 1.0) / took / batch : 0.0;
        all_from = std::max(all_from, times.front());
        all_to = std::min(all_to, times.back());
        end = std::max(end, times.back());
    }
    std::vector<double> gaps;
    double tokens = 0.0;
    for (const auto &times : arrivals)
        for (std::size_t i = 1; i < times.size(); i++)
            if (times[i] > all_from && times[i] <= all_to) {
                tokens += 1.0;
                gaps.push_back(1e3 * (times[i] - times[i - 1]));
            }
    f.first_all_s = all_from;
    f.all_tok_s = tokens > 0.0 && all_to > all_from ? tokens / (all_to - all_from) : 0.0;
    f.gap_p5_ms = percentile(gaps, 0.05);
    f.gap_p50_ms = percentile(gaps, 0.50);
    f.gap_p95_ms = percentile(gaps, 0.95);
    f.card_tok_s = batch * n / end;
    // Halfway through the generation.
    const double tokens_cached = batch * (cell.context + n / 2.0);
    f.step_bytes = model.step_weight_bytes() + tokens_cached * model.kv_token_bytes;
    f.read_bytes_per_s = f.step_bytes * f.all_tok_s / batch;
    f.prefill_flops_per_s = batch * model.prefill_flops(cell.context) / all_from;
    return f;
}

} // namespace bench
