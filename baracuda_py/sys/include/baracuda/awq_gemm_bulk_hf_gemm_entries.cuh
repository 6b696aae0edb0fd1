// The entry points of awq_gemm_bulk.cuh for HF_GEMM weights, one element and number of groups in a block of 128 input
// channels: a module each, because a driver compiles a module as a whole, and a checkpoint needs one.
//
// awq_gemm, any m; oc % 32 == 0, ic % 64 == 0. As awq_gemm_bulk_tiled_entries.cuh says, but a unit is what BulkHfGemm says,
// and weights are copied by maps, in boxes of a warp's channels: weight_map is bytes (1, ic, oc / 2), boxes of 128 rows,
// swizzled over a box's rows where those are 32 bytes; scale_map (1, groups, oc) and zero_map bytes (1, groups, oc / 2), in
// boxes of a block's groups, not swizzled.
#pragma once

#include "baracuda/awq_gemm_bulk_hf_gemm.cuh"

namespace baracuda {

// Warps of a tile of 32, 64 or 128 channels: down the channels, and along k.
BARACUDA_CONSTANT(kC32RowWarps, 1);
BARACUDA_CONSTANT(kC32DepthWarps, 11);
BARACUDA_CONSTANT(kC64RowWarps, 1);
BARACUDA_CONSTANT(kC64DepthWarps, 8);
BARACUDA_CONSTANT(kC128RowWarps, 2);
BARACUDA_CONSTANT(kC128DepthWarps, 4);

template <int kTokenTiles, int kGroups>
using BulkC32 = BulkShape<BulkHfGemm, 1, kC32RowWarps, kC32DepthWarps, kTokenTiles, kGroups>;
template <int kTokenTiles, int kGroups>
using BulkC64 = BulkShape<BulkHfGemm, 2, kC64RowWarps, kC64DepthWarps, kTokenTiles, kGroups>;
template <int kTokenTiles, int kGroups>
using BulkC128 = BulkShape<BulkHfGemm, 2, kC128RowWarps, kC128DepthWarps, kTokenTiles, kGroups>;
static_assert(BulkC32<1, 1>::kChannels == 32 && BulkC64<1, 1>::kChannels == 64 && BulkC128<1, 1>::kChannels == 128,
              "an entry's name says its channels");

}  // namespace baracuda

#define BARACUDA_BULK_ENTRY(name, Element, Tile, kTokenTiles, kGroups)                                                \
  extern "C" __global__ void __launch_bounds__(baracuda::Tile<kTokenTiles, kGroups>::kThreads, 1)                     \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), const __grid_constant__ baracuda::TensorMap x_map,                  \
           const __grid_constant__ baracuda::TensorMap weight_map, const __grid_constant__ baracuda::TensorMap scale_map, \
           const __grid_constant__ baracuda::TensorMap zero_map, int tokens, int stages, int slots, int tiles,        \
           int early_stages) {                                                                                        \
    using Shape = baracuda::Tile<kTokenTiles, kGroups>;                                                               \
    baracuda::awq_gemm_bulk<Shape>(baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, &x_map,             \
                                   {&weight_map, &scale_map, &zero_map, kGroups == 1 && group != baracuda::kBlockDepth}, \
                                   baracuda::BulkLayout<Shape>{tokens, stages, slots}, tiles, early_stages);          \
  }

#define BARACUDA_BULK_ENTRIES(prefix, Element, kGroups)                            \
  BARACUDA_BULK_ENTRY(prefix##_c32_t8_g##kGroups, Element, BulkC32, 1, kGroups)    \
  BARACUDA_BULK_ENTRY(prefix##_c32_t16_g##kGroups, Element, BulkC32, 2, kGroups)   \
  BARACUDA_BULK_ENTRY(prefix##_c64_t8_g##kGroups, Element, BulkC64, 1, kGroups)    \
  BARACUDA_BULK_ENTRY(prefix##_c64_t16_g##kGroups, Element, BulkC64, 2, kGroups)   \
  BARACUDA_BULK_ENTRY(prefix##_c128_t8_g##kGroups, Element, BulkC128, 1, kGroups)  \
  BARACUDA_BULK_ENTRY(prefix##_c128_t16_g##kGroups, Element, BulkC128, 2, kGroups)
