// See awq_gemm_tiled_wide_entries.cuh.
#include "baracuda/awq_gemm_tiled_wide_entries.cuh"

BARACUDA_WIDE_MANY_ENTRIES(awq_gemm_tiled_wide_sm90a_bf16, __nv_bfloat16, 1)
