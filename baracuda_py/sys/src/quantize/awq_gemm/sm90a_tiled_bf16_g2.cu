// See awq_gemm_bulk_tiled_entries.cuh.
//
// These kernels want some registers more than they can have:
// baracuda: allow-spill awq_gemm_tiled_sm90a_bf16_c64_t32_g2 116
#include "baracuda/awq_gemm_bulk_tiled_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_tiled_sm90a_bf16, __nv_bfloat16, 2)
