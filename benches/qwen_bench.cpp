// qwen-bench: a model's speed as a caller of the library gets it, beside what the machine can do.
//
//   qwen-bench --shape qwen-72b --context 1,6144 --generate 2048 --batch 1,8
//   qwen-bench --model /path/to/Qwen-7B-Chat --json
//
// A shape is measured with random weights, made where they live; no checkpoint is needed. Prompts
// are random ids, replies are as long as asked (end-of-text does not end them) and greedy unless a
// temperature is given. For each context and batch: the time to the first token (of the last
// sequence), tokens a second of one sequence and of all, the gap between tokens, the bytes a step
// must read with the bandwidth that makes, the prompt's FLOP/s, the model card's own figure, and
// for how much of the steps' time the GPU had nothing to do. The fractions are of rates measured in
// the same run by the program `ceilings` beside this one (or given with --ceilings), times the
// number of devices that compute at once, and on a CPU of a threaded read measured here. Memory is
// that of the fullest device.

#include "support/report.hpp"
#include "support/shapes.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace bench;

namespace {

const char USAGE[] =
    "qwen-bench --shape qwen-72b|14b|7b|1.8b|tiny | --model DIR\n"
    "  --format bf16|fp16|int8|int4  of random weights (bf16); int8 and int4 as GPTQ has them\n"
    "  --layers N               of random weights (the shape's)\n"
    "  --context 1,6144         tokens of a prompt (1)\n"
    "  --generate N             tokens of a reply (256)\n"
    "  --batch 1,8              requests at once (1)\n"
    "  --backend auto|cpu|cuda  (auto)    --devices 0,1    --embedding auto|device|host\n"
    "  --split tensors|layers   among devices (tensors)\n"
    "  --chunk N                prompt tokens of one step    --kv-tokens N   size of the cache\n"
    "  --temperature T --top-p P  draw; greedy otherwise\n"
    "  --ceilings FILE|none     what the program `ceilings` wrote\n"
    "  --json                   JSON lines in place of a table\n";

struct Arguments {
    std::string shape, model, format = "bf16", devices, backend = "auto", embedding = "auto";
    std::string ceilings, split = "tensors";
    std::vector<int> contexts = {1}, batches = {1};
    int generate = 256, layers = 0, chunk = 0;
    long kv_tokens = 0;
    double temperature = 0.0, top_p = 1.0;
    bool json = false, has_format = false;
};

long number(const std::string &key, const std::string &text, long least) {
    char *end = nullptr;
    const long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || value < least || value > 1L << 30)
        throw std::runtime_error(key + ": `" + text + "` is no number from " +
                                 std::to_string(least));
    return value;
}

double decimal(const std::string &key, const std::string &text) {
    char *end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end || !(value >= 0.0))
        throw std::runtime_error(key + ": `" + text + "` is no number from 0");
    return value;
}

std::vector<int> numbers(const std::string &key, const std::string &text) {
    std::vector<int> values;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t comma = std::min(text.find(',', at), text.size());
        values.push_back(static_cast<int>(number(key, text.substr(at, comma - at), 1)));
        at = comma + 1;
    }
    return values;
}

/// Takes `value` for `key`; false for a key that is not known.
bool take(Arguments &a, const std::string &key, const std::string &value) {
    const auto is = [&](const char *name) { return key == name; };
    if (is("--shape"))
        a.shape = value;
    else if (is("--model"))
        a.model = value;
    else if (is("--format"))
        a.format = value, a.has_format = true;
    else if (is("--devices"))
        a.devices = value;
    else if (is("--split"))
        a.split = value;
    else if (is("--backend"))
        a.backend = value;
    else if (is("--embedding"))
        a.embedding = value;
    else if (is("--ceilings"))
        a.ceilings = value;
    else if (is("--context"))
        a.contexts = numbers(key, value);
    else if (is("--batch"))
        a.batches = numbers(key, value);
    else if (is("--generate"))
        a.generate = static_cast<int>(number(key, value, 2));
    else if (is("--layers"))
        a.layers = static_cast<int>(number(key, value, 1));
    else if (is("--chunk"))
        a.chunk = static_cast<int>(number(key, value, 1));
    else if (is("--kv-tokens"))
        a.kv_tokens = number(key, value, 1);
    else if (is("--temperature"))
        a.temperature = decimal(key, value);
    else if (is("--top-p"))
        a.top_p = decimal(key, value);
    else
        return false;
    return true;
}

