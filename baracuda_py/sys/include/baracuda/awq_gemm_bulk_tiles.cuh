// The tiles of awq_gemm_bulk.cuh that have entry points.
//
// An entry's name has its channels (c), where two CTAs share out k its parts (p), its tokens (t) and groups of a block (g).
// grid (ceil(oc / channels / tiles) * parts, ceil(m / tokens)). Threads as BulkShape says, or, of t8 with one tile, those of
// the warps that multiply and one more. Bytes of dynamic shared memory as BulkLayout says: `slots` times depth warps * 256 *
// tokens, rounded up to 1024, warps * stages units, depth warps * s * c sums of 4 bytes, of s = min(t, 16) tokens, and, of two
// parts, s * c / 2 more, and 8 bytes for each unit and twice for each slot, or more. x_map is x as (ic / 64, m, 64) with boxes
// of (2 * depth warps, tokens, 64), swizzled over 128 bytes; tokens <= t. Of two parts, tiles is 1, and ic more than a chunk.
// `overlaps` is 1 where the launch may begin before the one ahead of it has ended.
#pragma once

#include "baracuda/awq_gemm_bulk.cuh"

namespace baracuda {

// Warps of a tile: down the channels, and along k. Eight share out most ic evenly. Eleven, for 32 channels, take ten rounds of
// ic = 14336 and one of which two have a part, 3 % longer.
BARACUDA_CONSTANT(kC32RowWarps, 1);
BARACUDA_CONSTANT(kC32DepthWarps, 8);
BARACUDA_CONSTANT(kC64RowWarps, 1);
BARACUDA_CONSTANT(kC64DepthWarps, 8);
BARACUDA_CONSTANT(kC128RowWarps, 2);
BARACUDA_CONSTANT(kC128DepthWarps, 4);

template <template <typename> class WeightsOf, int kTokenTiles, int kGroups>
using BulkC32 = BulkShape<WeightsOf, 1, kC32RowWarps, kC32DepthWarps, kTokenTiles, kGroups>;
template <template <typename> class WeightsOf, int kTokenTiles, int kGroups>
using BulkC64 = BulkShape<WeightsOf, 2, kC64RowWarps, kC64DepthWarps, kTokenTiles, kGroups>;
template <template <typename> class WeightsOf, int kTokenTiles, int kGroups>
using BulkC64P2 = BulkShape<WeightsOf, 2, kC64RowWarps, kC64DepthWarps, kTokenTiles, kGroups, 2>;
template <template <typename> class WeightsOf, int kTokenTiles, int kGroups>
using BulkC128 = BulkShape<WeightsOf, 2, kC128RowWarps, kC128DepthWarps, kTokenTiles, kGroups>;

}  // namespace baracuda

// BARACUDA_BULK_ENTRY(name, clusters, Element, Tile, kTokenTiles, kGroups) is the layout's.
#define BARACUDA_BULK_ENTRIES(prefix, Element, kGroups)                            \
  BARACUDA_BULK_ENTRY(prefix##_c32_t8_g##kGroups, , Element, BulkC32, 1, kGroups)  \
  BARACUDA_BULK_ENTRY(prefix##_c32_t16_g##kGroups, , Element, BulkC32, 2, kGroups) \
  BARACUDA_BULK_ENTRY(prefix##_c32_t32_g##kGroups, , Element, BulkC32, 4, kGroups) \
  BARACUDA_BULK_ENTRY(prefix##_c64_t8_g##kGroups, , Element, BulkC64, 1, kGroups)  \
  BARACUDA_BULK_ENTRY(prefix##_c64_t16_g##kGroups, , Element, BulkC64, 2, kGroups) \
  BARACUDA_BULK_ENTRY(prefix##_c64_t32_g##kGroups, , Element, BulkC64, 4, kGroups)
// Of 128 channels.
#define BARACUDA_BULK_C128_ENTRIES(prefix, Element, kGroups)                         \
  BARACUDA_BULK_ENTRY(prefix##_c128_t8_g##kGroups, , Element, BulkC128, 1, kGroups)  \
  BARACUDA_BULK_ENTRY(prefix##_c128_t16_g##kGroups, , Element, BulkC128, 2, kGroups) \
  BARACUDA_BULK_ENTRY(prefix##_c128_t32_g##kGroups, , Element, BulkC128, 4, kGroups)
// Of two parts.
#define BARACUDA_BULK_PARTS_ENTRIES(prefix, Element, kGroups)                                                    \
  BARACUDA_BULK_ENTRY(prefix##_c64_p2_t8_g##kGroups, __cluster_dims__(2, 1, 1), Element, BulkC64P2, 1, kGroups)  \
  BARACUDA_BULK_ENTRY(prefix##_c64_p2_t16_g##kGroups, __cluster_dims__(2, 1, 1), Element, BulkC64P2, 2, kGroups) \
  BARACUDA_BULK_ENTRY(prefix##_c64_p2_t32_g##kGroups, __cluster_dims__(2, 1, 1), Element, BulkC64P2, 4, kGroups)
