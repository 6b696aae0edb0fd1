// The tile kernel of awq_gemm: x as mma operand A, dequantised weights as operand B, k cut over blockIdx.z.
//
// One CTA computes kTileM x 128 outputs over one range of k. A ring of cp.async stages holds x, packed
// weights, scales and zeros of kTileK input channels each. k advances in steps of 32: a group, and a range of
// k, starts and ends on such a step, so a step never mixes groups. q - z is exact; f32 accumulators are
// scaled once a group.
//
// Columns of a warp's four n8 tiles are chosen so that a lane owns 8 neighbouring outputs and the words'
// nibbles need no shuffle: tile j, column c is output channel 8 * (c / 2) + 2 * j + c % 2 of the warp's 32.
#pragma once

#include "baracuda/awq_gemm_splitk_tile.cuh"
#include "baracuda/int4_pair.cuh"
#include "baracuda/mma.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

constexpr int kMmaK = 16;

// One lane's zero points of a group, ready for `weight_fragments`, one a n8 tile.
template <WeightLayout kLayout, typename Element>
__device__ __forceinline__ void zero_terms(unsigned zeros_word, int parity, unsigned (&terms)[kTilesN]) {
  using Pair = Int4Pair<Element>;
  if constexpr (kLayout == WeightLayout::kOcMajor) {  // natural: channel 2 * j + parity
    const unsigned own = zeros_word >> (kNibbleBits * parity);
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) terms[j] = Pair::byte_zero_term(nibble(own, 2 * j));
  } else {  // channel 2 * j + parity lies at position j + 4 * parity
    const unsigned own = zeros_word >> (4 * kNibbleBits * parity);
    terms[0] = Pair::template zero_term<0>(nibble(own, 0));
    terms[1] = Pair::template zero_term<1>(nibble(own, 1));
    terms[2] = Pair::template zero_term<2>(nibble(own, 2));
    terms[3] = Pair::template zero_term<3>(nibble(own, 3));
  }
}

// Operand B of one step: (k16, n8 tile, register).
using WeightFragments = unsigned[kStepK / kMmaK][kTilesN][2];

template <WeightLayout kLayout, typename Tile, typename Element>
__device__ __forceinline__ void weight_fragments(const char* s_weights, int warp_column, int step,
                                                 const unsigned (&terms)[kTilesN],
                                                 WeightFragments& fragments) {
  using Pair = Int4Pair<Element>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int column = lane / 4;
  const int quarter = lane % 4;
  if constexpr (kLayout == WeightLayout::kOcMajor) {
    const unsigned selector = Pair::byte_selector(quarter);
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
      const int row = warp_column + 8 * (column / 2) + 2 * j + column % 2;
      const uint4 words =
          *reinterpret_cast<const uint4*>(s_weights + (row * Tile::kSteps + step) * kChunkBytes);
      fragments[0][j][0] = Pair::byte_pair(words.x, selector, terms[j]);
      fragments[0][j][1] = Pair::byte_pair(words.y, selector, terms[j]);
      fragments[1][j][0] = Pair::byte_pair(words.z, selector, terms[j]);
      fragments[1][j][1] = Pair::byte_pair(words.w, selector, terms[j]);
    }
  } else {
    const unsigned selector =
        column % 2 == 0 ? 0x5410u : 0x7632u;  // the half of each word with the lane's channels
    const unsigned* s_words = reinterpret_cast<const unsigned*>(s_weights) +
                              (step * kStepK + 2 * quarter) * Tile::kHfPitchWords +
                              warp_column / kNibblesPerWord + column / 2;
#pragma unroll
    for (int k16 = 0; k16 < kStepK / kMmaK; ++k16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned* s_pair = s_words + (k16 * kMmaK + half * 8) * Tile::kHfPitchWords;
        const unsigned spread = __byte_perm(s_pair[0], s_pair[Tile::kHfPitchWords], selector);
        fragments[k16][0][half] = Pair::template spread_pair<0>(spread, terms[0]);
        fragments[k16][1][half] = Pair::template spread_pair<1>(spread, terms[1]);
        fragments[k16][2][half] = Pair::template spread_pair<2>(spread, terms[2]);
        fragments[k16][3][half] = Pair::template spread_pair<3>(spread, terms[3]);
      }
    }
  }
}

// sums += scale * partial, partial = 0. Registers 0 and 1 of tile j are channels 2 * j and 2 * j + 1 of the
// lane's 8.
template <int kTilesM>
__device__ __forceinline__ void fold_group(float (&sums)[kTilesM][kTilesN][4],
                                           float (&partial)[kTilesM][kTilesN][4], const uint4& scales,
                                           bool scales_bf16) {
  const unsigned pairs[kTilesN] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
  for (int j = 0; j < kTilesN; ++j) {
    const float2 scale = scale_pair_to_f32(pairs[j], scales_bf16);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        sums[i][j][r] = fmaf(partial[i][j][r], r % 2 == 0 ? scale.x : scale.y, sums[i][j][r]);
        partial[i][j][r] = 0.0f;
      }
    }
  }
}

