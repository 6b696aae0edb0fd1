// See awq_fp8_gemm_tiled_entries.cuh.
#include "baracuda/awq_fp8_gemm_tiled_entries.cuh"

BARACUDA_FP8_ENTRIES(awq_fp8_gemm_tiled_sm90a_bf16, __nv_bfloat16, 4)
