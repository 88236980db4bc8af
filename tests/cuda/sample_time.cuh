// The times of sample_tokens, a part of sample.cu: graphs of (logits written, tokens sampled), less
// graphs of the writing alone, so that the logits are where a matrix product would leave them.
#pragma once

namespace {

constexpr uint32_t REPEATS = 20;

__global__ void write_logits(float4 *to, const float4 *from, size_t count) {
    wait_for_predecessor();
    release_successor();
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
         i += gridDim.x * size_t(blockDim.x))
        to[i] = from[i];
}

struct Timer {
    const Device &device;
    const float *pristine;

    void write(bool dependent) const {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = 264;
        config.blockDim = 512;
        config.stream = device.stream;
        config.attrs = &attribute;
        config.numAttrs = dependent;
        cuda(cudaLaunchKernelEx(&config, write_logits, (float4 *)device.a.logits,
                                (const float4 *)pristine,
                                size_t(device.a.num_rows) * device.a.stride / 4),
             "write");
    }

    // Microseconds of one repetition, the median of 15 replays.
    double graph_us(bool write_too, bool sample_too, bool dependent) const {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        cudaEvent_t start, end;
        cuda(cudaEventCreate(&start), "event");
        cuda(cudaEventCreate(&end), "event");
        cuda(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeGlobal), "capture");
        for (uint32_t n = 0; n < REPEATS; n++) {
            if (write_too)
                write(dependent);
            if (sample_too)
                device.launch(dependent);
        }
        cuda(cudaStreamEndCapture(device.stream, &graph), "capture");
        cuda(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
        std::vector<double> times;
        for (uint32_t n = 0; n < 18; n++) {
            float ms;
            cuda(cudaEventRecord(start, device.stream), "record");
            cuda(cudaGraphLaunch(exec, device.stream), "graph");
            cuda(cudaEventRecord(end, device.stream), "record");
            cuda(cudaStreamSynchronize(device.stream), "replay");
            cuda(cudaEventElapsedTime(&ms, start, end), "elapsed");
            if (n >= 3)
                times.push_back(ms * 1e3 / REPEATS);
        }
        std::sort(times.begin(), times.end());
        cuda(cudaGraphExecDestroy(exec), "destroy");
        cuda(cudaGraphDestroy(graph), "destroy");
        return times[times.size() / 2];
    }
};

struct Workload {
    const char *name;
    uint32_t kind;
    std::function<void(SampleRow &, uint32_t)> set;
};

std::vector<Workload> workloads() {
    return {
        {"greedy", 1, [](SampleRow &p, uint32_t) { p.temperature = 0; }},
        {"greedy, penalty", 1,
         [](SampleRow &p, uint32_t) { p.temperature = 0, p.repetition = 1.1f; }},
        {"T 1", 1, [](SampleRow &, uint32_t) {}},
        {"top_p 0.8", 1, [](SampleRow &p, uint32_t) { p.top_p = 0.8f; }},
        {"top_p 0.8, penalty", 1,
         [](SampleRow &p, uint32_t) { p.top_p = 0.8f, p.repetition = 1.1f; }},
        {"top_k 50, top_p 0.8, penalty", 1,
         [](SampleRow &p, uint32_t) { p.top_k = 50, p.top_p = 0.8f, p.repetition = 1.1f; }},
        {"bell: top_p 0.8, penalty", 0,
         [](SampleRow &p, uint32_t) { p.top_p = 0.8f, p.repetition = 1.1f; }},
        {"bell: top_k 50", 0, [](SampleRow &p, uint32_t) { p.top_k = 50; }},
        {"flat: top_p 0.8", 2, [](SampleRow &p, uint32_t) { p.top_p = 0.8f; }},
        {"ties: top_k 50, top_p 0.8", 4,
         [](SampleRow &p, uint32_t) { p.top_k = 50, p.top_p = 0.8f; }},
        {"all rows padding", 1, [](SampleRow &p, uint32_t) { p.state = ROW_PADDING; }},
        {"one row, the others padding", 1,
         [](SampleRow &p, uint32_t row) { p.state = row == 0 ? ROW_DRAWN : ROW_PADDING, p.top_p = 0.8f; }},
    };
}

void time_workload(Device &device, float *pristine, const Workload &work, uint32_t num_rows) {
    Random random = {7};
    std::vector<Case> cases(num_rows);
    std::vector<const Case *> rows;
    std::vector<double> uniforms;
    std::vector<float> logits(FULL);
    for (uint32_t id = 0; id < FULL; id++)
        logits[id] = logit_of(random, work.kind, id, 0);
    for (uint32_t i = 0; i < num_rows; i++) {
        std::rotate(logits.begin(), logits.begin() + 1 + random.below(1000), logits.end());
        cases[i].logits = logits;
        cases[i].row = plain();
        work.set(cases[i].row, i);
        for (uint32_t id = 0; id < 2000; id++)
            cases[i].seen.push_back({id * 75, id % 3});
        rows.push_back(&cases[i]);
        uniforms.push_back(random.uniform());
    }
    device.run(rows, uniforms, FULL_STRIDE);
    cuda(cudaMemcpy(pristine, device.a.logits, size_t(num_rows) * FULL_STRIDE * 4,
                    cudaMemcpyDefault),
         "copy");
    const Timer timer = {device, pristine};
    const double plain_us = timer.graph_us(true, true, false) - timer.graph_us(true, false, false);
    const double dependent_us =
        timer.graph_us(true, true, true) - timer.graph_us(true, false, true);
    const double alone_us = timer.graph_us(false, true, false);
    std::printf("%-32s %4u rows  %8.2f  %8.2f  %8.2f\n", work.name, num_rows, plain_us,
                dependent_us, alone_us);
}

void time_all() {
    Device device(64, 64ull * FULL_STRIDE, 64 * 2000);
    float *pristine;
    cuda(cudaMalloc(&pristine, 64ull * FULL_STRIDE * 4), "malloc");
    std::printf(
        "us in a graph, less the writing of the logits: without and with dependent launch; and\n"
        "back to back without the writing\n");
    for (uint32_t num_rows : {1u, 8u, 64u})
        for (const Workload &work : workloads())
            time_workload(device, pristine, work, num_rows);
}

} // namespace