Arguments parse(int argc, char **argv) {
    Arguments a;
    for (int at = 1; at < argc; at++) {
        const std::string key = argv[at];
        if (key == "--help") {
            std::fputs(USAGE, stdout);
            std::exit(0);
        } else if (key == "--json") {
            a.json = true;
        } else if (at + 1 == argc || !take(a, key, argv[++at])) {
            throw std::runtime_error("`" + key + "` is unknown or lacks a value\n" + USAGE);
        }
    }
    if (a.shape.empty() == a.model.empty())
        throw std::runtime_error(std::string("give --shape or --model\n") + USAGE);
    if (!a.model.empty() && (a.layers || a.has_format))
        throw std::runtime_error("--layers and --format are for --shape: a model is as it is");
    if (a.format != "bf16" && a.format != "fp16" && !quantised_bits(a.format))
        throw std::runtime_error("--format: bf16, fp16, int8 and int4 can be measured, not " +
                                 a.format);
    return a;
}

/// Cache that a request takes: whole pages.
long cell_tokens(const Arguments &a, int context, int batch) {
    return (context + a.generate + 15L) / 16 * 16 * batch;
}

struct Opened {
    qwen::Engine engine;
    Setting setting;
    /// Tokens of the cache.
    long kv_tokens;
};

qwen::Options engine_options(const Arguments &a) {
    const auto largest = [](const std::vector<int> &values) {
        return *std::max_element(values.begin(), values.end());
    };
    auto options = qwen::Options::engine();
    options.set("backend", a.backend).set("devices", a.devices).set("embedding", a.embedding);
    options.set("split", a.split);
    options.set("weights", a.shape.empty() ? "auto" : "random");
    options.set("prefill_chunk_tokens", a.chunk).set("prefix_cache", 0);
    options.set("max_batch_sequences", largest(a.batches));
    options.set("max_context_tokens", largest(a.contexts) + a.generate);
    return options;
}

/// A cache for the largest cell, or else as large as fits.
long choose_cache(const Arguments &a, const std::string &folder, qwen::Options &options) {
    long wanted = 0;
    for (int context : a.contexts)
        for (int batch : a.batches)
            wanted = std::max(wanted, cell_tokens(a, context, batch));
    options.set("kv_cache_tokens", wanted);
    const std::string plan = qwen::Engine::estimate(folder, options);
    const double token_bytes = json_number(plan, "kv_cache_bytes") / double(wanted);
    const double left = json_number(plan, "available_bytes") - json_number(plan, "weight_bytes") -
                        json_number(plan, "workspace_bytes");
    const double affordable = std::max(256.0, 0.97 * left / token_bytes);
    return double(wanted) <= affordable ? wanted : static_cast<long>(affordable) / 16 * 16;
}

/// Devices that share the model.
int num_devices(const Arguments &a) {
    return 1 + static_cast<int>(std::count(a.devices.begin(), a.devices.end(), ','));
}

/// As given, or measured: on the first GPU before the model takes its memory, by the program beside
/// this. Of one device.
Ceilings gpu_ceilings(const Arguments &a) {
    if (a.ceilings == "none" || (a.ceilings.empty() && a.backend == "cpu"))
        return {};
    if (!a.ceilings.empty())
        return Ceilings::read(a.ceilings);
    const auto program = std::filesystem::read_symlink("/proc/self/exe");
    return Ceilings::run(program.parent_path() / "ceilings",
                         a.devices.substr(0, a.devices.find(',')));
}

