// awq_gemm for TILED weights, tile kernel, any m; oc % 8 == 0, ic % 32 == 0.
//
// grid (ceil(m / tokens) * ceil(oc / kTiledTileChannels), 1, split_k), kTiledTileThreads threads, kTiledTileStages times
// 4 * (2048 + 80 g) + 256 * tokens bytes of dynamic shared memory. An entry's name has its tokens (t) and groups of a block
// of 128 input channels (g). With one split the outputs are finished here and partials is not touched; with more, split s
// writes its f32 sums, zeros for an empty range, to partials[s], and awq_gemm_reduce_sm80_<element> finishes.
//
// baracuda: assembled-only sm_90
#include "baracuda/awq_gemm_tiled_tile.cuh"

using namespace baracuda;

BARACUDA_CONSTANT(kTiledTileThreads, 256);
BARACUDA_CONSTANT(kTiledTileStages, 2);
static_assert(kTiledTileThreads == TiledTile<128, 1>::kThreads, "the host must launch what the tile needs");
static_assert(kTiledTileStages == TiledTile<128, 1>::kStages, "the host must give what the tile needs");

#define BARACUDA_ENTRY(name, Element, kTokens, kGroups)                                            \
  extern "C" __global__ void __launch_bounds__(kTiledTileThreads, 1)                               \
      name##_t##kTokens##_g##kGroups(BARACUDA_AWQ_GEMM_PARAMETERS(Element),                        \
                                     float* __restrict__ partials) {                               \
    awq_gemm_tiled_tile<TiledTile<kTokens, kGroups>>(                                              \
        AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, partials);                            \
  }

#define BARACUDA_ENTRIES(name, Element)  \
  BARACUDA_ENTRY(name, Element, 32, 1)   \
  BARACUDA_ENTRY(name, Element, 32, 2)   \
  BARACUDA_ENTRY(name, Element, 32, 4)   \
  BARACUDA_ENTRY(name, Element, 64, 1)   \
  BARACUDA_ENTRY(name, Element, 64, 2)   \
  BARACUDA_ENTRY(name, Element, 64, 4)   \
  BARACUDA_ENTRY(name, Element, 128, 1)  \
  BARACUDA_ENTRY(name, Element, 128, 2)  \
  BARACUDA_ENTRY(name, Element, 128, 4)

BARACUDA_ENTRIES(awq_gemm_tiled_tile_sm80_f16, __half)
BARACUDA_ENTRIES(awq_gemm_tiled_tile_sm80_bf16, __nv_bfloat16)
