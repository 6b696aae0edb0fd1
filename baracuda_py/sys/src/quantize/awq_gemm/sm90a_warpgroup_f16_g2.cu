// See awq_gemm_warpgroup_entries.cuh.
#include "baracuda/awq_gemm_warpgroup_entries.cuh"

BARACUDA_WARPGROUP_ENTRIES(awq_gemm_warpgroup_sm90a_f16, __half, 2)
