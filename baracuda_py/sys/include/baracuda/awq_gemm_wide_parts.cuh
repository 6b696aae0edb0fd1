// Partial sums of tiles that awq_gemm_tiled_wide.cuh and awq_fp8_gemm_tiled.cuh split (WideSchedule): how a warpgroup leaves
// them, and the second launch, which adds them.
#pragma once

#include "baracuda/awq_gemm_wide_schedule.cuh"
#include "baracuda/awq_gemm_wide_store.cuh"
#include "baracuda/global_load.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

// Where the part of a warpgroup begins: (parts, tiles of a CTA, kTokens / 8, threads), four sums of an n8 tile each.
template <typename Shape>
__device__ __forceinline__ long long part_offset(int part, int tile) {
  return (static_cast<long long>(part) * Shape::kTiles + tile) * (Shape::kTokens / 8 * kWarpgroupThreads);
}

template <typename Shape>
__device__ __forceinline__ void store_part(const float (&sums)[Shape::kSums], float4* __restrict__ g_parts, int part,
                                           int tile, int thread) {
  float4* g_part = g_parts + part_offset<Shape>(part, tile) + thread;
#pragma unroll
  for (int i = 0; i < Shape::kTokens / 8; ++i) {
    g_part[i * kWarpgroupThreads] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
  }
}

// Sums as they are.
struct Unscaled {
  template <int kSums>
  __device__ __forceinline__ void operator()(float (&)[kSums], long long, unsigned char*, int, int) const {}
};

// The second launch: the partial sums of 16 tokens and 64 channels of a tile that is split, in their order. `scale` is given
// the sums before they are finished, the first token's number, and shared memory.
template <typename Shape, typename Element, typename Scale>
__device__ __forceinline__ void awq_gemm_wide_finish(const AwqGemmOperands<Element>& operands,
                                                     const float4* __restrict__ g_parts, const WideSchedule& schedule,
                                                     const Scale& scale) {
  constexpr int kStrips = Shape::kTokens / kWideFinishTokens;
  unsigned char* s_rows = dynamic_shared<unsigned char>();  // (kWideFinishTokens, 64) of Element
  const int thread = static_cast<int>(threadIdx.x);
  const int strip = static_cast<int>(blockIdx.x) % kStrips;
  const int tile = static_cast<int>(blockIdx.x) / kStrips % Shape::kTiles;
  const int split_tile = static_cast<int>(blockIdx.x) / (kStrips * Shape::kTiles);
  const WidePlace place = schedule.template place<Shape>(schedule.whole + split_tile);
  const long long token = place.token + kWideFinishTokens * strip;
  const int end = schedule.template end<Shape>(place);
  if (token >= end) return;
  float sums[kWideFinishTokens / 2] = {};
  grid_dependency_wait();  // until the parts have been left
#pragma unroll 2
  for (int split = 0; split < schedule.splits; ++split) {
    const float4* g_part = g_parts + part_offset<Shape>(split_tile * schedule.splits + split, tile) +
                           strip * (kWideFinishTokens / 8 * kWarpgroupThreads) + thread;
#pragma unroll
    for (int i = 0; i < kWideFinishTokens / 8; ++i) {
      const float4 part = load_coherent(g_part + i * kWarpgroupThreads);
      sums[4 * i] += part.x;
      sums[4 * i + 1] += part.y;
      sums[4 * i + 2] += part.z;
      sums[4 * i + 3] += part.w;
    }
  }
  scale(sums, token, s_rows, thread, 1);
  store_warpgroup_sums<kWideFinishTokens>(operands, sums, s_rows, token, end, place.channel + tile * kTileChannels, thread,
                                          1);
}

}  // namespace baracuda
