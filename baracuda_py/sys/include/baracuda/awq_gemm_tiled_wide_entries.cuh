// The entry points of awq_gemm_tiled_wide.cuh for one element.
//
// awq_gemm for TILED weights and many tokens, warpgroup instructions; oc % 8 == 0, ic % 64 == 0. An entry's name has its
// tokens (t) and groups of a block of 128 input channels (g). grid (ceil(m / t) * ceil(oc / kTiledTileChannels), 1, split_k),
// kWideThreads threads, `stages` times 256 * t + 4 * (2048 + 80 g) + 16 bytes of dynamic shared memory, two stages or more.
// x_map is x as (ic / 64, m, 64) with boxes of (2, t, 64), swizzled over 128 bytes. With one split the outputs are finished
// here and partials is not touched; with more, split s writes its f32 sums, zeros for an empty range, to partials[s], and
// awq_gemm_reduce_sm80_<element> finishes.
#pragma once

#include "baracuda/awq_gemm_tiled_wide.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWideThreads, 288);
static_assert(kWideThreads == WideShape<64, 1>::kThreads, "the host must launch what it needs");

}  // namespace baracuda

#define BARACUDA_WIDE_ENTRY(name, Element, kTokens, kGroups)                                                       \
  extern "C" __global__ void __launch_bounds__(baracuda::kWideThreads, 1)                                          \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), float* __restrict__ partials,                                    \
           const __grid_constant__ baracuda::TensorMap x_map, int stages) {                                        \
    baracuda::awq_gemm_tiled_wide<baracuda::WideShape<kTokens, kGroups>>(                                          \
        baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, partials, &x_map, stages);                  \
  }

#define BARACUDA_WIDE_ENTRIES(prefix, Element)          \
  BARACUDA_WIDE_ENTRY(prefix##_t32_g1, Element, 32, 1)  \
  BARACUDA_WIDE_ENTRY(prefix##_t32_g2, Element, 32, 2)  \
  BARACUDA_WIDE_ENTRY(prefix##_t32_g4, Element, 32, 4)  \
  BARACUDA_WIDE_ENTRY(prefix##_t64_g1, Element, 64, 1)  \
  BARACUDA_WIDE_ENTRY(prefix##_t64_g2, Element, 64, 2)  \
  BARACUDA_WIDE_ENTRY(prefix##_t64_g4, Element, 64, 4)  \
  BARACUDA_WIDE_ENTRY(prefix##_t128_g1, Element, 128, 1) \
  BARACUDA_WIDE_ENTRY(prefix##_t128_g2, Element, 128, 2) \
  BARACUDA_WIDE_ENTRY(prefix##_t128_g4, Element, 128, 4)
