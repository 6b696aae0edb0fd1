// The entry points of awq_gemm_tiled_wide.cuh for one element and number of groups.
//
// awq_gemm for TILED weights and many tokens, warpgroup instructions; oc % 8 == 0, ic % 64 == 0. An entry's name has its
// tokens (t) and groups of a block of 128 input channels (g). Of the tiles, kWideChannels channels by t tokens, the
// first `whole` go round the CTAs of the grid (n, 1, 1); `split` more are cut in `splits` ranges of input channels each, at
// most one a CTA. There are `token_tiles` of `tokens` tokens, a multiple of 8 and t at most. `panel` of them follow
// each other before the next channels. x_map is x as (ic / 64, m, 64) with boxes of (1, tokens, 64), swizzled over 128 bytes.
//
// Beyond kWideFewTokens tokens kWideManyThreads threads, else kWideThreads. Dynamic shared memory: `stages` times 256 * t +
// 4 * (2048 + 80 g) + 24 bytes, and 2 * kWideStoreBytes, or half of that with g = 4 beyond kWideMostTokens
// tokens. Two stages or more.
//
// Partial sums of split tiles go to parts, (split, splits, kWideChannels, t) of f32 in an order of their own. The entry
// `_finish`, grid (split * t / 8, 1, 1), kWideFinishThreads threads, 128 * kWideFinishTokens bytes of dynamic shared memory,
// adds them, in their order, and stores the outputs.
#pragma once

#include "baracuda/awq_gemm_tiled_wide.cuh"

#define BARACUDA_WIDE_SCHEDULE_PARAMETERS int whole, int split, int splits, int panel, int token_tiles, int tokens
#define BARACUDA_WIDE_SCHEDULE                                      \
  {whole, split, splits, panel, token_tiles, tokens, m, oc,         \
   (ic + baracuda::kBlockDepth - 1) / baracuda::kBlockDepth}

#define BARACUDA_WIDE_ENTRY(name, Element, kTokens, kGroups)                                                            \
  extern "C" __global__ void __launch_bounds__(baracuda::WideShape<kTokens, kGroups>::kBoundThreads, 1)                 \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), float4* __restrict__ parts,                                           \
           const __grid_constant__ baracuda::TensorMap x_map, int stages, BARACUDA_WIDE_SCHEDULE_PARAMETERS) {          \
    baracuda::awq_gemm_tiled_wide<baracuda::WideShape<kTokens, kGroups>>(                                               \
        baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, parts, &x_map, BARACUDA_WIDE_SCHEDULE, stages);  \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(baracuda::kWideFinishThreads)                                            \
      name##_finish(BARACUDA_AWQ_GEMM_PARAMETERS(Element), const float4* __restrict__ parts,                            \
                    BARACUDA_WIDE_SCHEDULE_PARAMETERS) {                                                                \
    baracuda::awq_gemm_wide_finish<baracuda::WideShape<kTokens, kGroups>>(                                              \
        baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, parts, BARACUDA_WIDE_SCHEDULE,                   \
        baracuda::Unscaled{});                                                                                          \
  }

// Two modules, those of up to kWideFewTokens tokens and the others.
#define BARACUDA_WIDE_FEW_ENTRIES(prefix, Element, kGroups)             \
  BARACUDA_WIDE_ENTRY(prefix##_t64_g##kGroups, Element, 64, kGroups)    \
  BARACUDA_WIDE_ENTRY(prefix##_t96_g##kGroups, Element, 96, kGroups)    \
  BARACUDA_WIDE_ENTRY(prefix##_t128_g##kGroups, Element, 128, kGroups)  \
  BARACUDA_WIDE_ENTRY(prefix##_t160_g##kGroups, Element, 160, kGroups)

#define BARACUDA_WIDE_MANY_ENTRIES(prefix, Element, kGroups)            \
  BARACUDA_WIDE_ENTRY(prefix##_t192_g##kGroups, Element, 192, kGroups)  \
  BARACUDA_WIDE_ENTRY(prefix##_t224_g##kGroups, Element, 224, kGroups)  \
  BARACUDA_WIDE_ENTRY(prefix##_t256_g##kGroups, Element, 256, kGroups)
