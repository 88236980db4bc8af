// The timings of the decode attention harness: graphs of many launches over the caches of many
// layers, more than the L2 holds, as fractions of the streaming read of the same run.
#pragma once

#include "decode_problem.cuh"

#include <memory>

// Values near N(0, 1) from a hash of the index: sums of four uniform numbers.
__global__ void fill_random(__nv_bfloat16 *to, size_t count, uint32_t seed) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
         i += size_t(gridDim.x) * blockDim.x) {
        uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ x >> 27) * 0x94d049bb133111ebull;
        x ^= x >> 31;
        float sum = -2.0f;
        for (int j = 0; j < 4; j++)
            sum += float(x >> (16 * j) & 0xffff) / 65536.0f;
        to[i] = __float2bfloat16(sum * 1.732f);
    }
}

// Reads a buffer as fast as the card can: the ceiling, and the weight-bound kernel that precedes
// attention in a decode step. Triggers its dependents at once.
__global__ void __launch_bounds__(512) stream_read(const uint4 *from, size_t count, uint32_t *out) {
    qwen::release_successor();
    uint32_t folded = 0;
    const size_t stride = size_t(gridDim.x) * 512;
    size_t i = blockIdx.x * size_t(512) + threadIdx.x;
    for (; i + 7 * stride < count; i += 8 * stride) {
        uint4 x[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            x[j] = __ldcs(from + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++)
            folded ^= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
    }
    for (; i < count; i += stride)
        folded ^= from[i].x;
    qwen::wait_for_predecessor();
    if (folded == 0x12345678)
        *out = folded;
}

struct Timing {
    double median_us, spread_us;
};

// Microseconds a launch: graphs of `launches` calls of `enqueue`, replayed.
static Timing time_graph(int launches, const std::function<void(cudaStream_t, int)> &enqueue) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cudaEvent_t start, stop;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; i++)
        enqueue(stream, i);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<double> times;
    for (int round = 0; round < 14; round++) {
        CUDA(cudaEventRecord(start, stream));
        CUDA(cudaGraphLaunch(executable, stream));
        CUDA(cudaEventRecord(stop, stream));
        CUDA(cudaStreamSynchronize(stream));
        float ms;
        CUDA(cudaEventElapsedTime(&ms, start, stop));
        if (round >= 3)
            times.push_back(ms * 1000.0 / launches);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
    return {times[times.size() / 2], times[times.size() - 2] - times[1]};
}

static const uint4 *arena; // random values that every timing reads
static size_t arena_bytes;
static uint32_t *sink;

static double stream_rate() {
    double best = 0;
    for (uint32_t blocks_per_sm : {2u, 3u, 4u}) {
        const size_t bytes = size_t(4) << 30;
        const Timing t = time_graph(4, [&](cudaStream_t stream, int) {
            stream_read<<<multiprocessors() * blocks_per_sm, 512, 0, stream>>>(arena, bytes / 16,
                                                                               sink);
        });
        best = std::max(best, bytes / t.median_us / 1e6);
    }
    return best;
}

// A batch of decoding sequences, 128 dimensions a head, with a cache of its own for every launch.
class Batch {
    static constexpr uint32_t D = 128;
    uint32_t seqs, heads, pages = 0, max_pages = 1;
    size_t tokens = 0;
    std::vector<uint32_t> cu_seqlens, table;
    std::vector<int32_t> slots;

  public:
    Batch(uint32_t heads_, const std::vector<uint32_t> &contexts)
        : seqs(uint32_t(contexts.size())), heads(heads_), cu_seqlens(seqs + 1), slots(seqs) {
        std::iota(cu_seqlens.begin(), cu_seqlens.end(), 0u);
        for (uint32_t n : contexts) {
            tokens += n;
            pages += (n + 15) / 16;
            max_pages = std::max(max_pages, (n + 15) / 16);
        }
        std::vector<uint32_t> order(pages);
        std::iota(order.begin(), order.end(), 0u);
        std::shuffle(order.begin(), order.end(), std::mt19937(7));
        table.assign(size_t(seqs) * max_pages, 0);
        for (uint32_t s = 0, next = 0; s < seqs; s++) {
            for (uint32_t p = 0; p < (contexts[s] + 15) / 16; p++)
                table[s * max_pages + p] = order[next++];
            const uint32_t last = contexts[s] - 1;
            slots[s] = int32_t(table[s * max_pages + last / 16] * 16 + last % 16);
        }
        upload(contexts);
    }

    double kv_bytes() const { return double(tokens) * 2 * heads * D * 2; }
    size_t layer_bytes() const { return size_t(pages) * 2 * heads * 16 * D * 2; }

    void enqueue(cudaStream_t stream, int i, bool dependent) const {
        const size_t layers = std::min<size_t>(arena_bytes / layer_bytes(), 400);
        char *layer = (char *)arena + size_t(i) % layers * layer_bytes();
        launch_decode({attended->pointer, qkv->pointer, layer, cosines->pointer, sines->pointer,
                       scale->pointer, cu->pointer, lens->pointer, block_table->pointer,
                       slot_numbers->pointer, workspace->pointer, seqs, max_pages, heads, heads},
                      Type::bf16, D, stream, dependent);
    }

