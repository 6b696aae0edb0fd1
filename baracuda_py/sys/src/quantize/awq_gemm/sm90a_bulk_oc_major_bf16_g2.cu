// See awq_gemm_bulk_oc_major_entries.cuh.
//
// These kernels want some registers more than they can have:
// baracuda: allow-spill awq_gemm_bulk_sm90a_bf16_oc_major_c64_t32_g2 104
#include "baracuda/awq_gemm_bulk_oc_major_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_bulk_sm90a_bf16_oc_major, __nv_bfloat16, 2)
