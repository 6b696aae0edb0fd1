// awq_gemm for TILED weights, tile kernel, any m; oc % 8 == 0, ic % 32 == 0.
//
// grid (ceil(m / tokens) * ceil(oc / kTiledTileChannels), 1, split_k), kT<tokens>TileThreads threads, `stages` times
// 4 * (2048 + 80 g) + 256 * tokens bytes of dynamic shared memory, or tokens * 528 if that is more. An entry's name has
// its tokens (t) and groups of a block of 128 input channels (g). With one split the outputs are finished here and
// partials is not touched; with more, split s writes its f32 sums, zeros for an empty range, to partials[s], and
// awq_gemm_reduce_sm80_<element> finishes.
//
// One register too many, on sm_120 alone:
// baracuda: allow-spill awq_gemm_tiled_tile_sm80_bf16_t128_g2 8
#include "baracuda/awq_gemm_tiled_tile.cuh"

using namespace baracuda;

BARACUDA_CONSTANT(kT32TileStages, 4);
BARACUDA_CONSTANT(kT64TileStages, 3);
BARACUDA_CONSTANT(kT128TileStages, 2);
BARACUDA_CONSTANT(kT32TileThreads, 128);
BARACUDA_CONSTANT(kT64TileThreads, 256);
BARACUDA_CONSTANT(kT128TileThreads, 256);
static_assert(kT32TileThreads == TiledTile<4, 1, 1, kT32TileStages>::kThreads, "the host must launch what it needs");
static_assert(kT64TileThreads == TiledTile<4, 2, 1, kT64TileStages>::kThreads, "the host must launch what it needs");
static_assert(kT128TileThreads == TiledTile<8, 2, 1, kT128TileStages>::kThreads, "the host must launch what it needs");

#define BARACUDA_ENTRY(name, Element, kTokenTiles, kTokenWarps, kGroups, kStages)                                  \
  extern "C" __global__ void __launch_bounds__(TiledTile<kTokenTiles, kTokenWarps, kGroups, kStages>::kThreads, 1) \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), float* __restrict__ partials) {                                  \
    awq_gemm_tiled_tile<TiledTile<kTokenTiles, kTokenWarps, kGroups, kStages>>(                                    \
        AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, partials);                                            \
  }

BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t32_g1, __half, 4, 1, 1, kT32TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t32_g2, __half, 4, 1, 2, kT32TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t32_g4, __half, 4, 1, 4, kT32TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t64_g1, __half, 4, 2, 1, kT64TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t64_g2, __half, 4, 2, 2, kT64TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t64_g4, __half, 4, 2, 4, kT64TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t128_g1, __half, 8, 2, 1, kT128TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t128_g2, __half, 8, 2, 2, kT128TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_f16_t128_g4, __half, 8, 2, 4, kT128TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t32_g1, __nv_bfloat16, 4, 1, 1, kT32TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t32_g2, __nv_bfloat16, 4, 1, 2, kT32TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t32_g4, __nv_bfloat16, 4, 1, 4, kT32TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t64_g1, __nv_bfloat16, 4, 2, 1, kT64TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t64_g2, __nv_bfloat16, 4, 2, 2, kT64TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t64_g4, __nv_bfloat16, 4, 2, 4, kT64TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t128_g1, __nv_bfloat16, 8, 2, 1, kT128TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t128_g2, __nv_bfloat16, 8, 2, 2, kT128TileStages)
BARACUDA_ENTRY(awq_gemm_tiled_tile_sm80_bf16_t128_g4, __nv_bfloat16, 8, 2, 4, kT128TileStages)
