// See awq_gemm_bulk_tiled_entries.cuh.
#include "baracuda/awq_gemm_bulk_tiled_entries.cuh"

BARACUDA_BULK_ENTRIES(awq_gemm_tiled_sm90a_f16, __half, 4)
