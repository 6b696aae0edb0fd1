// See awq_gemm_bulk_hf_gemm_entries.cuh.
//
// These kernels want some registers more than they can have:
// baracuda: allow-spill awq_gemm_bulk_sm90a_f16_hf_gemm_c128_t32_g2 48
#include "baracuda/awq_gemm_bulk_hf_gemm_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_bulk_sm90a_f16_hf_gemm, __half, 2)
BARACUDA_BULK_C128_ENTRIES(awq_gemm_bulk_sm90a_f16_hf_gemm, __half, 2)
BARACUDA_BULK_PARTS_ENTRIES(awq_gemm_bulk_sm90a_f16_hf_gemm, __half, 2)
