// See awq_gemm_bulk_tiled_entries.cuh.
//
// For 16 tokens a kernel wants some registers more than nine warps leave it:
// baracuda: allow-spill awq_gemm_tiled_sm90a_bf16_c64_t16_g2 64
#include "baracuda/awq_gemm_bulk_tiled_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_tiled_sm90a_bf16, __nv_bfloat16, 2)
