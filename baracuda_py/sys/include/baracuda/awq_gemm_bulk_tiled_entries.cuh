// The entry points of awq_gemm_bulk.cuh for TILED weights, one element and number of groups in a block of 128 input
// channels: a module each, because a driver compiles a module as a whole, and a checkpoint needs one.
//
// awq_gemm for TILED weights, any m; oc % 8 == 0, ic % 64 == 0. An entry's name has its channels (c), tokens (t) and groups
// of a block (g). grid (ceil(oc / channels / tiles), ceil(m / tokens)). Threads, and bytes of dynamic shared memory, as
// BulkShape and BulkLayout say: `slots` times depth warps * 256 * tokens, rounded up to 1024, warps * stages units of 32 *
// blocks channels, depth warps * t * c sums of 4 bytes, and 8 bytes for each unit and twice for each slot. x_map is x as
// (ic / 64, m, 64) with boxes of (2 * depth warps, tokens, 64), swizzled over 128 bytes; tokens <= t.
#pragma once

#include "baracuda/awq_gemm_bulk_tiled.cuh"

namespace baracuda {

// Warps of a tile of 32, 64 or 128 channels: down the channels, and along k. With the one that copies x, twelve at most:
// registers are given out to four warps at a time, and thirteen would leave each 128.
BARACUDA_CONSTANT(kC32RowWarps, 1);
BARACUDA_CONSTANT(kC32DepthWarps, 11);
BARACUDA_CONSTANT(kC64RowWarps, 1);
BARACUDA_CONSTANT(kC64DepthWarps, 8);
BARACUDA_CONSTANT(kC128RowWarps, 2);
BARACUDA_CONSTANT(kC128DepthWarps, 4);

template <int kTokenTiles, int kGroups>
using BulkC32 = BulkShape<BulkTiled, 1, kC32RowWarps, kC32DepthWarps, kTokenTiles, kGroups>;
template <int kTokenTiles, int kGroups>
using BulkC64 = BulkShape<BulkTiled, 2, kC64RowWarps, kC64DepthWarps, kTokenTiles, kGroups>;
template <int kTokenTiles, int kGroups>
using BulkC128 = BulkShape<BulkTiled, 2, kC128RowWarps, kC128DepthWarps, kTokenTiles, kGroups>;
static_assert(BulkC32<1, 1>::kChannels == 32 && BulkC64<1, 1>::kChannels == 64 && BulkC128<1, 1>::kChannels == 128,
              "an entry's name says its channels");

}  // namespace baracuda

#define BARACUDA_BULK_ENTRY(name, Element, Tile, kTokenTiles, kGroups)                                              \
  extern "C" __global__ void __launch_bounds__(baracuda::Tile<kTokenTiles, kGroups>::kThreads, 1)                   \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), const __grid_constant__ baracuda::TensorMap x_map, int tokens,    \
           int stages, int slots, int tiles, int early_stages) {                                                    \
    using Shape = baracuda::Tile<kTokenTiles, kGroups>;                                                             \
    baracuda::awq_gemm_bulk<Shape>(baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, &x_map,           \
                                   {reinterpret_cast<const unsigned char*>(weights)},                               \
                                   baracuda::BulkLayout<Shape>{tokens, stages, slots}, tiles, early_stages);        \
  }

#define BARACUDA_BULK_ENTRIES(prefix, Element, kGroups)                                 \
  BARACUDA_BULK_ENTRY(prefix##_c32_t8_g##kGroups, Element, BulkC32, 1, kGroups)    \
  BARACUDA_BULK_ENTRY(prefix##_c32_t16_g##kGroups, Element, BulkC32, 2, kGroups)   \
  BARACUDA_BULK_ENTRY(prefix##_c64_t8_g##kGroups, Element, BulkC64, 1, kGroups)    \
  BARACUDA_BULK_ENTRY(prefix##_c64_t16_g##kGroups, Element, BulkC64, 2, kGroups)   \
  BARACUDA_BULK_ENTRY(prefix##_c128_t8_g##kGroups, Element, BulkC128, 1, kGroups)  \
  BARACUDA_BULK_ENTRY(prefix##_c128_t16_g##kGroups, Element, BulkC128, 2, kGroups)
