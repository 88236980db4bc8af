// The Hopper instructions behind the prefill attention kernel, each as a small function:
// shared-memory barriers, the copy engine's boxes, and the matrix units' asynchronous products.
// sm_90a only.
#pragma once

#include "common.cuh"

#include <cuda.h>
#include <type_traits>

namespace qwen::hopper {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int SWIZZLED_ROW_BYTES = 128; // a swizzled row: 64 elements

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(uint64_t &barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
                 "r"(arrivals));
}
__device__ __forceinline__ void barrier_arrive(uint64_t &barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// Arrives and announces the bytes that TMA will count down on the barrier.
__device__ __forceinline__ void barrier_expect(uint64_t &barrier, uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
        "r"(bytes)
        : "memory");
}
// Blocks until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(uint64_t &barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(&barrier)),
                 "r"(parity)
                 : "memory");
}

// True in one lane of a whole warp. Unlike a test of the lane's number it tells the compiler that
// one thread is left, so that copies are issued one after the other without a loop over lanes.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(elected));
    return elected;
}

// One box of a two-dimensional tensor map into shared memory, counted on a barrier.
__device__ __forceinline__ void load_box(uint32_t shared, const CUtensorMap *map, int x, int y,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void load_box(void *shared, const CUtensorMap *map, int x, int y,
                                         uint64_t &barrier) {
    load_box(shared_address(shared), map, x, y, shared_address(&barrier));
}

// Barriers among some warps of a block, by number (0 is __syncthreads'): wait for `threads` threads
// to come, or come without waiting.
__device__ __forceinline__ void named_barrier_sync(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Registers that wgmma reads or writes must be settled before it starts...
__device__ __forceinline__ void mma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void mma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// ...and are only good again once at most PENDING committed groups are still running.
template <int PENDING> __device__ __forceinline__ void mma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Matrix descriptor of a 128-byte-swizzled tile: address, distance between 64-element column
// halves (used where the contiguous dimension is not the summed one), between groups of 8 rows.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t half_stride) {
    return uint64_t(address >> 4 & 0x3FFF) | uint64_t(half_stride >> 4) << 16 |
           uint64_t(8 * SWIZZLED_ROW_BYTES >> 4) << 32 | uint64_t(1) << 62;
}

#define ACC8(c, i)                                                                                 \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),    \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define ACC32(c, i) ACC8(c, i), ACC8(c, i + 8), ACC8(c, i + 16), ACC8(c, i + 24)
#define NAMES32                                                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64                                                                                    \
    NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// c (+)= a b^T, 64 x 128 x 16, both operands in shared memory, rows of the summed dimension.
template <typename T, bool ACCUMULATE>
__device__ __forceinline__ void mma_shared(float (&c)[64], uint64_t a, uint64_t b) {
#define MMA_SHARED(TYPES)                                                                          \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"                    \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES " {" NAMES64                 \
                 "}, %64, %65, accumulate, 1, 1, 0, 0;\n}"                                         \
                 : ACC32(c, 0), ACC32(c, 32)                                                       \
                 : "l"(a), "l"(b), "n"(int(ACCUMULATE)))
    if constexpr (std::is_same<T, f16>::value)
        MMA_SHARED("f16.f16");
    else
        MMA_SHARED("bf16.bf16");
#undef MMA_SHARED
}

// c += a b, 64 x N x 16, a in registers, b in shared memory with its N columns contiguous.
template <typename T>
__device__ __forceinline__ void mma_registers(float (&c)[64], const uint32_t *a, uint64_t b) {
#define MMA_REGISTERS(TYPES)                                                                       \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, 1, 0;\n"                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES " {" NAMES64                 \
                 "}, {%64, %65, %66, %67}, %68, accumulate, 1, 1, 1;\n}"                           \
                 : ACC32(c, 0), ACC32(c, 32)                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
    if constexpr (std::is_same<T, f16>::value)
        MMA_REGISTERS("f16.f16");
    else
        MMA_REGISTERS("bf16.bf16");
#undef MMA_REGISTERS
}
template <typename T>
__device__ __forceinline__ void mma_registers(float (&c)[32], const uint32_t *a, uint64_t b) {
#define MMA_REGISTERS(TYPES)                                                                       \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, 1, 0;\n"                      \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPES " {" NAMES32                  \
                 "}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, 1;\n}"                           \
                 : ACC32(c, 0)                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
    if constexpr (std::is_same<T, f16>::value)
        MMA_REGISTERS("f16.f16");
    else
        MMA_REGISTERS("bf16.bf16");
#undef MMA_REGISTERS
}
#undef ACC8
#undef ACC32
#undef NAMES32
#undef NAMES64

#endif // __CUDA_ARCH_FEAT_SM90_ALL

} // namespace qwen::hopper
