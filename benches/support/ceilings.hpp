// ceilings.hpp: what the machine can do at most, to hold the model's figures against.
//
// For a GPU the program `ceilings` says (a file it wrote, or run here); for the CPU a threaded read
// is measured here. A rate of 0 is one that nobody knows.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bench {

/// The number behind the first `"key":` in flat JSON; 0 where there is none.
inline double json_number(const std::string &json, const std::string &key) {
    const std::size_t at = json.find("\"" + key + "\":");
    return at == std::string::npos ? 0.0 : std::strtod(json.c_str() + at + key.size() + 3, nullptr);
}

/// The text behind the first `"key":` in JSON; empty where there is none.
inline std::string json_text(const std::string &json, const std::string &key) {
    const std::string start = "\"" + key + "\":";
    std::size_t at = json.find(start);
    if (at == std::string::npos)
        return "";
    at = json.find('"', at + start.size());
    return at == std::string::npos ? "" : json.substr(at + 1, json.find('"', at + 1) - at - 1);
}

inline double now_s() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

struct Ceilings {
    /// Best streaming read.
    double read_bytes_per_s = 0.0;
    /// 16-bit matrix product, sustained for seconds on random numbers.
    double gemm_flops = 0.0;

    static Ceilings parse(const std::string &json) {
        return {json_number(json, "read_gb_s") * 1e9,
                json_number(json, "gemm_sustained_tflop_s") * 1e12};
    }

    static Ceilings read(const std::string &path) {
        std::ifstream file(path);
        std::stringstream text;
        if (!(text << file.rdbuf()))
            throw std::runtime_error("cannot read " + path);
        return parse(text.str());
    }

    /// Runs the program at `path` on CUDA device `device`; nothing is known where that fails.
    static Ceilings run(const std::filesystem::path &path, const std::string &device) {
        if (!std::filesystem::exists(path) || device.find_first_not_of("0123456789") != device.npos)
            return {};
        const std::string index = device.empty() ? "0" : device;
        const std::string command = "'" + path.string() + "' " + index + " 2>/dev/null";
        FILE *pipe = popen(command.c_str(), "r");
        std::string json;
        char line[512];
        while (pipe && fgets(line, sizeof line, pipe))
            json += line;
        return pipe && pclose(pipe) == 0 ? parse(json) : Ceilings{};
    }

    /// Of `count` devices together.
    Ceilings times(double count) const { return {read_bytes_per_s * count, gemm_flops * count}; }

    static Ceilings of_cpu();
};

/// Exclusive or of all words, in enough lanes to keep several loads in flight.
inline uint64_t fold(const uint64_t *words, std::size_t count) {
    uint64_t lanes[32] = {};
    for (std::size_t at = 0; at + 32 <= count; at += 32)
        for (std::size_t lane = 0; lane < 32; lane++)
            lanes[lane] ^= words[at + lane];
    uint64_t all = 0;
    for (uint64_t lane : lanes)
        all ^= lane;
    return all;
}

/// Best of several passes of all cores over 1 GiB in huge pages.
inline Ceilings Ceilings::of_cpu() {
    constexpr std::size_t BYTES = std::size_t(1) << 30, WORDS = BYTES / 8;
    constexpr int PASSES = 7;
    void *memory = mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return {};
    madvise(memory, BYTES, MADV_HUGEPAGE);
    auto *words = static_cast<uint64_t *>(memory);
    for (std::size_t at = 0; at < WORDS; at++)
        words[at] = at * 0x9e3779b97f4a7c15u;
    const std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
    const std::size_t share = WORDS / threads;
    std::vector<uint64_t> sums(threads);
    double best_s = 1e9;
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = now_s();
        std::vector<std::thread> running;
        for (std::size_t index = 0; index < threads; index++)
            running.emplace_back([&, index] { sums[index] ^= fold(words + index * share, share); });
        for (std::thread &thread : running)
            thread.join();
        best_s = std::min(best_s, now_s() - start);
    }
    munmap(memory, BYTES);
    uint64_t all = 0;
    for (uint64_t sum : sums)
        all ^= sum;
    // Looked at, so that the compiler keeps the reads.
    return {all == 1 ? 0.0 : double(share * threads * 8) / best_s, 0.0};
}

} // namespace bench
