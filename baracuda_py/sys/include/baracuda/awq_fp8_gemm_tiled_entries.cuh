// The entry points of awq_fp8_gemm_tiled.cuh for one element of outputs and number of groups.
//
// oc % 8 == 0, ic % 32 == 0. An entry's name has its tokens (t) and groups of a block of 128 input channels (g). Tiles,
// `whole`, `split`, `splits`, `panel` and parts are those of awq_gemm_tiled_wide_entries.cuh, with t tokens a tile. x_map
// is x as (1, m, ic) of bytes with boxes of (1, tokens, 128), swizzled over 128 bytes; `tokens` is t where there are more than
// t, else a multiple of 8, and with t > 64 more than t / 2. x_scales are the factors of x's rows.
//
// kFp8Threads threads. Dynamic shared memory: kFp8FixedBytes, and `stages` times 128 * t + 4 * (2048 + 80 g) bytes, rounded up
// to a multiple of 1024; two or more, at most kFp8MaxStages.
//
// The entry `_finish`, grid (split * t / 8, 1, 1), kWideFinishThreads threads, 128 * kWideFinishTokens bytes of dynamic shared
// memory, adds the parts of split tiles, in their order, and stores the outputs.
#pragma once

#include "baracuda/awq_fp8_gemm_tiled.cuh"

#define BARACUDA_FP8_PARAMETERS(Element)                                                                               \
  const unsigned *__restrict__ weights, const float *x_scales, const Element *__restrict__ bias,          \
      Element *__restrict__ y, int m, int ic, int oc, long long ldy, int scales_bf16, int epilogue, int whole, int split, \
      int splits, int panel, int tokens
#define BARACUDA_FP8_OPERANDS(Element)                                                                                 \
  baracuda::AwqGemmOperands<Element>{nullptr, weights, nullptr, nullptr, bias, y, m, ic, oc, 0, 0, ldy, scales_bf16 != 0, \
                                     epilogue}
// Token tiles are counted here, by a constant: as a parameter they cost registers.
#define BARACUDA_FP8_SCHEDULE(kTokens)                                                                                 \
  baracuda::WideSchedule{whole, split, splits, panel,                                                                  \
                         static_cast<int>((static_cast<long long>(m) + kTokens - 1) / kTokens), tokens, m, oc,         \
                         static_cast<int>((static_cast<long long>(ic) + baracuda::kBlockDepth - 1) / baracuda::kBlockDepth)}

#define BARACUDA_FP8_ENTRY(name, Element, kTokens, kGroups)                                                            \
  extern "C" __global__ void __launch_bounds__(baracuda::kFp8Threads, 1)                                               \
      name(BARACUDA_FP8_PARAMETERS(Element), float4* __restrict__ parts,                                               \
           const __grid_constant__ baracuda::TensorMap x_map, int stages) {                                            \
    baracuda::awq_fp8_gemm_tiled<baracuda::Fp8Shape<kTokens, kGroups>>(                                                \
        BARACUDA_FP8_OPERANDS(Element), baracuda::TokenScales{x_scales, m}, parts, &x_map,                             \
        BARACUDA_FP8_SCHEDULE(kTokens), stages);                                                                       \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(baracuda::kWideFinishThreads)                                           \
      name##_finish(BARACUDA_FP8_PARAMETERS(Element), const float4* __restrict__ parts) {                              \
    baracuda::awq_gemm_wide_finish<baracuda::Fp8Shape<kTokens, kGroups>>(                                              \
        BARACUDA_FP8_OPERANDS(Element), parts, BARACUDA_FP8_SCHEDULE(kTokens), baracuda::TokenScales{x_scales, m});    \
  }

#define BARACUDA_FP8_ENTRIES(prefix, Element, kGroups)                \
  BARACUDA_FP8_ENTRY(prefix##_t64_g##kGroups, Element, 64, kGroups)   \
  BARACUDA_FP8_ENTRY(prefix##_t128_g##kGroups, Element, 128, kGroups) \
  BARACUDA_FP8_ENTRY(prefix##_t256_g##kGroups, Element, 256, kGroups)
