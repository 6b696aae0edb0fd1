// The entry points of awq_gemm_stream.cuh for one weight layout, element and number of groups in a block of 128 input
// channels: a module each, because a driver compiles a module as a whole, and a checkpoint needs one.
//
// awq_gemm, any m; oc % 8 == 0, ic % 32 == 0. An entry's name has its channels (c), tokens (t) and groups of a block (g), of
// which one serves groups of 128 and one group a channel. grid (ceil(oc / (rows * channels)) * n, k) with n * k >=
// ceil(m / tokens), 32 * rows * columns threads, at most kStreamThreads, and, a warp, kStreamStages
// times channels / 32 * (2048 + 80 g) bytes of dynamic shared memory, for TILED 256 * tokens more.
#pragma once

#include "baracuda/awq_gemm_stream.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kStreamThreads, 256);
BARACUDA_CONSTANT(kStreamStages, 4);

}  // namespace baracuda

#define BARACUDA_STREAM_ENTRY(name, Weights, Element, kChannels, kTokens, kGroups)                                   \
  extern "C" __global__ void __launch_bounds__(baracuda::kStreamThreads, 1)                                           \
      name##_c##kChannels##_t##kTokens##_g##kGroups(BARACUDA_AWQ_GEMM_PARAMETERS(Element), int rows) {               \
    baracuda::awq_gemm_stream<baracuda::StreamShape<baracuda::Weights<kChannels / 16, kGroups, Element>, kTokens / 8, \
                                                    baracuda::kStreamStages>>(                                       \
        baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, rows);                                        \
  }

#define BARACUDA_STREAM_ENTRIES(name, Weights, Element, kGroups)    \
  BARACUDA_STREAM_ENTRY(name, Weights, Element, 32, 8, kGroups)     \
  BARACUDA_STREAM_ENTRY(name, Weights, Element, 32, 16, kGroups)    \
  BARACUDA_STREAM_ENTRY(name, Weights, Element, 64, 8, kGroups)     \
  BARACUDA_STREAM_ENTRY(name, Weights, Element, 64, 16, kGroups)
