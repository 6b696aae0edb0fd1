// Softmax and log-softmax of f32.
#include "baracuda/constant.cuh"

namespace baracuda {
BARACUDA_CONSTANT(kWarpLength, 1024);  // 32 floats a lane
}

#include "baracuda/softmax.cuh"

BARACUDA_SOFTMAX_ALL(f32, float)
