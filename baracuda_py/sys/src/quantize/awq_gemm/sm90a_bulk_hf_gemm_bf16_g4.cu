// See awq_gemm_bulk_hf_gemm_entries.cuh.
//
// For 16 tokens the kernels want some registers more than nine warps leave them:
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c128_t16_g4 72
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c64_p2_t16_g4 40
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c64_t16_g4 40
#include "baracuda/awq_gemm_bulk_hf_gemm_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 4)
BARACUDA_BULK_C128_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 4)
BARACUDA_BULK_PARTS_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 4)
