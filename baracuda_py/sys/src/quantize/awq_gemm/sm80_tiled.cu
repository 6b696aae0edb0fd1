// awq_gemm for TILED weights, any m; oc % 8 == 0, ic % 32 == 0.
//
// grid (ceil(oc / channels) * n, k) with n * k >= ceil(m / tokens), 32 * warps threads, warps * ring bytes of dynamic
// shared memory. An entry's name has its channels (c), tokens (t) and groups of a block of 128 input channels (g). A ring
// is `stages` times channels / 32 * (2048 + 80 g) + 256 * tokens bytes.
//
#include "baracuda/awq_gemm_tiled.cuh"

using namespace baracuda;

BARACUDA_CONSTANT(kTiledThreads, 256);  // at most: 16 warps would have too few registers
BARACUDA_CONSTANT(kT8Stages, 3);
BARACUDA_CONSTANT(kT16Stages, 2);

#define BARACUDA_ENTRY(name, Element, kBlocks, kTokenTiles, kGroups, kStages) \
  extern "C" __global__ void __launch_bounds__(kTiledThreads, 1)              \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element)) {                           \
    awq_gemm_tiled<TiledShape<kBlocks, kTokenTiles, kGroups, kStages>>(       \
        AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS);                 \
  }

BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c32_t8_g1, __half, 1, 1, 1, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c32_t8_g2, __half, 1, 1, 2, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c32_t8_g4, __half, 1, 1, 4, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c32_t16_g1, __half, 1, 2, 1, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c32_t16_g2, __half, 1, 2, 2, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c32_t16_g4, __half, 1, 2, 4, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c64_t8_g1, __half, 2, 1, 1, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c64_t8_g2, __half, 2, 1, 2, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c64_t8_g4, __half, 2, 1, 4, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c64_t16_g1, __half, 2, 2, 1, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c64_t16_g2, __half, 2, 2, 2, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_f16_c64_t16_g4, __half, 2, 2, 4, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c32_t8_g1, __nv_bfloat16, 1, 1, 1, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c32_t8_g2, __nv_bfloat16, 1, 1, 2, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c32_t8_g4, __nv_bfloat16, 1, 1, 4, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c32_t16_g1, __nv_bfloat16, 1, 2, 1, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c32_t16_g2, __nv_bfloat16, 1, 2, 2, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c32_t16_g4, __nv_bfloat16, 1, 2, 4, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c64_t8_g1, __nv_bfloat16, 2, 1, 1, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c64_t8_g2, __nv_bfloat16, 2, 1, 2, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c64_t8_g4, __nv_bfloat16, 2, 1, 4, kT8Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c64_t16_g1, __nv_bfloat16, 2, 2, 1, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c64_t16_g2, __nv_bfloat16, 2, 2, 2, kT16Stages)
BARACUDA_ENTRY(awq_gemm_tiled_sm80_bf16_c64_t16_g4, __nv_bfloat16, 2, 2, 4, kT16Stages)
