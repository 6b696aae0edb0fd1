// See awq_gemm_bulk_tiled_entries.cuh.
//
// These kernels want some registers more than they can have:
// baracuda: allow-spill awq_gemm_tiled_sm90a_f16_c64_t32_g2 104
#include "baracuda/awq_gemm_bulk_tiled_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_tiled_sm90a_f16, __half, 2)
