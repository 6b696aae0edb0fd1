// awq_gemm for HF_GEMM weights, stream kernel: see awq_gemm_stream_entries.cuh.
#include "baracuda/awq_gemm_stream_entries.cuh"

BARACUDA_STREAM_ENTRIES(awq_gemm_stream_sm80_f16_hf_gemm, StreamHfGemm, __half, 4)
