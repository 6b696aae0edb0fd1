// See awq_gemm_bulk_hf_gemm_entries.cuh.
//
// The kernels want some registers more than eight warps can have:
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c64_t32_g1 128
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c128_t32_g1 160
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c64_p2_t16_g1 20
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c64_p2_t32_g1 132
#include "baracuda/awq_gemm_bulk_hf_gemm_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 1)
BARACUDA_BULK_C128_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 1)
BARACUDA_BULK_PARTS_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 1)
