// The bits that random weights are made of, the same as src/backend/random.rs has. No kernels here.
#pragma once

#include <cstdint>

namespace qwen {

// The finaliser of SplitMix64: every bit of the result depends on every bit of `z`.
__device__ __forceinline__ uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Number `index` of those that `seed` stands for.
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t index) {
    return mix(seed + (index + 1) * 0x9e3779b97f4a7c15ull);
}

} // namespace qwen
