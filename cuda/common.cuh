// What every kernel file shares: element types, 16-byte vectors of them, reductions, and the two
// instructions of programmatic dependent launch. No kernels here.
//
// Element types T: __nv_bfloat16 ("bf16") and __half ("f16"); arithmetic is always f32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

namespace qwen {

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }

// To nearest, ties to even.
template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) { return __float2half_rn(x); }

// Eight elements, moved as one 16-byte access.
template <typename T> struct alignas(16) Vec8 {
    T at[8];
};
static_assert(sizeof(Vec8<bf16>) == 16 && sizeof(Vec8<f16>) == 16, "one access");

// Blocks until all kernels this one was launched behind have finished and their writes are seen.
// Without the launch attribute, and before Hopper, that is already so at the start.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start while this one still runs. They wait, in
// wait_for_predecessor, for its end; what they do before is independent of it.
__device__ __forceinline__ void release_successor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Sum over a warp; every lane gets it, always added in the same order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// Sum over a block of THREADS threads; every thread gets it. `scratch` holds THREADS / 32 floats.
template <int THREADS> __device__ __forceinline__ float block_sum(float x, float *scratch) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++)
        sum += scratch[warp];
    return sum;
}

} // namespace qwen
