// The entry points of awq_gemm_tiled_tile.cuh for one element and number of groups in a block of 128 input channels: a
// module each, because a driver compiles a module as a whole, and a checkpoint needs one.
//
// awq_gemm for TILED weights, any m; oc % 8 == 0, ic % 32 == 0. grid (ceil(m / tokens) * ceil(oc / kTiledTileChannels), 1,
// split_k), kTiledTileThreads threads, stages times 2 * (4 * (1024 + 80 * max(1, g / 2)) + 128 * tokens) bytes of dynamic
// shared memory. An entry's name has its tokens (t), stages (s) and groups of a block (g). With one split the outputs are
// finished here and partials is not touched; with more, split s writes its f32 sums, zeros for an empty range, to
// partials[s], and awq_gemm_reduce_sm80_<element> finishes.
#pragma once

#include "baracuda/awq_gemm_tiled_tile.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kTiledTileThreads, 256);
static_assert(kTiledTileThreads == TiledTile<128, 1, 2>::kThreads, "the host must launch what the tile needs");

}  // namespace baracuda

#define BARACUDA_TILE_ENTRY(name, Element, kTokens, kStages, kGroups)                                \
  extern "C" __global__ void __launch_bounds__(baracuda::kTiledTileThreads, 1)                       \
      name##_t##kTokens##_s##kStages##_g##kGroups(BARACUDA_AWQ_GEMM_PARAMETERS(Element),             \
                                                  float* __restrict__ partials) {                    \
    baracuda::awq_gemm_tiled_tile<baracuda::TiledTile<kTokens, kGroups, kStages>>(                   \
        baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, partials);                    \
  }

// 99 KiB of shared memory, which every GPU gives a CTA, hold two stages of 128 tokens, others three.
#define BARACUDA_TILE_ENTRIES(name, Element, kGroups)    \
  BARACUDA_TILE_ENTRY(name, Element, 32, 4, kGroups)     \
  BARACUDA_TILE_ENTRY(name, Element, 64, 3, kGroups)     \
  BARACUDA_TILE_ENTRY(name, Element, 128, 2, kGroups)    \
  BARACUDA_TILE_ENTRY(name, Element, 128, 3, kGroups)