  private:
    std::unique_ptr<Buffer<uint16_t>> qkv, attended;
    std::unique_ptr<Buffer<float>> cosines, sines, scale;
    std::unique_ptr<Buffer<uint32_t>> cu, lens, block_table;
    std::unique_ptr<Buffer<int32_t>> slot_numbers;
    std::unique_ptr<Buffer<unsigned char>> workspace;

    void upload(const std::vector<uint32_t> &contexts) {
        using Floats = std::vector<float>;
        qkv = std::make_unique<Buffer<uint16_t>>(size_t(seqs) * 3 * heads * D);
        attended = std::make_unique<Buffer<uint16_t>>(size_t(seqs) * heads * D);
        fill_random<<<256, 256>>>((__nv_bfloat16 *)qkv->pointer, qkv->count, 3);
        cosines = std::make_unique<Buffer<float>>(Floats(seqs * D / 2, 0.8f));
        sines = std::make_unique<Buffer<float>>(Floats(seqs * D / 2, 0.6f));
        scale = std::make_unique<Buffer<float>>(Floats(seqs, 1.0f));
        cu = std::make_unique<Buffer<uint32_t>>(cu_seqlens);
        lens = std::make_unique<Buffer<uint32_t>>(contexts);
        block_table = std::make_unique<Buffer<uint32_t>>(table);
        slot_numbers = std::make_unique<Buffer<int32_t>>(slots);
        const size_t bytes = decode_attention::workspace_bytes(num_blocks(), D);
        workspace = std::make_unique<Buffer<unsigned char>>(bytes);
        CUDA(cudaMemset(workspace->pointer, 0, bytes));
    }
};

// A kernel that reads 64 MB of weights, as there is one before attention in a decode step.
static void read_weights(cudaStream_t stream, int i) {
    const size_t bytes = size_t(64) << 20;
    const uint4 *from = arena + size_t(i) * 37 % (arena_bytes / bytes) * (bytes / 16);
    size_t count = bytes / 16;
    void *pointers[] = {&from, &count, &sink};
    launch((const void *)stream_read, multiprocessors() * 2, 512, 0, pointers, stream, true);
}

// Alone and one after the other, without and with dependent launch; and what it adds to a chain of
// kernels that read weights.
static void time_case(const char *name, uint32_t heads, const std::vector<uint32_t> &contexts,
                      double rate) {
    const Batch batch(heads, contexts);
    const size_t enough = (size_t(12) << 30) / batch.layer_bytes();
    const int launches = int(std::max<size_t>(16, std::min<size_t>(160, enough)));
    const int pairs = std::min(launches, 40);
    const Timing plain =
        time_graph(launches, [&](cudaStream_t stream, int i) { batch.enqueue(stream, i, false); });
    const Timing dependent =
        time_graph(launches, [&](cudaStream_t stream, int i) { batch.enqueue(stream, i, true); });
    const Timing weights = time_graph(pairs, read_weights);
    const Timing both = time_graph(pairs, [&](cudaStream_t stream, int i) {
        read_weights(stream, i);
        batch.enqueue(stream, i, true);
    });
    printf("%-26s", name);
    const double spread = plain.spread_us, chain = both.median_us - weights.median_us;
    const char *labels[] = {"plain", "| dependent", "| in a chain"};
    const double times[] = {plain.median_us, dependent.median_us, chain};
    for (int i = 0; i < 3; i++) {
        const double terabytes = batch.kv_bytes() / times[i] / 1e6;
        printf(" %s %8.2f us %5.3f TB/s %5.1f %%", labels[i], times[i], terabytes,
               100 * terabytes / rate);
    }
    printf(" | spread %.2f us\n", spread);
}

static void time_all(const char *label) {
    arena_bytes = size_t(8) << 30;
    CUDA(cudaMalloc((void **)&arena, arena_bytes));
    CUDA(cudaMalloc(&sink, 4));
    fill_random<<<4096, 256>>>((__nv_bfloat16 *)arena, arena_bytes / 2, 11);
    const double rate = stream_rate();
    cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, 0));
    printf("%s on %s: streaming read %.3f TB/s; warps %u, stages %u, blocks per SM %u\n", label,
           properties.name, rate, decode_attention::WARPS, decode_attention::STAGES,
           decode_attention::BLOCKS_PER_SM);
    time_case("1 x 1", 64, {1}, rate);
    time_case("1 x 16", 64, {16}, rate);
    time_case("1 x 64", 64, {64}, rate);
    time_case("1 x 256", 64, {256}, rate);
    time_case("1 x 1024", 64, {1024}, rate);
    time_case("1 x 6144", 64, {6144}, rate);
    time_case("1 x 30720", 64, {30720}, rate);
    time_case("8 x 6144", 64, std::vector<uint32_t>(8, 6144), rate);
    time_case("64 x 100", 64, std::vector<uint32_t>(64, 100), rate);
    time_case("64 x 512", 64, std::vector<uint32_t>(64, 512), rate);
    time_case("30720, 7 x 64, 2 x 1000", 64, {30720, 64, 64, 64, 64, 64, 64, 64, 1000, 1000}, rate);
    time_case("32 heads, 1 x 6144", 32, {6144}, rate);
    time_case("8 heads, 1 x 6144", 8, {6144}, rate);
}
