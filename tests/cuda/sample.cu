// sample_tokens against a slow float64 twin on the host that sorts everything, then its times.
// A program by itself: `sample check`, `sample time`, or both with no argument; `sample quick` is a
// short check for the memory checker. It ends with 1 when anything is wrong.
//
// sample_twin.cuh has the twin and says when a token may differ from its; more than one in 200 of
// those is a failure.
#include "../../cuda/sample.cu"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "sample_twin.cuh"

namespace {

constexpr uint32_t FULL = 151851;
constexpr uint32_t FULL_STRIDE = 152064;

void cuda(cudaError_t status, const char *what) {
    if (status == cudaSuccess)
        return;
    std::printf("FAIL %s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
}

// ---- fed rows: the device is given what was seen before the last token, the twin all of it --------

// The entry of `seen` that is taken as the last token: the first in the vocabulary that the reply has.
size_t fed_entry(const Case &c) {
    size_t i = 0;
    while (i < c.seen.size() && (c.seen[i].y == 0 || c.seen[i].x >= c.logits.size()))
        i++;
    return i;
}

// What was seen before the last token, which is `last`. One that came once is not there at all if
// its id is even: the prompt does not have it.
std::vector<uint2> known_before(const Case &c, uint32_t &last) {
    std::vector<uint2> known = c.seen;
    if (c.row.state != ROW_FED)
        return known;
    const size_t at = fed_entry(c);
    last = known[at].x;
    known[at].y--;
    if (known[at].y == 0 && last % 2 == 0)
        known.erase(known.begin() + long(at));
    return known;
}

// ---- the device --------------------------------------------------------------------------------

struct Device {
    uint32_t groups;
    SampleArguments a = {};
    cudaStream_t stream;

    Device(uint32_t max_rows, size_t logits, size_t max_seen) {
        int sms;
        cuda(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0), "no GPU");
        cudaFuncAttributes code;
        cuda(cudaFuncGetAttributes(&code, sample_tokens), "no code for this GPU");
        groups = sampling::num_groups(code.ptxVersion >= 90, uint32_t(sms), max_rows);
        cuda(cudaFuncSetAttribute(sample_tokens, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  sampling::SHARED_BYTES),
             "shared memory");
        cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
        cuda(cudaMalloc(&a.logits, logits * 4), "malloc");
        cuda(cudaMalloc((void **)&a.rows, max_rows * sizeof(SampleRow)), "malloc");
        cuda(cudaMalloc((void **)&a.seen, (max_seen + 1) * 8), "malloc");
        cuda(cudaMalloc(&a.tokens, max_rows * 4), "malloc");
        cuda(cudaMalloc((void **)&a.token_ids, max_rows * 4), "malloc");
        cuda(cudaMalloc((void **)&a.logits_rows, max_rows * 4), "malloc");
        cuda(cudaMalloc(&a.workspace, sampling::workspace_bytes(uint32_t(sms))), "malloc");
        cuda(cudaMemset(a.workspace, 0, sampling::workspace_bytes(uint32_t(sms))), "memset");
        cuda(cudaDeviceSynchronize(), "memset");
    }

    void launch(bool dependent) const {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = sampling::BLOCKS * std::min(groups, a.num_rows);
        config.blockDim = sampling::THREADS;
        config.dynamicSmemBytes = sampling::SHARED_BYTES;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = dependent;
        cuda(cudaLaunchKernelEx(&config, sample_tokens, a), "launch");
    }

    void put(const void *to, const void *from, size_t bytes) const {
        cuda(cudaMemcpyAsync(const_cast<void *>(to), from, bytes, cudaMemcpyDefault, stream),
             "copy");
    }

    // `cases` by row (rows may share one); draws with `uniforms`. Returns the tokens.
    std::vector<uint32_t> run(const std::vector<const Case *> &cases,
                              const std::vector<double> &uniforms, uint32_t stride) {
        std::vector<SampleRow> rows;
        std::vector<uint2> seen;
        std::vector<uint32_t> token_ids(cases.size()), logits_rows(cases.size());
        for (size_t i = 0; i < cases.size(); i++) {
            const Case &c = *cases[i];
            rows.push_back(c.row);
            rows[i].uniform = uniforms[i];
            // Any order will do.
            logits_rows[i] = uint32_t(cases.size() - 1 - i);
            const std::vector<uint2> known = known_before(c, token_ids[logits_rows[i]]);
            rows[i].seen_count = uint32_t(known.size());
            const bool again = i > 0 && cases[i] == cases[i - 1];
            rows[i].seen_start = again ? rows[i - 1].seen_start : uint32_t(seen.size());
            if (!again)
                seen.insert(seen.end(), known.begin(), known.end());
            put(a.logits + i * stride, again ? a.logits + (i - 1) * stride : c.logits.data(),
                c.logits.size() * 4);
        }
        a.num_rows = uint32_t(rows.size());
        a.num_ids = uint32_t(cases[0]->logits.size());
        a.stride = stride;
        std::vector<uint32_t> tokens(rows.size(), CANARY);
        put(a.rows, rows.data(), rows.size() * sizeof(SampleRow));
        put(a.seen, seen.data(), seen.size() * 8);
        put(a.tokens, tokens.data(), rows.size() * 4);
        put(a.token_ids, token_ids.data(), rows.size() * 4);
        put(a.logits_rows, logits_rows.data(), rows.size() * 4);
        launch(false);
        put(tokens.data(), a.tokens, rows.size() * 4);
        cuda(cudaStreamSynchronize(stream), "run");
        return tokens;
    }
};

// ---- cases -------------------------------------------------------------------------------------

SampleRow plain() { return {1, 0, 1, 0, 1, 0, 0, 0, 0, ROW_DRAWN, 0}; }

constexpr const char *KINDS[] = {"normal", "peaked", "flat",  "equal", "ties",   "masked",
                                 "one",    "wide",   "zeros", "bf16",  "extreme"};
constexpr uint32_t NUM_KINDS = 11;

float logit_of(Random &random, uint32_t kind, uint32_t id, uint32_t one) {
    switch (kind) {
    case 1:
        return 2.5f * random.normal() + (id % 5000 == 7 ? 20.0f : 0.0f);
    case 2:
        return 1e-3f * random.normal();
    case 3:
        return -1.25f;
    case 4:
        return float(random.below(8)) - 6;
    case 5:
        return random.below(10) ? -INFINITY : random.normal();
    case 6:
        return id == one ? 0.5f : -INFINITY;
    case 7:
        return 1e4f * random.normal();
    case 8:
        return random.below(2) ? 0.0f : -0.0f;
    case 9: {
        const float x = 2.5f * random.normal();
        return float(int32_t(x * 32)) / 32;
    }
    case 10:
        return random.below(2) ? 3e38f : random.below(2) ? -3e38f : 1e-30f * random.normal();
    default:
        return 2.5f * random.normal();
    }
}

Case make_case(Random &random, uint32_t kind, uint32_t num_ids) {
    Case c;
    const uint32_t one = random.below(num_ids);
    for (uint32_t id = 0; id < num_ids; id++)
        c.logits.push_back(logit_of(random, kind, id, one));
    c.row = plain();
    c.row.temperature =
        random.pick<float>({0, 1, 1, 1, 0.7f, 0.05f, 3, 1e-30f, 1e30f, 1e-44f, 3e38f});
    c.row.top_k = random.pick<uint32_t>({0, 0, 0, 1, 5, 50, num_ids - 1, num_ids, 1u << 30});
    c.row.top_p = random.pick<float>({1, 1, 0.8f, 0.8f, 1e-9f, 0.1f, 0.999f, 0.99999994f});
    c.row.min_p = random.pick<float>({0, 0, 0, 0.01f, 0.3f, 1});
    if (random.below(2)) {
        c.row.repetition = random.pick<float>({1, 1.1f, 1.1f, 0.5f, 2});
        c.row.presence = random.pick<float>({0, 0, 0.5f, -1});
        c.row.frequency = random.pick<float>({0, 0, 0.1f, -0.2f});
        const uint32_t step = random.pick<uint32_t>({1, 3, num_ids / 20 + 1});
        for (uint32_t id = random.below(step), n = 0; id < num_ids + 5 && n < 3000; id += step, n++)
            c.seen.push_back({id, random.below(3) ? 0 : 1 + random.below(4)});
        c.seen.push_back({0xfffffff0u, 2});
        c.seen.push_back({1u << 31, 0});
        if (fed_entry(c) < c.seen.size() && random.below(2))
            c.row.state = ROW_FED;
    }
    if (random.below(40) == 0)
        c.logits[one] = random.pick<float>({NAN, -NAN, INFINITY, -INFINITY});
    return c;
}

struct Tally {
    uint64_t same = 0, excused = 0, wrong = 0;

