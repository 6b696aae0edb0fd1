// See awq_gemm_bulk_hf_gemm_entries.cuh.
//
// These kernels want some registers more than they can have:
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_hf_gemm_c128_t32_g1 24
#include "baracuda/awq_gemm_bulk_hf_gemm_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 1)
BARACUDA_BULK_C128_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 1)
BARACUDA_BULK_PARTS_ENTRIES(awq_gemm_bulk_sm90a_bf16_hf_gemm, __nv_bfloat16, 1)