Opened open(const Arguments &a, const std::string &folder) {
    Setting setting = {};
    const bool takes_turns = a.split == "layers";
    setting.ceilings = gpu_ceilings(a).times(takes_turns ? 1 : num_devices(a));
    qwen::Options options = engine_options(a);
    const long kv_tokens = a.kv_tokens ? a.kv_tokens : choose_cache(a, folder, options);
    options.set("kv_cache_tokens", kv_tokens);
    const std::string plan = qwen::Engine::estimate(folder, options);
    const double start = now_s();
    auto engine = qwen::Engine::open(folder, options);
    setting.load_s = now_s() - start;
    const std::string info = engine.info();
    const bool is_gpu = info.find("\"name\":\"cuda\"") != std::string::npos;
    if (!is_gpu && a.ceilings.empty())
        setting.ceilings = Ceilings::of_cpu();
    setting.model = a.shape.empty() ? a.model : a.shape;
    if (a.layers)
        setting.model += " with " + std::to_string(a.layers) + " layers";
    setting.format = a.shape.empty() ? "as stored" : a.format;
    setting.device = is_gpu ? std::to_string(num_devices(a)) + " " + json_text(info, "device_name")
                            : "the CPU (" + json_text(info, "instruction_set") + ")";
    if (takes_turns)
        setting.device += " by layers";
    const auto planned = [&](const char *key) { return json_number(plan, key); };
    setting.weight_bytes = planned("weight_bytes");
    setting.kv_cache_bytes = planned("kv_cache_bytes");
    setting.workspace_bytes = planned("workspace_bytes");
    if (is_gpu && !takes_turns) { // layers would now be divided by what is left
        const std::string after = qwen::Engine::estimate(folder, options);
        setting.used_bytes = planned("available_bytes") - json_number(after, "available_bytes");
    }
    return {std::move(engine), setting, kv_tokens};
}

qwen::Options generation_options(const Arguments &a, int tokens) {
    auto options = qwen::Options::generation();
    options.set("temperature", a.temperature).set("top_p", a.top_p).set("repetition_penalty", 1.0);
    options.set("top_k", 0).set("seed", 1).set("ignore_eos", 1).set("max_tokens", tokens);
    return options;
}

void measure(const Arguments &a, const Opened &opened) {
    constexpr int WARM_UP_TOKENS = 32;
    const Model model = Model::of(opened.engine);
    const Report report(a.json, opened.setting);
    uint64_t seed = 1;
    for (int batch : a.batches)
        for (int context : a.contexts) {
            const Cell cell = {context, batch, a.generate};
            const long needed = cell_tokens(a, context, batch);
            if (needed > opened.kv_tokens) {
                report.skipped(cell, "needs " + std::to_string(needed) + " tokens of a cache of " +
                                         std::to_string(opened.kv_tokens));
                continue;
            }
            // The whole prompt: products are timed when a step first has their number of rows.
            const Cell warm_up = {context, batch, std::min(WARM_UP_TOKENS, a.generate)};
            run(opened.engine, model, warm_up, generation_options(a, warm_up.generate), seed++);
            const Counted before = Counted::by(opened.engine);
            const Arrivals arrivals =
                run(opened.engine, model, cell, generation_options(a, cell.generate), seed++);
            Figures f = figures(model, cell, arrivals);
            f.idle_share = Counted::by(opened.engine).idle_share_since(before);
            report.row(cell, f);
        }
}

} // namespace

int main(int argc, char **argv) try {
    const Arguments arguments = parse(argc, argv);
    qwen::check_abi();
    std::unique_ptr<ModelFolder> made;
    std::string folder = arguments.model;
    if (!arguments.shape.empty()) {
        made = std::make_unique<ModelFolder>(find_shape(arguments.shape), arguments.format,
                                             arguments.layers);
        folder = made->path();
    }
    measure(arguments, open(arguments, folder));
} catch (const std::exception &error) {
    std::fprintf(stderr, "qwen-bench: %s\n", error.what());
    return 1;
}