template <WeightLayout kLayout, typename Tile, typename Element>
__device__ __forceinline__ void awq_gemm_splitk(const AwqGemmOperands<Element>& operands,
                                                float* __restrict__ g_partials) {  // (split_k, m, oc)
  char* s_ring = dynamic_shared<char>();
  constexpr int kTilesM = Tile::kTilesM;
  const SplitKRange range = splitk_range<Tile>(operands.m, operands.ic, operands.oc);
  const int tiles = (range.k_end - range.k_begin + Tile::kTileK - 1) / Tile::kTileK;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp_row = warp / Tile::kWarpsN * Tile::kWarpM;
  const int warp_column = warp % Tile::kWarpsN * kWarpN;
  const unsigned s_ring_address = shared_address(s_ring);

  auto copy_stage = [&](int tile) {
    if (tile < tiles) {
      const int k = range.k_begin + tile * Tile::kTileK;
      const unsigned s_stage = s_ring_address + tile % Tile::kStages * Tile::kStageBytes;
      copy_x<Tile>(operands, range, k, s_stage);
      copy_weights<kLayout, Tile>(operands, range, k, s_stage + Tile::kWeightOffset);
      copy_groups<Tile>(operands, range, k, s_stage + Tile::kGroupOffset);
    }
    cp_async_commit();  // an empty group past the end keeps the count of groups that are waited for
  };

  float sums[kTilesM][kTilesN][4] = {};
  float partial[kTilesM][kTilesN][4] = {};
  unsigned terms[kTilesN] = {};
  uint4 scales = make_uint4(0, 0, 0, 0);
  int group_end = range.k_begin;

#pragma unroll 1
  for (int tile = 0; tile < Tile::kStages - 1; ++tile) copy_stage(tile);

#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // stage `tile` is visible to all, and all have left the one that is overwritten next
    copy_stage(tile + Tile::kStages - 1);

    const int stage = tile % Tile::kStages;
    const char* s_stage = s_ring + stage * Tile::kStageBytes;
    const unsigned s_x = s_ring_address + stage * Tile::kStageBytes;
#pragma unroll(kTilesM == 1 ? Tile::kSteps : 1)
    for (int step = 0; step < Tile::kSteps; ++step) {
      const int k = range.k_begin + tile * Tile::kTileK + step * kStepK;
      if (k >= range.k_end) break;
      if (k == group_end) {
        group_end = k == range.k_begin ? (k / operands.group + 1) * operands.group : k + operands.group;
        const char* s_group = s_stage + Tile::kGroupOffset + step * Tile::kGroupBytes;
        const unsigned zeros_word = *reinterpret_cast<const unsigned*>(
            s_group + Tile::kScaleBytes + (warp_column / kNibblesPerWord + lane / 8) * 4);
        zero_terms<kLayout, Element>(zeros_word, lane / 4 % 2, terms);
        scales = *reinterpret_cast<const uint4*>(s_group +
                                                 (warp_column / kNibblesPerWord + lane % 4) * kChunkBytes);
      }

      WeightFragments b;
      weight_fragments<kLayout, Tile, Element>(s_stage + Tile::kWeightOffset, warp_column, step, terms, b);
#pragma unroll
      for (int k16 = 0; k16 < kStepK / kMmaK; ++k16) {
        const int chunk = (step * kStepK + k16 * kMmaK) / kChunkElements + lane / 16;
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          unsigned a[4];
          ldmatrix_x4(a, s_x + x_offset<Tile>(warp_row + i * 16 + lane % 16, chunk));
#pragma unroll
          for (int j = 0; j < kTilesN; ++j)
            mma_m16n8k16<Element>(partial[i][j], a, b[k16][j][0], b[k16][j][1]);
        }
      }
      if (k + kStepK == group_end || k + kStepK == range.k_end) {
        fold_group<kTilesM>(sums, partial, scales, operands.scales_bf16);
      }
    }
  }

  cp_async_wait<0>();
  __syncthreads();                                   // the ring becomes the buffer of finished sums
  float* s_sums = reinterpret_cast<float*>(s_ring);  // (kTileM, kTileN), pitch kSumPitch
#pragma unroll
  for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* s_row = s_sums + (warp_row + i * 16 + half * 8 + lane / 4) * Tile::kSumPitch + warp_column +
                     lane % 4 * kOcGrain;
      const int r = 2 * half;
      *reinterpret_cast<float4*>(s_row) =
          make_float4(sums[i][0][r], sums[i][0][r + 1], sums[i][1][r], sums[i][1][r + 1]);
      *reinterpret_cast<float4*>(s_row + 4) =
          make_float4(sums[i][2][r], sums[i][2][r + 1], sums[i][3][r], sums[i][3][r + 1]);
    }
  }
  __syncthreads();

  constexpr int kPairs = kTileN / 2;
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < Tile::kTileM * kPairs; index += Tile::kThreads) {
    const long long row = range.first_row + index / kPairs;
    const long long column = range.first_column + index % kPairs * 2;
    if (row >= operands.m || column >= operands.oc) continue;
    const float2 pair =
        *reinterpret_cast<const float2*>(s_sums + index / kPairs * Tile::kSumPitch + index % kPairs * 2);
    if (gridDim.z == 1) {
      store_output_pair(operands, row, column, pair);
    } else {
      const long long slice = static_cast<long long>(blockIdx.z) * operands.m;
      *reinterpret_cast<float2*>(g_partials + (slice + row) * operands.oc + column) = pair;
    }
  }
}

}  // namespace baracuda
