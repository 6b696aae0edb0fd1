// awq_gemm for OC_MAJOR weights, stream kernel: see awq_gemm_stream_entries.cuh.
//
// baracuda: allow-spill awq_gemm_stream_sm80_bf16_oc_major_c64_t16_g2 32
#include "baracuda/awq_gemm_stream_entries.cuh"

BARACUDA_STREAM_ENTRIES(awq_gemm_stream_sm80_bf16_oc_major, StreamOcMajor, __nv_bfloat16, 2)
