// Tensor maps for the harnesses: how the copy engine finds the boxes of a matrix. Expects CHECK.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda.h>

using EncodeTiled = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A matrix of 16-bit elements read in boxes of 64 columns, 128-byte swizzled.
static CUtensorMap matrix_map(const void *base, uint64_t columns, uint64_t rows, uint32_t box_rows,
                              bool f16) {
    static EncodeTiled encode = nullptr;
    if (!encode) {
        cudaDriverEntryPointQueryResult found;
        CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                               cudaEnableDefault, &found));
        if (found != cudaDriverEntryPointSuccess)
            printf("no cuTensorMapEncodeTiled\n"), exit(1);
    }
    CUtensorMap map;
    const cuuint64_t sizes[2] = {columns, rows}, strides[1] = {columns * 2};
    const cuuint32_t box[2] = {64, box_rows}, steps[2] = {1, 1};
    const CUresult result =
        encode(&map, f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
               const_cast<void *>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        printf("cuTensorMapEncodeTiled: %d\n", int(result)), exit(1);
    return map;
}
