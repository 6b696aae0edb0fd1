// awq_gemm for TILED weights, stream kernel: see awq_gemm_stream_entries.cuh.
#include "baracuda/awq_gemm_stream_entries.cuh"
#include "baracuda/awq_gemm_stream_tiled.cuh"

BARACUDA_STREAM_ENTRIES(awq_gemm_stream_sm80_bf16_tiled, StreamTiled, __nv_bfloat16, 4)
