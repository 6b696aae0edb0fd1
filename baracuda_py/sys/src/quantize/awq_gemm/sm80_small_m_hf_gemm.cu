// awq_gemm for 1 <= m <= 8, int32 [ic, oc / 8] weights in AutoAWQ's nibble order; oc % 8 == 0, ic % 32 == 0.
//
// grid ceil(oc / channels), 32 * warps threads (at most k<C or G>MaxThreads), warps * channels *
// kSumBytesPerChannel bytes of dynamic shared memory; channels is the number after c in the entry's name.
// Entries without a group serve group 128 and one group a channel (group == ic); g64 and g32 serve that
// group.
#include "baracuda/awq_gemm_small_m.cuh"

using namespace baracuda;

#define BARACUDA_ENTRY(name, Element, kTiles, kParts, ...)                                                \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(BARACUDA_AWQ_GEMM_PARAMETERS(Element)) { \
    awq_gemm_small_m<WeightLayout::kHfGemm, kTiles, kParts>(                                              \
        AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS);                                             \
  }

BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_hf_gemm_c64, __half, 4, 1, kC64MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_hf_gemm_c32, __half, 2, 1, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_hf_gemm_c32_g64, __half, 2, 2, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_hf_gemm_c32_g32, __half, 2, 4, kG32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_hf_gemm_c64, __nv_bfloat16, 4, 1, kC64MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_hf_gemm_c32, __nv_bfloat16, 2, 1, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_hf_gemm_c32_g64, __nv_bfloat16, 2, 2, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_hf_gemm_c32_g32, __nv_bfloat16, 2, 4, kG32MaxThreads)
