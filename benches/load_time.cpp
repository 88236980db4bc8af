// How long a model takes to load, in parts: load-time FOLDER [KEY=VALUE]... (engine options).
//
//   before the weights   from the call to the first byte: device, kernels, workspaces
//   weights              from there to the last byte
//   after them           cache, timing of products, recording of decode steps
//
// What the engine says of itself, finer, comes first (its log lines).
//
// The rate of the weights is what `benches/reading.rs` is held against.

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>

#include "qwen.hpp"

namespace {

double now_s() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(time).count();
}

/// When the first and the last bytes came.
struct Times {
    double first_s = 0, last_s = 0;
    uint64_t first_bytes = 0, last_bytes = 0;

    int32_t operator()(const qwen_load_progress &progress) {
        last_s = now_s();
        last_bytes = progress.done_bytes;
        if (first_s == 0) {
            first_s = last_s;
            first_bytes = last_bytes;
        }
        return QWEN_CONTINUE;
    }
};

/// A value that is no JSON, or not of the key's kind, is taken as text.
void set(qwen::Options &options, const std::string &key, const std::string &value) {
    if (!options.try_merge("{\"" + key + "\": " + value + "}"))
        options.set(key, value);
}

void load(const std::string &folder, const qwen::Options &options) {
    Times times;
    const double start = now_s();
    auto engine = qwen::Engine::open(folder, options, times);
    const double end = now_s();
    const double weights_s = times.last_s - times.first_s;
    const double bytes = double(times.last_bytes - times.first_bytes);
    std::printf("%.3f s before the weights, %.3f s for %.2f GB of them (%.2f GB/s), %.3f s after "
                "them\n",
                times.first_s - start, weights_s, bytes / 1e9, bytes / 1e9 / weights_s,
                end - times.last_s);
    std::printf("loaded in %.3f s\n", end - start);
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        std::fputs("usage: load-time FOLDER [KEY=VALUE]...\n", stderr);
        return 2;
    }
    try {
        auto options = qwen::Options::engine();
        for (int at = 2; at < argc; at++) {
            const std::string setting = argv[at];
            const auto equals = setting.find('=');
            if (equals == std::string::npos) {
                std::fprintf(stderr, "load-time: %s is no KEY=VALUE\n", argv[at]);
                return 2;
            }
            set(options, setting.substr(0, equals), setting.substr(equals + 1));
        }
        options.log(QWEN_LOG_INFO, [](int32_t, std::string_view, std::string_view text) {
            std::printf("%.*s\n", int(text.size()), text.data());
        });
        load(argv[1], options);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "load-time: %s\n", error.what());
        return 1;
    }
}
