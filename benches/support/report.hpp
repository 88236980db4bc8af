// report.hpp: figures as an aligned table for people, or as JSON lines.
//
// Bandwidth is in decimal GB/s, memory in GiB.
#pragma once

#include "measure.hpp"

#include <cstdio>
#include <string>

namespace bench {

/// What holds for the whole run.
struct Setting {
    std::string model, format, device;
    double load_s;
    /// As planned: weights, cache, workspace; and what opening took from the device's free memory.
    double weight_bytes, kv_cache_bytes, workspace_bytes, used_bytes;
    Ceilings ceilings;
};

/// Prompts shorter than this say nothing about the rate of prefill.
constexpr int PREFILL_TOKENS = 128;

class Report {
  public:
    Report(bool json, const Setting &setting) : json_(json), setting_(setting) {
        json ? head_json() : head_table();
    }

    void skipped(const Cell &cell, const std::string &why) const {
        if (json_)
            std::printf("{\"context\": %d, \"batch\": %d, \"skipped\": \"%s\"}\n", cell.context,
                        cell.batch, why.c_str());
        else
            std::printf("%7d %5d   skipped: %s\n", cell.context, cell.batch, why.c_str());
        std::fflush(stdout);
    }

    void row(const Cell &cell, const Figures &f) const {
        json_ ? row_json(cell, f) : row_table(cell, f);
        std::fflush(stdout);
    }

  private:
    bool has_read() const { return setting_.ceilings.read_bytes_per_s > 0.0; }
    bool has_gemm() const { return setting_.ceilings.gemm_flops > 0.0; }

    void head_json() const {
        const Setting &s = setting_;
        std::printf("{\"model\": \"%s\", \"format\": \"%s\", \"device\": \"%s\", \"load_s\": %.3f, "
                    "\"weight_bytes\": %.0f, \"kv_cache_bytes\": %.0f, \"workspace_bytes\": %.0f, "
                    "\"used_bytes\": %.0f, \"read_gb_s\": %.1f, \"gemm_tflop_s\": %.1f}\n",
                    s.model.c_str(), s.format.c_str(), s.device.c_str(), s.load_s, s.weight_bytes,
                    s.kv_cache_bytes, s.workspace_bytes, s.used_bytes,
                    s.ceilings.read_bytes_per_s / 1e9, s.ceilings.gemm_flops / 1e12);
    }

    void head_table() const {
        const Setting &s = setting_;
        constexpr double GIB = 1024.0 * 1024.0 * 1024.0;
        std::printf("%s, %s, on %s: opened in %.1f s\n", s.model.c_str(), s.format.c_str(),
                    s.device.c_str(), s.load_s);
        std::printf("memory: weights %.2f GiB, KV cache %.2f GiB, workspace %.2f GiB",
                    s.weight_bytes / GIB, s.kv_cache_bytes / GIB, s.workspace_bytes / GIB);
        if (s.used_bytes > 0.0)
            std::printf("; taken by opening: %.2f GiB", s.used_bytes / GIB);
        std::printf("\n");
        if (has_read())
            std::printf("ceilings of this run: read %.0f GB/s", s.ceilings.read_bytes_per_s / 1e9);
        if (has_gemm())
            std::printf(", matrix product %.0f TFLOP/s sustained", s.ceilings.gemm_flops / 1e12);
        std::printf("%s\n", has_read() ? "" : "no ceilings: no fractions");
        std::printf("%7s %5s %8s %8s %8s %8s %8s %8s %8s %8s%s %8s%s %8s   idle\n", "context", "batch",
                    "first s", "tok/s", "all", "gap p5", "p50", "p95 ms", "GB/step", "GB/s",
                    has_read() ? "   read" : "", "TFLOP/s", has_gemm() ? "   GEMM" : "", "card");
    }

    void row_table(const Cell &cell, const Figures &f) const {
        std::printf("%7d %5d %8.3f %8.2f %8.2f %8.3f %8.3f %8.3f %8.2f %8.0f", cell.context,
                    cell.batch, f.first_all_s, f.decode_tok_s, f.all_tok_s, f.gap_p5_ms,
                    f.gap_p50_ms, f.gap_p95_ms, f.step_bytes / 1e9, f.read_bytes_per_s / 1e9);
        if (has_read())
            std::printf(" %5.1f%%",
                        100.0 * f.read_bytes_per_s / setting_.ceilings.read_bytes_per_s);
        if (cell.context < PREFILL_TOKENS)
            std::printf(" %8s%s", "-", has_gemm() ? "      -" : "");
        else if (has_gemm())
            std::printf(" %8.1f %5.1f%%", f.prefill_flops_per_s / 1e12,
                        100.0 * f.prefill_flops_per_s / setting_.ceilings.gemm_flops);
        else
            std::printf(" %8.2f", f.prefill_flops_per_s / 1e12);
        std::printf(" %8.2f", f.card_tok_s);
        if (f.idle_share < 0.0)
            std::printf("      -\n");
        else
            std::printf(" %5.1f%%\n", 100.0 * f.idle_share);
    }

    void row_json(const Cell &cell, const Figures &f) const {
        std::printf("{\"context\": %d, \"batch\": %d, \"generate\": %d, \"first_token_s\": %.4f, "
                    "\"first_token_all_s\": %.4f, \"decode_tok_s\": %.3f, \"all_tok_s\": %.3f, "
                    "\"gap_p5_ms\": %.4f, \"gap_p50_ms\": %.4f, \"gap_p95_ms\": %.4f, "
                    "\"card_tok_s\": %.3f, \"step_bytes\": %.0f, \"read_gb_s\": %.2f",
                    cell.context, cell.batch, cell.generate, f.first_s, f.first_all_s,
                    f.decode_tok_s, f.all_tok_s, f.gap_p5_ms, f.gap_p50_ms, f.gap_p95_ms,
                    f.card_tok_s, f.step_bytes, f.read_bytes_per_s / 1e9);
        if (has_read())
            std::printf(", \"read_fraction\": %.4f",
                        f.read_bytes_per_s / setting_.ceilings.read_bytes_per_s);
        if (cell.context >= PREFILL_TOKENS) {
            std::printf(", \"prefill_tflop_s\": %.3f", f.prefill_flops_per_s / 1e12);
            if (has_gemm())
                std::printf(", \"gemm_fraction\": %.4f",
                            f.prefill_flops_per_s / setting_.ceilings.gemm_flops);
        }
        if (f.idle_share >= 0.0)
            std::printf(", \"idle_share\": %.4f", f.idle_share);
        std::printf("}\n");
    }

    bool json_;
    Setting setting_;
};

} // namespace bench
