// See awq_gemm_bulk_tiled_entries.cuh.
//
// For 32 tokens the kernels want some registers more than eight warps can have:
// baracuda: allow-spill awq_gemm_tiled_sm90a_f16_c64_t32_g4 204
#include "baracuda/awq_gemm_bulk_tiled_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_tiled_sm90a_f16, __half, 4)
