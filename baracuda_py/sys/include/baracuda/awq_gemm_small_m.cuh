// The kernel of awq_gemm for OC_MAJOR weights and 1 <= m <= 8: y^T = W x^T, weights as mma operand A, the tokens as operand
// B's 8 columns.
//
// Weights go from global memory to registers and are read once. A CTA computes 16 * kTiles output channels;
// its warps share out the k blocks of 128 (warp w takes blocks w, w + warps, ...) and their sums are added in
// the order of the warps. Which lane holds what: awq_gemm_small_m_lane.cuh.
//
// A row's bits do not depend on m: token columns do not meet, and the order of k depends on ic, group and
// warps only.
#pragma once

#include "baracuda/awq_gemm_small_m_lane.cuh"
#include "baracuda/int4_pair.cuh"
#include "baracuda/mma.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

// sums += scale * partial for one m16 tile and one part.
template <typename Lane>
__device__ __forceinline__ void fold(const Lane& lane, float (&sums)[4], const float (&partial)[4],
                                     const BlockGroups& group, int tile) {
  const float upper = lane.slot_scale(group, 2 * tile);
  const float lower = lane.slot_scale(group, 2 * tile + 1);
  sums[0] = fmaf(partial[0], upper, sums[0]);
  sums[1] = fmaf(partial[1], upper, sums[1]);
  sums[2] = fmaf(partial[2], lower, sums[2]);
  sums[3] = fmaf(partial[3], lower, sums[3]);
}

// Adds one block to `sums`. What is used up is replaced by its counterpart of block `next` at once, so that
// loads stay in flight all the time.
template <typename Lane>
__device__ __forceinline__ void consume_block(const Lane& lane, BlockWeights<Lane::kTiles>& weights,
                                              uint4 (&x)[kLaneChunks], const BlockGroups (&groups)[Lane::kParts],
                                              int next, float (&sums)[Lane::kTiles][4]) {
  using Pair = Int4Pair<typename Lane::Element>;
  constexpr int kPartWords = kLaneWords / Lane::kParts;
  unsigned tokens[kLaneWords][4];  // elements i and i + 4 of a chunk, as the nibbles of a word pair up
#pragma unroll
  for (int word = 0; word < kLaneWords; ++word) {
    tokens[word][0] = join_low_halves(x[word].x, x[word].z);
    tokens[word][1] = join_high_halves(x[word].x, x[word].z);
    tokens[word][2] = join_low_halves(x[word].y, x[word].w);
    tokens[word][3] = join_high_halves(x[word].y, x[word].w);
    x[word] = lane.load_x(next, word);
  }
#pragma unroll
  for (int tile = 0; tile < Lane::kTiles; ++tile) {
    const unsigned(&upper)[kLaneWords] = weights.words[2 * tile];
    const unsigned(&lower)[kLaneWords] = weights.words[2 * tile + 1];
#pragma unroll
    for (int part = 0; part < Lane::kParts; ++part) {
      const unsigned upper_zero = nibble(groups[part].zeros, 2 * tile);
      const unsigned lower_zero = nibble(groups[part].zeros, 2 * tile + 1);
      const unsigned upper_even = Pair::template zero_term<0>(upper_zero);
      const unsigned upper_odd = Pair::template zero_term<1>(upper_zero);
      const unsigned lower_even = Pair::template zero_term<0>(lower_zero);
      const unsigned lower_odd = Pair::template zero_term<1>(lower_zero);
      float partial[4] = {};
#pragma unroll
      for (int word = part * kPartWords; word < (part + 1) * kPartWords; ++word) {
        const unsigned first[4] = {Pair::template spread_pair<0>(upper[word], upper_even),
                                   Pair::template spread_pair<0>(lower[word], lower_even),
                                   Pair::template spread_pair<1>(upper[word], upper_odd),
                                   Pair::template spread_pair<1>(lower[word], lower_odd)};
        mma_m16n8k16<typename Lane::Element>(partial, first, tokens[word][0], tokens[word][1]);
        const unsigned second[4] = {Pair::template spread_pair<2>(upper[word], upper_even),
                                    Pair::template spread_pair<2>(lower[word], lower_even),
                                    Pair::template spread_pair<3>(upper[word], upper_odd),
                                    Pair::template spread_pair<3>(lower[word], lower_odd)};
        mma_m16n8k16<typename Lane::Element>(partial, second, tokens[word][2], tokens[word][3]);
      }
      fold(lane, sums[tile], partial, groups[part], tile);
    }
    lane.load_weights_slot(next, 2 * tile, weights.words[2 * tile]);
    lane.load_weights_slot(next, 2 * tile + 1, weights.words[2 * tile + 1]);
  }
}

template <int kTiles, int kParts, typename Element>
__device__ __forceinline__ void awq_gemm_small_m(const AwqGemmOperands<Element>& operands) {
  using Lane = SmallMLane<kTiles, kParts, Element>;
  float* s_sums = dynamic_shared<float>();  // (warps, kMaxTokens, kChannels)
  const int lane_index = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int warps = static_cast<int>(blockDim.x) / kWarpLanes;
  const int column = lane_index / 4;
  const int quarter = lane_index % 4;
  const long long first_channel = static_cast<long long>(blockIdx.x) * Lane::kChannels;
  const long long channel = first_channel + 2 * kTiles * column;
  const long long first_word = channel * (operands.ic / kNibblesPerWord);
  const Lane lane{operands, column, quarter, channel, channel < operands.oc, operands.weights + first_word};

  const int blocks = (operands.ic + kBlockK - 1) / kBlockK;
  float sums[kTiles][4] = {};
  BlockWeights<kTiles> weights = {};
  uint4 x[kLaneChunks];
  BlockGroups next_groups[kParts];
  lane.load_weights(warp, weights);
#pragma unroll
  for (int chunk = 0; chunk < kLaneChunks; ++chunk) x[chunk] = lane.load_x(warp, chunk);
  lane.load_groups(warp, next_groups);

#pragma unroll 1
  for (int block = warp; block < blocks; block += warps) {
    BlockGroups groups[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) groups[part] = next_groups[part];
    const int next = block + warps;  // past the end, loads give zeros and read nothing
    lane.load_groups(next, next_groups);
    consume_block(lane, weights, x, groups, next, sums);
  }

  float* s_warp = s_sums + warp * kMaxTokens * Lane::kChannels;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = 2 * kTiles * column + 2 * tile + half;
      s_warp[2 * quarter * Lane::kChannels + slot] = sums[tile][2 * half];
      s_warp[(2 * quarter + 1) * Lane::kChannels + slot] = sums[tile][2 * half + 1];
    }
  }
  __syncthreads();

  constexpr int kPairs = Lane::kChannels / 2;
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < operands.m * kPairs;
       index += static_cast<int>(blockDim.x)) {
    const int token = index / kPairs;
    const int pair = index % kPairs * 2;
    if (first_channel + pair >= operands.oc) continue;
    const float* s_pair = s_sums + token * Lane::kChannels + pair;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
    for (int part = 0; part < warps; ++part) {
      const float2 partial = *reinterpret_cast<const float2*>(s_pair + part * kMaxTokens * Lane::kChannels);
      sum.x += partial.x;
      sum.y += partial.y;
    }
    store_output_pair(operands, token, first_channel + pair, sum);
  }
}

}  // namespace baracuda