    void add(Verdict verdict) {
        (verdict == Verdict::same ? same : verdict == Verdict::excused ? excused : wrong)++;
    }
    bool report(const std::string &name) const {
        const bool ok = wrong == 0 && excused <= 2 + (same + excused) / 200;
        std::printf("%s %-34s %9llu same %6llu excused %6llu wrong\n", ok ? "ok  " : "FAIL",
                    name.c_str(), (unsigned long long)same, (unsigned long long)excused,
                    (unsigned long long)wrong);
        return ok;
    }
};

void judge(Tally &tally, const Twin &twin, const Case &c, uint32_t token, double uniform) {
    const Verdict verdict = twin.judge(token, uniform);
    tally.add(verdict);
    if (verdict != Verdict::wrong || tally.wrong > 3)
        return;
    const SampleRow &p = c.row;
    std::printf(
        "     wrong: token %u, u %.17g, ids %zu, T %g k %u p %.9g min_p %g r %g %g %g seen %zu,"
        " fixed %x",
        token, uniform, c.logits.size(), p.temperature, p.top_k, p.top_p, p.min_p, p.repetition,
        p.presence, p.frequency, c.seen.size(), twin.fixed_token);
    if (token < twin.before.size())
        std::printf(", kept %d doubtful %d x %.9g interval %.12g + %.9g, target %.12g, bound %.3g",
                    twin.kept[token], twin.doubtful[token], twin.x[token], twin.before[token],
                    twin.weight[token], uniform * twin.total, twin.bound);
    std::printf("\n");
}

// ---- checks ------------------------------------------------------------------------------------

// One case a launch, drawn with many numbers: the ends, the middle, and random ones.
bool check_kind(Device &device, uint32_t kind, uint32_t num_ids, uint32_t stride, uint32_t cases) {
    Random random = {kind * 1000003ull + num_ids};
    Tally tally;
    for (uint32_t n = 0; n < cases; n++) {
        const Case c = make_case(random, kind, num_ids);
        const Twin twin(c);
        std::vector<double> uniforms = {0, 0.5, 1 - 0x1p-53};
        while (uniforms.size() < 24)
            uniforms.push_back(random.uniform());
        const std::vector<const Case *> rows(uniforms.size(), &c);
        const std::vector<uint32_t> tokens = device.run(rows, uniforms, stride);
        for (size_t i = 0; i < tokens.size(); i++)
            judge(tally, twin, c, tokens[i], uniforms[i]);
    }
    return tally.report(std::string(KINDS[kind]) + ", " + std::to_string(num_ids) + " ids");
}

// 64 rows of all kinds, some of them padding: right, the same again, and the same alone.
bool check_mixed(Device &device, uint32_t num_ids, uint32_t stride, uint32_t batches) {
    Random random = {num_ids};
    Tally tally;
    for (uint32_t batch = 0; batch < batches; batch++) {
        std::vector<Case> cases;
        std::vector<double> uniforms;
        std::vector<const Case *> rows;
        for (uint32_t i = 0; i < 64; i++) {
            cases.push_back(make_case(random, random.below(NUM_KINDS), num_ids));
            if (random.below(5) == 0)
                cases[i].row.state = ROW_PADDING;
            uniforms.push_back(random.uniform());
        }
        for (const Case &c : cases)
            rows.push_back(&c);
        const std::vector<uint32_t> tokens = device.run(rows, uniforms, stride);
        const std::vector<uint32_t> again = device.run(rows, uniforms, stride);
        for (uint32_t i = 0; i < 64; i++) {
            const uint32_t alone = device.run({rows[i]}, {uniforms[i]}, stride)[0];
            if (again[i] != tokens[i] || alone != tokens[i])
                tally.add(Verdict::wrong);
            if (cases[i].row.state != ROW_PADDING)
                judge(tally, Twin(cases[i]), cases[i], tokens[i], uniforms[i]);
            else
                tally.add(tokens[i] == CANARY ? Verdict::same : Verdict::wrong);
        }
    }
    return tally.report("mixed rows, again, alone, " + std::to_string(num_ids) + " ids");
}

// Drawn frequencies against the twin's probabilities, 4096 rows a launch.
bool check_frequencies(Device &device) {
    constexpr uint32_t IDS = 24, ROWS = 4096, LAUNCHES = 16;
    Random random = {99};
    Case c = make_case(random, 0, IDS);
    c.row = plain();
    c.row.temperature = 2;
    c.row.top_p = 0.95f;
    c.seen.clear();
    const Twin twin(c);
    std::vector<double> counts(IDS);
    for (uint32_t n = 0; n < LAUNCHES; n++) {
        std::vector<double> uniforms;
        while (uniforms.size() < ROWS)
            uniforms.push_back(random.uniform());
        for (uint32_t token : device.run(std::vector<const Case *>(ROWS, &c), uniforms, IDS + 1))
            counts[token < IDS ? token : 0]++;
    }
    double chi_square = 0;
    uint32_t kept = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        const double mean = twin.kept[id] ? twin.weight[id] / twin.total * ROWS * LAUNCHES : 0;
        chi_square +=
            mean > 0 ? (counts[id] - mean) * (counts[id] - mean) / mean : counts[id] * 1e9;
        kept += twin.kept[id];
    }
    // Over the mean by 4 deviations: once in 10,000; the seed is fixed, so always or never.
    const double limit = kept - 1 + 4 * std::sqrt(2.0 * (kept - 1));
    const bool ok = chi_square < limit && kept > 5;
    std::printf("%s frequencies: chi-square %.1f of %u kept ids, limit %.1f\n",
                ok ? "ok  " : "FAIL", chi_square, kept, limit);
    return ok;
}

