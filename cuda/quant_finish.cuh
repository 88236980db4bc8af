// How the quantised linear finishes tiles: the epilogues of linear_arguments.cuh. No kernels here.
#pragma once

#include "quant_operand.cuh"

namespace quant {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// What a lane finishes of 16 outputs and eight rows: outputs n and n + 8 of rows `row` and `row`
// + 1.
struct Item {
    uint32_t n, row;
    // Of block `i` of some tiles that begin at output `first`.
    template <int NT> __device__ static Item number(uint32_t first, uint32_t i) {
        const uint32_t lane = threadIdx.x % 32;
        return {first + i / NT * 16 + lane / 4, i % NT * 8 + lane % 4 * 2};
    }
    // The four: (n, row), (n, row + 1), (n + 8, row), (n + 8, row + 1).
    __device__ uint32_t output(int i) const { return n + i / 2 * 8; }
    __device__ uint32_t row_of(int i) const { return row + i % 2; }
    __device__ bool is_there(const Arguments &a, int i) const {
        return output(i) < a.n && row_of(i) < a.rows;
    }
    __device__ uint64_t at(const Arguments &a, int i) const {
        return uint64_t(row_of(i)) * a.n + output(i);
    }
};

// What the epilogue adds and multiplies by; may be loaded while the weights still come.
struct Ahead {
    float stream[4], gain[2];
    uint32_t call; // of SEND

    __device__ void load(const Arguments &a, const Item &item) {
        call = next_call(a);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool adds = a.epilogue == ADD_F32 || a.epilogue == ADD_NORM;
            stream[i] = adds && item.is_there(a, i)
                            ? __ldcg(static_cast<const float *>(a.out) + item.at(a, i))
                            : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            gain[i] = a.epilogue == ADD_NORM && item.output(2 * i) < a.n
                          ? __ldg(a.gain + item.output(2 * i))
                          : 0.0f;
    }
};

__device__ inline void finish_gate_up(const Arguments &a, const Item &item, const float (&y)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (item.is_there(a, i)) {
            const uint64_t at = uint64_t(item.row_of(i)) * (a.n / 2) + item.n / 16 * 8 + item.n % 8;
            static_cast<__half *>(a.out)[at] = __float2half_rn(gated(y[i], y[i + 2]));
        }
}

// A warp finishes 16 outputs of eight rows.
__device__ inline void finish(const Arguments &a, const Item &item, float (&y)[4],
                              const Ahead &ahead) {
    if (a.epilogue == GATE_UP)
        return finish_gate_up(a, item, y);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const bool is_there = item.is_there(a, i);
        const uint64_t at = item.at(a, i);
        if (a.bias && is_there)
            y[i] += __ldg(a.bias + item.output(i));
        y[i] = is_there ? y[i] + ahead.stream[i] : 0.0f;
        if (!is_there)
            continue;
        if (a.epilogue == BIAS)
            static_cast<__half *>(a.out)[at] = __float2half_rn(y[i]);
        else
            static_cast<float *>(a.out)[at] = y[i];
        if (a.epilogue == SEND)
            send(a, ahead.call, {y[i]}, at);
        if (a.epilogue == ADD_NORM)
            static_cast<__half *>(a.weighted)[at] =
                __float2half_rn(weigh<__half>(y[i], ahead.gain[i / 2]));
    }
    if (a.epilogue != ADD_NORM)
        return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float sum = y[i] * y[i];
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
            sum += __shfl_xor_sync(~0u, sum, lanes);
        if (threadIdx.x % 32 < 4 && item.row_of(i) < a.rows && item.n < a.n)
            a.squares[squares_at(item.row_of(i), item.n, a.n) + i / 2] = sum;
    }
}

#endif

} // namespace quant
