// See awq_gemm_warpgroup_entries.cuh.
#include "baracuda/awq_gemm_warpgroup_entries.cuh"

BARACUDA_WARPGROUP_ENTRIES(awq_gemm_warpgroup_sm90a_bf16, __nv_bfloat16, 1)