bool check_all(bool quick) {
    Device device(4096, 64ull * 200001, 64 * 3010);
    bool ok = true;
    const std::vector<uint32_t> sizes = {1, 2, 7, 33, 100, 1000, 8191, 8192, 20003, FULL, 200000};
    for (uint32_t num_ids : sizes)
        for (uint32_t kind = 0; kind < NUM_KINDS; kind++) {
            const bool odd = num_ids % 2 == 1 && num_ids != FULL;
            const uint32_t stride = num_ids == FULL ? FULL_STRIDE : odd ? num_ids + 2 : num_ids;
            const uint32_t cases = quick ? 2 : num_ids < 5000 ? 60 : num_ids < 100000 ? 12 : 6;
            if (!quick || num_ids == 33 || num_ids == 20003)
                ok &= check_kind(device, kind, num_ids, stride, cases);
        }
    ok &= check_mixed(device, 1501, 1504, quick ? 1 : 12);
    if (!quick)
        ok &= check_mixed(device, FULL, FULL_STRIDE, 1);
    return check_frequencies(device) && ok;
}

} // namespace

#include "sample_time.cuh"

int main(int argc, char **argv) {
    const std::string what = argc > 1 ? argv[1] : "all";
    bool ok = true;
    if (what != "time")
        ok = check_all(what == "quick");
    if (what == "time" || what == "all")
        time_all();
    std::printf("%s\n", ok ? "all right" : "FAIL");
    return ok ? 0 : 1;
}
