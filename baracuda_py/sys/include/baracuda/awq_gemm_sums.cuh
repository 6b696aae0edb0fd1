// How a CTA of awq_gemm that holds the finished sums of a tile in shared memory stores them.
#pragma once

#include "baracuda/awq_gemm.cuh"

namespace baracuda {

// Sums of `kTokens` tokens and `kChannels` channels, pitch `kPitch`, those beyond m and oc left out: outputs where ic is one
// range, else f32 partials of this range, (ranges, m, oc). Called by `threads` threads, of which this is `thread`.
template <int kTokens, int kChannels, int kPitch, typename Element>
__device__ __forceinline__ void store_sums(const AwqGemmOperands<Element>& operands, float* __restrict__ g_partials,
                                           const float* s_sums, long long first_token, long long first_channel,
                                           int thread, int threads) {
  constexpr int kPairs = kChannels / 2;
#pragma unroll 1
  for (int index = thread; index < kTokens * kPairs; index += threads) {
    const long long row = first_token + index / kPairs;
    const long long column = first_channel + index % kPairs * 2;
    if (row >= operands.m || column >= operands.oc) continue;
    const float2 pair = *reinterpret_cast<const float2*>(s_sums + index / kPairs * kPitch + index % kPairs * 2);
    if (gridDim.z == 1) {
      store_output_pair(operands, row, column, pair);
    } else {
      const long long range = static_cast<long long>(blockIdx.z) * operands.m;
      *reinterpret_cast<float2*>(g_partials + (range + row) * operands.oc + column) = pair;
    }
  }
}

}  // namespace baracuda
