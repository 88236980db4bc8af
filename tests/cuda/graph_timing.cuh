// What timing harnesses share: a streaming read, a stand-in for a small kernel, and graphs timed by the
// device's clock. Needs CHECK.
#pragma once

template <int U>
__global__ void __launch_bounds__(512) stream(const uint4 *p, size_t n, uint32_t *out) {
    size_t stride = (size_t)gridDim.x * blockDim.x,
           i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    uint32_t a = 0;
    uint4 v[U];
    for (; i + (U - 1) * stride < n; i += U * stride) {
#pragma unroll
        for (int u = 0; u < U; u++)
            v[u] = __ldcs(p + i + u * stride);
#pragma unroll
        for (int u = 0; u < U; u++)
            a ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    if (a == 0x12345u)
        atomicXor(out, a);
}

// Stands for a norm or an attention step: a block a row reads its predecessor's output, writes x.
__global__ void small(const uint4 *from, uint4 *to, uint32_t words) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    from += blockIdx.x * words, to += blockIdx.x * words;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) {
        uint4 v = to[i];
        v.x = (v.x & ~1u) | (from[i].x >> 31);
        to[i] = v;
    }
}

template <typename F> float graph_ms(F &&record, int repeats) {
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamCreate(&s));
    CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    record(s);
    CHECK(cudaStreamEndCapture(s, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    cudaEvent_t a, b;
    CHECK(cudaEventCreate(&a)), CHECK(cudaEventCreate(&b));
    for (int i = 0; i < repeats + 2; i++) {
        CHECK(cudaEventRecord(a, s)), CHECK(cudaGraphLaunch(exec, s)), CHECK(cudaEventRecord(b, s));
        CHECK(cudaStreamSynchronize(s));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2)
            times.push_back(ms);
    }
    CHECK(cudaGraphExecDestroy(exec)), CHECK(cudaGraphDestroy(graph)), CHECK(cudaStreamDestroy(s));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}
