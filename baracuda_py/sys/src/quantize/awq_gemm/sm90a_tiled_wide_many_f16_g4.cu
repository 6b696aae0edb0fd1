// See awq_gemm_tiled_wide_entries.cuh.
#include "baracuda/awq_gemm_tiled_wide_entries.cuh"

BARACUDA_WIDE_MANY_ENTRIES(awq_gemm_tiled_wide_sm90a_f16, __half, 4)
