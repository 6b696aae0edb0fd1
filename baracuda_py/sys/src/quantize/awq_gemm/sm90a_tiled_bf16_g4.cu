// See awq_gemm_bulk_tiled_entries.cuh.
#include "baracuda/awq_gemm_bulk_tiled_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_tiled_sm90a_bf16, __nv_bfloat16, 4)
