// See awq_gemm_bulk_hf_gemm_entries.cuh.
//
// For 16 tokens the kernels want some registers more than nine warps leave them:
// baracuda: allow-spill awq_gemm_bulk_sm90a_f16_hf_gemm_c128_t16_g1 24
#include "baracuda/awq_gemm_bulk_hf_gemm_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_bulk_sm90a_f16_hf_gemm, __half, 1)
BARACUDA_BULK_C128_ENTRIES(awq_gemm_bulk_sm90a_f16_hf_gemm, __half, 1)
BARACUDA_BULK_PARTS_ENTRIES(awq_gemm_bulk_sm90a_f16_hf_gemm, __half, 1)
