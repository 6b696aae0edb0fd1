// See awq_gemm_tiled_tile_entries.cuh.
#include "baracuda/awq_gemm_tiled_tile_entries.cuh"

BARACUDA_TILE_ENTRIES(awq_gemm_tiled_tile_sm80_bf16, __nv_bfloat16, 1)
