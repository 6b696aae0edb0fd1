// Softmax and log-softmax of bf16.
#include "baracuda/constant.cuh"

namespace baracuda {
BARACUDA_CONSTANT(kWarpLength, 1024);  // 32 floats a lane
}

#include "baracuda/softmax.cuh"

BARACUDA_SOFTMAX_ALL(bf16, __nv_bfloat16)
