// The entry points of awq_gemm_warpgroup.cuh for one element and number of groups of a block of 128 input channels.
//
// awq_gemm for TILED weights, any m; oc % 8 == 0, ic % 64 == 0. An entry's name has its channels (c), where two CTAs share out
// k its parts (p), its tokens (t) and groups of a block (g). grid (ceil(oc / channels / tiles) * parts, ceil(m / tokens)),
// kWarpgroupKernelThreads threads. Bytes of dynamic shared memory: twice `stages` times 32768 * t / channels + 16 +
// 4 * (2048 + 80 g), channels * parts * t * 4, and 2 * kWideStoreBytes. x_map is x as (ic / 64, m, 64) with boxes of
// (256 / channels, tokens, 64), swizzled over 128 bytes; tokens is a multiple of 8, and t at most. Of two parts, tiles is 1, and
// ic more than two blocks. `overlaps` is 1 where the launch may begin before the one ahead of it has ended.
#pragma once

#include "baracuda/awq_gemm_warpgroup.cuh"
#include "baracuda/cache_policy.cuh"

#define BARACUDA_WARPGROUP_ENTRY(name, clusters, Element, ...)                                                       \
  extern "C" __global__ void clusters __launch_bounds__(baracuda::kWarpgroupKernelThreads, 1)                        \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), int tokens, int stages, int tiles, int overlaps,                   \
           const __grid_constant__ baracuda::TensorMap x_map) {                                                      \
    baracuda::awq_gemm_warpgroup<baracuda::WarpgroupShape<__VA_ARGS__>>(                                             \
        baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, &x_map,                                       \
        gridDim.y == 1 ? baracuda::evict_first_policy()   /* read once */                                            \
                       : baracuda::evict_normal_policy(),                                                            \
        tokens, stages, tiles, overlaps != 0);                                                                       \
  }
#define BARACUDA_WARPGROUP_TILES(prefix, Element, kTokens, kGroups)                                                  \
  BARACUDA_WARPGROUP_ENTRY(prefix##_c64_t##kTokens##_g##kGroups, , Element, 1, kTokens, kGroups)                     \
  BARACUDA_WARPGROUP_ENTRY(prefix##_c64_p2_t##kTokens##_g##kGroups, __cluster_dims__(2, 1, 1), Element, 1, kTokens,  \
                           kGroups, 2)                                                                               \
  BARACUDA_WARPGROUP_ENTRY(prefix##_c128_t##kTokens##_g##kGroups, , Element, 2, kTokens, kGroups)
#define BARACUDA_WARPGROUP_ENTRIES(prefix, Element, kGroups) \
  BARACUDA_WARPGROUP_TILES(prefix, Element, 16, kGroups)     \
  BARACUDA_WARPGROUP_TILES(prefix, Element, 32, kGroups)     \
  BARACUDA_WARPGROUP_TILES(prefix, Element, 64, kGroups)
