// Checks and times cuda/decode_attention.cu on the GPU it finds.
//
// Correctness comes first, against attention in f64 on the host; the timings follow, as fractions
// of the streaming read measured in the same run. Exit status 1 when any check fails.
//   decode_attention [label] [check | time]
#include "decode_timing.cuh"

struct Errors {
    double largest = 0, mean = 0; // in units of the tolerance
    size_t wrong = 0, touched = 0;
    bool good() const { return wrong == 0 && touched == 0 && mean < 0.6; }
};

static Errors compare(const Problem &problem, const std::vector<uint16_t> &attended) {
    Errors errors;
    double error_sum = 0, tolerance_sum = 0;
    for (size_t i = 0; i < attended.size(); i++) {
        if (std::isnan(problem.attended[i])) {
            errors.touched += attended[i] != POISON;
            continue;
        }
        const double error = std::fabs(value_of(attended[i], problem.c.type) - problem.attended[i]);
        if (!(error <= problem.tolerance[i]))
            errors.wrong++;
        errors.largest = std::max(errors.largest, error / problem.tolerance[i]);
        error_sum += error;
        tolerance_sum += problem.tolerance[i];
    }
    errors.mean = tolerance_sum > 0 ? error_sum / tolerance_sum : 0;
    return errors;
}

// The check itself must notice a value that is off by three tolerances, and one written to padding.
static bool compare_can_fail(const Problem &problem, std::vector<uint16_t> attended) {
    for (size_t i = 0; i < attended.size(); i++) {
        if (std::isnan(problem.attended[i]))
            continue;
        attended[i] =
            bits_of(float(problem.attended[i] + 3 * problem.tolerance[i]), problem.c.type);
        return compare(problem, attended).wrong > 0;
    }
    return true;
}

static bool check(const Case &c, uint64_t seed, bool verbose = true) {
    const Problem problem(c, seed);
    Buffer<uint16_t> qkv(problem.qkv), cache(problem.cache), attended(problem.attended.size());
    Buffer<float> cosines(problem.cosines), sines(problem.sines), scale(problem.query_scale);
    Buffer<uint32_t> cu_seqlens(problem.cu_seqlens), context_lens(problem.context_lens);
    Buffer<uint32_t> block_table(problem.block_table);
    Buffer<int32_t> slots(problem.slots);
    Buffer<unsigned char> workspace(decode_attention::workspace_bytes(num_blocks(), c.head_dim));
    CUDA(cudaMemset(workspace.pointer, 0xff, workspace.count));
    CUDA(cudaMemset(workspace.pointer, 0, decode_attention::counter_bytes(num_blocks())));
    const DecodeAttention arguments = {
        attended.pointer,    qkv.pointer,   cache.pointer,      cosines.pointer,
        sines.pointer,       scale.pointer, cu_seqlens.pointer, context_lens.pointer,
        block_table.pointer, slots.pointer, workspace.pointer,  uint32_t(c.seqs.size()),
        problem.max_pages,   c.num_heads,   c.num_kv_heads};
    std::vector<uint16_t> first;
    bool same = true, appended = true;
    for (int round = 0; round < 3; round++) {
        attended.set(std::vector<uint16_t>(attended.count, POISON));
        cache.set(problem.cache);
        launch_decode(arguments, c.type, c.head_dim, 0, round % 2 == 1);
        CUDA(cudaDeviceSynchronize());
        const std::vector<uint16_t> result = attended.get();
        appended &= cache.get() == problem.cache_after;
        if (round == 0)
            first = result;
        same &= result == first;
    }
    const std::vector<unsigned char> after = workspace.get();
    const bool zero =
        std::all_of(after.begin(), after.begin() + decode_attention::counter_bytes(num_blocks()),
                    [](unsigned char x) { return x == 0; });
    const Errors errors = compare(problem, first);
    const bool good = errors.good() && same && appended && zero && compare_can_fail(problem, first);
    if (verbose || !good) {
        printf("%-4s %-34s %s D=%-3u heads %u/%u: error %.2f of tolerance, mean %.2f; wrong %zu, "
               "padding touched %zu, appended %s, same bits %s, counters %s (seed %llu)\n",
               good ? "ok" : "FAIL", c.name.c_str(), c.type == Type::bf16 ? "bf16" : "f16 ",
               c.head_dim, c.num_heads, c.num_kv_heads, errors.largest, errors.mean, errors.wrong,
               errors.touched, appended ? "yes" : "NO", same ? "yes" : "NO",
               zero ? "zero" : "NOT ZERO", (unsigned long long)seed);
    }
    return good;
}

