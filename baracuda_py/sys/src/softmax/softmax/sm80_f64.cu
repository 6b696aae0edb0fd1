// Softmax and log-softmax of f64.
#include "baracuda/constant.cuh"

namespace baracuda {
BARACUDA_CONSTANT(kWarpLength, 512);  // 16 doubles a lane
}

#include "baracuda/softmax.cuh"

BARACUDA_SOFTMAX_ALL(f64, double)
