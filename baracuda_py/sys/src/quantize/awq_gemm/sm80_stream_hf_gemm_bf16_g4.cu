// awq_gemm for HF_GEMM weights, stream kernel: see awq_gemm_stream_entries.cuh.
//
// baracuda: allow-spill awq_gemm_stream_sm80_bf16_hf_gemm_c64_t16_g4 24
#include "baracuda/awq_gemm_stream_entries.cuh"

BARACUDA_STREAM_ENTRIES(awq_gemm_stream_sm80_bf16_hf_gemm, StreamHfGemm, __nv_bfloat16, 4)