static bool check_types(const char *name, uint32_t heads, uint32_t kv_heads,
                        const std::vector<Sequence> &seqs, float key_size) {
    bool good = true;
    for (Type type : {Type::bf16, Type::f16}) {
        for (uint32_t head_dim : {64u, 128u}) {
            good &= check({name, type, head_dim, heads, kv_heads, seqs, key_size}, 1);
        }
    }
    return good;
}

static bool check_random(uint64_t seed) {
    std::mt19937_64 random(seed);
    const uint32_t kv_heads = 1 + random() % 5, group = random() % 3 == 0 ? 1 + random() % 4 : 1;
    std::vector<Sequence> seqs;
    const uint32_t count = 1 + random() % (random() % 4 == 0 ? 90 : 9);
    const uint32_t longest = count > 20 ? 60 : 1u << (4 + random() % 7);
    for (uint32_t s = 0; s < count; s++) {
        const uint32_t context = 1 + random() % longest, kind = random() % 8;
        if (kind == 0)
            seqs.push_back({0, uint32_t(random() % 2)});
        else if (kind == 1 && context > 5)
            seqs.push_back({context, 2 + uint32_t(random() % 3)});
        else
            seqs.push_back({context, 1});
    }
    const Type type = random() % 2 ? Type::bf16 : Type::f16;
    const uint32_t head_dim = random() % 2 ? 64 : 128;
    return check({"random", type, head_dim, kv_heads * group, kv_heads, seqs, 2.0f}, seed, false);
}

static bool check_all() {
    bool good = true;
    const std::vector<uint32_t> lengths = {1, 2, 15, 16, 17, 63, 64, 65, 1000, 6144, 30721};
    std::vector<Sequence> mixed = {{0, 1}};
    for (uint32_t length : lengths) {
        const std::string name = "length " + std::to_string(length);
        good &= check_types(name.c_str(), 2, 2, {{length, 1}}, 2.0f);
        if (length <= 6144)
            mixed.push_back({length, 1});
        if (length > 60 && length < 70)
            mixed.push_back({length + 40, 3});
        if (length == 16)
            mixed.push_back({0, 0});
    }
    mixed.push_back({0, 1});
    std::vector<Sequence> many, tiny;
    for (uint32_t s = 0; s < 300; s++)
        many.push_back({1 + s * 7919 % 200, 1});
    for (uint32_t s = 0; s < 4096; s++)
        tiny.push_back({s % 5 == 0 ? 0 : 1 + s * 7919 % 40, 1});
    good &= check_types("mixed, padding, prefill rows", 5, 5, mixed, 1.0f);
    good &= check_types("grouped heads, mixed", 8, 2, mixed, 3.0f);
    good &= check({"length 6144, 8 heads", Type::f16, 128, 8, 8, {{6144, 1}}, 2.0f}, 7);
    mixed.insert(mixed.begin() + 4, {30721, 1});
    good &= check({"mixed, one very long", Type::bf16, 128, 3, 3, mixed, 2.0f}, 6);
    good &= check({"300 sequences", Type::bf16, 128, 2, 2, many}, 2);
    good &= check({"4096 sequences", Type::f16, 64, 1, 1, tiny}, 3);
    good &= check({"all padding", Type::bf16, 128, 4, 4, {{0, 1}, {0, 0}, {0, 1}}}, 4);
    for (uint32_t length : {64u, 200u, 500u, 900u, 6144u}) {
        const std::string name = "64 heads, length " + std::to_string(length);
        good &= check({name, Type::bf16, 128, 64, 64, {{length, 1}}, 2.0f}, 5);
    }
    uint32_t passed = 0;
    const uint32_t rounds = 100;
    for (uint64_t seed = 1000; seed < 1000 + rounds; seed++)
        passed += check_random(seed);
    printf("%-4s random batches: %u of %u\n", passed == rounds ? "ok" : "FAIL", passed, rounds);
    return good && passed == rounds;
}

int main(int count, char **words) {
    const std::string mode = count > 2 ? words[2] : "";
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const bool good = mode == "time" || check_all();
    if (mode != "time")
        printf("%s\n", good ? "all checks passed" : "CHECKS FAILED");
    if (good && mode != "check")
        time_all(count > 1 ? words[1] : "decode attention");
    return good ? 0 : 1;
}
