// awq_gemm for 1 <= m <= 8, int32 [oc, ic / 8] weights in natural nibble order; oc % 8 == 0, ic % 32 == 0.
//
// grid ceil(oc / channels), 32 * warps threads (at most k<C or G>MaxThreads), warps * channels *
// kSumBytesPerChannel bytes of dynamic shared memory; channels is the number after c in the entry's name.
// Entries without a group serve group 128 and one group a channel (group == ic); g64 and g32 serve that
// group.
#include "baracuda/awq_gemm_small_m.cuh"

using namespace baracuda;

// The variadic part is the launch bounds. c16 asks for one CTA an SM, or the compiler spills to stay at 64
// registers.
#define BARACUDA_ENTRY(name, Element, kTiles, kParts, ...)                                                \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(BARACUDA_AWQ_GEMM_PARAMETERS(Element)) { \
    awq_gemm_small_m<kTiles, kParts>(                                                                     \
        AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS);                                             \
  }

BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_oc_major_c64, __half, 4, 1, kC64MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_oc_major_c32, __half, 2, 1, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_oc_major_c16, __half, 1, 1, kC16MaxThreads, 1)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_oc_major_c32_g64, __half, 2, 2, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_f16_oc_major_c32_g32, __half, 2, 4, kG32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_oc_major_c64, __nv_bfloat16, 4, 1, kC64MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_oc_major_c32, __nv_bfloat16, 2, 1, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_oc_major_c16, __nv_bfloat16, 1, 1, kC16MaxThreads, 1)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_oc_major_c32_g64, __nv_bfloat16, 2, 2, kC32MaxThreads)
BARACUDA_ENTRY(awq_gemm_small_m_sm80_bf16_oc_major_c32_g32, __nv_bfloat16, 2, 4, kG32MaxThreads)
