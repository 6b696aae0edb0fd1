// The tile kernel of awq_gemm for TILED weights (awq_tiles.cuh): y^T = W x^T, weights as mma operand A, tokens as operand
// B's columns, k cut over blockIdx.z.
//
// A CTA computes 128 output channels of kTokens tokens over one range of k. A ring of cp.async stages holds a block of
// 128 input channels each: two tiles' packed weights, which are contiguous a tile, and x. Two slices of four warps take half
// of the block's input channels each, so that a warp has 64 channels of half of the tokens: what it reads of shared memory,
// and makes of weights, serves as many products as its registers hold sums. The slices' sums are added in the end.
//
// A weight is (q - z) * s, rounded to the element's type once; sums are f32, over all of the range.
//
// With one range, a row's bits do not depend on m: tokens do not meet, and input channels are added in the same order for
// any kTokens.
#pragma once

#include "baracuda/awq_gemm_sums.cuh"
#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kTiledTileChannels, 128);  // output channels of a CTA

// Shapes of one entry point, and where a stage keeps what.
template <int kTokenCount, int kGroupCount>
struct TiledTile {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kStages = 2;  // one is multiplied, the other filled
  static constexpr int kSlices = 2;      // of a block's input channels
  static constexpr int kTokenWarps = 2;  // of a slice
  static constexpr int kTiles = kTiledTileChannels / kTileChannels;
  static constexpr int kThreads = kSlices * kTokenWarps * kTiles * kWarpLanes;
  static constexpr int kWarpTokens = kTokens / kTokenWarps;
  static constexpr int kTilesM = kTileChannels / 16;  // m16 tiles of a warp
  static constexpr int kTilesN = kWarpTokens / 8;     // n8 tiles of a warp
  static constexpr int kSteps = kBlockDepth / kSlices / 16;
  static constexpr int kSliceGroups = kGroups > kSlices ? kGroups / kSlices : 1;
  static constexpr int kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr int kWeightBytes = kTiles * kTileBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kTokenBytes;
  // Four more channels a token spread a warp's stores over the banks.
  static constexpr int kSumPitch = kTiledTileChannels + 4;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = kTokens * kSumPitch * 4;
  static_assert(kSumBytes <= kRingBytes, "the sums take the place of the ring");
  static_assert(kRingBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 give a CTA at most 99 KiB of shared memory");
  static_assert(kTilesN % 2 == 0, "ldmatrix gives two n8 tiles of a k16 step");
};

// The part of the problem that one CTA computes: blocks [first, end) of 128 input channels.
struct TiledRange {
  long long first_channel;
  long long first_token;
  int first;
  int end;
};

// Tokens first: CTAs that read the same weights run side by side.
template <typename Tile>
__device__ __forceinline__ TiledRange tiled_range(int m, int ic) {
  const unsigned token_tiles = (static_cast<unsigned>(m) + Tile::kTokens - 1) / Tile::kTokens;
  const int blocks = (ic + kBlockDepth - 1) / kBlockDepth;
  const int splits = static_cast<int>(gridDim.z);
  const int split = static_cast<int>(blockIdx.z);
  const int even = blocks / splits;
  const int longer = blocks - even * splits;  // the first `longer` ranges have one block more
  TiledRange range;
  range.first_channel = static_cast<long long>(blockIdx.x / token_tiles) * kTiledTileChannels;
  range.first_token = static_cast<long long>(blockIdx.x % token_tiles) * Tile::kTokens;
  range.first = split * even + (split < longer ? split : longer);
  range.end = range.first + even + (split < longer ? 1 : 0);
  return range;
}

// What a thread copies of each block: where the next one's pieces lie. What lies beyond oc, m and ic is 0.
template <typename Tile, typename Element>
struct TiledCopies {
  static constexpr int kPieces = Tile::kWeightBytes / kLaneBytes;
  static constexpr int kWeightPasses = (kPieces + Tile::kThreads - 1) / Tile::kThreads;
  static constexpr int kTokenPasses = Tile::kTokens * kTokenChunks / Tile::kThreads;
  static constexpr int kPassTokens = Tile::kThreads / kTokenChunks;

  const AwqGemmOperands<Element>& operands;
  const unsigned char* g_weights;  // the thread's first piece
  const Element* g_x;              // its chunk of its first token
  long long tile_bytes;            // of a tile, all of ic
  int tokens;                      // that there are, from its first on
  int tiles;                       // that there are
  int k;

  __device__ __forceinline__ TiledCopies(const AwqGemmOperands<Element>& all, const TiledRange& range) : operands(all) {
    const long long columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
    const long long first_tile = range.first_channel / kTileChannels;
    tile_bytes = columns * Tile::kTileBytes;
    tiles = operands.oc - range.first_channel > kTileChannels ? Tile::kTiles : 1;
    g_weights = reinterpret_cast<const unsigned char*>(operands.weights) + first_tile * tile_bytes +
                static_cast<long long>(range.first) * Tile::kTileBytes;
    const int token = static_cast<int>(threadIdx.x) / kTokenChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kTokenChunks;
    const long long left = operands.m - range.first_token - token;
    tokens = left < Tile::kTokens ? static_cast<int>(left) : Tile::kTokens;
    k = range.first * kBlockDepth + chunk * kChunkChannels;
    g_x = operands.x + (range.first_token + token) * operands.ldx + k;
  }

  // Copies one of kParts parts of a block; with the last of them goes on to the next. One that is not `present` is 0.
  template <int kParts>
  __device__ __forceinline__ void copy(unsigned s_stage, int part, bool present) {
#pragma unroll
    for (int pass = part; pass < kWeightPasses; pass += kParts) {
      const int piece = pass * Tile::kThreads + static_cast<int>(threadIdx.x);
      const int tile = piece / (Tile::kTileBytes / kLaneBytes);
      const long long offset = tile * tile_bytes + piece % (Tile::kTileBytes / kLaneBytes) * kLaneBytes;
      if (piece < kPieces) cp_async_16(s_stage + piece * kLaneBytes, g_weights + offset, present && tile < tiles);
    }
    const int first = static_cast<int>(threadIdx.x) / kTokenChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kTokenChunks;
#pragma unroll
    for (int pass = part; pass < kTokenPasses; pass += kParts) {
      const int token = pass * kPassTokens;
      cp_async_16(s_stage + Tile::kWeightBytes + token_offset(first + token, chunk), g_x + token * operands.ldx,
                  present && token < tokens && k < operands.ic);
    }
    if (part + 1 < kParts) return;
    g_weights += Tile::kTileBytes;
    g_x += kBlockDepth;
    k += kBlockDepth;
  }
};

// A pair of scales in the type of the weights. Those of f16 weights are f16: a bf16 scale may lie beyond its range.
template <typename Element>
__device__ __forceinline__ unsigned element_scales(unsigned pair, bool scales_bf16);
template <>
__device__ __forceinline__ unsigned element_scales<__half>(unsigned pair, bool) {
  return pair;
}
template <>
__device__ __forceinline__ unsigned element_scales<__nv_bfloat16>(unsigned pair, bool scales_bf16) {
  const float2 scales = scale_pair_to_f32(pair, scales_bf16);
  return pair_from_f32<__nv_bfloat16>(scales.x, scales.y);
}

// The weights of a warp in its slice of a block, and what they are made with.
template <typename Tile, typename Element>
struct TiledSlice {
  using Pair = Int4Pair<Element>;
  static constexpr int kGroups = Tile::kSliceGroups;
  uint4 r_words[Tile::kTilesM];
  unsigned r_zeros[kGroups][Tile::kTilesM];
  unsigned r_scales[kGroups][Tile::kTilesM];  // of rows r and r + 8, of the element's type

  __device__ __forceinline__ void load(const unsigned char* s_tile, int slice, int lane, bool scales_bf16) {
    const SharedBlocks<Tile> blocks{s_tile, lane};
#pragma unroll
    for (int tile = 0; tile < Tile::kTilesM; ++tile) {
      r_words[tile] = blocks.words(tile, slice);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const int stored = Tile::kGroups > 1 ? slice * kGroups + group : 0;
        r_zeros[group][tile] = blocks.zeros(stored, tile);
        r_scales[group][tile] = element_scales<Element>(blocks.scales(stored, tile), scales_bf16);
      }
    }
  }

  __device__ __forceinline__ void fragment(int step, int tile, unsigned (&a)[4]) const {
    const uint4& words = r_words[tile];
    const unsigned word = step == 0 ? words.x : step == 1 ? words.y : step == 2 ? words.z : words.w;
    const int group = step * kGroups / Tile::kSteps;
    const unsigned upper = Pair::template zero_term<0>(nibble(r_zeros[group][tile], 0));
    const unsigned lower = Pair::template zero_term<1>(nibble(r_zeros[group][tile], 1));
    const unsigned upper_scale = join_low_halves(r_scales[group][tile], r_scales[group][tile]);
    const unsigned lower_scale = join_high_halves(r_scales[group][tile], r_scales[group][tile]);
    a[0] = fma_pair<Element>(Pair::template spread_pair<0>(word, upper), upper_scale, 0);
    a[1] = fma_pair<Element>(Pair::template spread_pair<1>(word, lower), lower_scale, 0);
    a[2] = fma_pair<Element>(Pair::template spread_pair<2>(word, upper), upper_scale, 0);
    a[3] = fma_pair<Element>(Pair::template spread_pair<3>(word, lower), lower_scale, 0);
  }
};

template <typename Tile, typename Element>
__device__ __forceinline__ void awq_gemm_tiled_tile(const AwqGemmOperands<Element>& operands,
                                                    float* __restrict__ g_partials) {  // (split_k, m, oc)
  unsigned char* s_ring = dynamic_shared<unsigned char>();
  const unsigned s_ring_address = shared_address(s_ring);
  const TiledRange range = tiled_range<Tile>(operands.m, operands.ic);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int tile = warp % Tile::kTiles;
  const int warp_token = warp / Tile::kTiles % Tile::kTokenWarps * Tile::kWarpTokens;
  const int slice = warp / (Tile::kTiles * Tile::kTokenWarps);

  TiledCopies<Tile, Element> copies(operands, range);
  copies.template copy<1>(s_ring_address, 0, range.first < range.end);
  cp_async_commit();

  float sums[Tile::kTilesM][Tile::kTilesN][4] = {};
  unsigned b[2][Tile::kTilesN][2];
  TiledSlice<Tile, Element> weights;
  // x of a k16 step of the slice, for all n8 tiles: of the two chunks of it, the lane gives one's row of a token. Tokens are
  // exchanged as `token_offset` says; eight rows on, the order is the same.
  const int odd = lane / 8 % 2;
  const unsigned s_lane = s_ring_address + Tile::kWeightBytes + (warp_token + lane / 16 * 8 + lane % 8) * kTokenBytes +
                          slice * (kTokenBytes / Tile::kSlices);
  const unsigned lane_chunk = (odd ^ lane % 8) * kLaneBytes;
  const auto load_tokens = [&](int offset, int step, unsigned(&fragments)[Tile::kTilesN][2]) {
    const unsigned s_row = s_lane + offset + (lane_chunk ^ 2 * step * kLaneBytes);
#pragma unroll
    for (int n = 0; n < Tile::kTilesN; n += 2) {
      unsigned pair[4];
      ldmatrix_x4(pair, s_row + 8 * n * kTokenBytes);
      fragments[n][0] = pair[0];
      fragments[n][1] = pair[1];
      fragments[n + 1][0] = pair[2];
      fragments[n + 1][1] = pair[3];
    }
  };
  const auto load_weights = [&](int offset) {
    weights.load(s_ring + offset + tile * Tile::kTileBytes, slice, lane, operands.scales_bf16);
  };
  int offset = 0;  // of the stage that is multiplied
  unsigned a[2][4];
  cp_async_wait<0>();
  __syncthreads();  // the stage is visible to all
  load_weights(0);
  load_tokens(0, 0, b[0]);
  weights.fragment(0, 0, a[0]);
#pragma unroll 1
  for (int block = range.first; block < range.end; ++block) {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
        // Under the products of this fragment, a part of the next block is copied, to the stage that all have left, the
        // next fragment is made, and the next step's x loaded. Past the last block there is one of zeros: branches would
        // keep the compiler from mixing these.
        if (step == 0) {
          copies.template copy<Tile::kTilesM>(s_ring_address + (Tile::kStageBytes - offset), m, block + 1 < range.end);
          if (m + 1 == Tile::kTilesM) cp_async_commit();
        }
        if (m + 1 < Tile::kTilesM) {
          weights.fragment(step, m + 1, a[(m + 1) % 2]);
        } else {
          weights.fragment((step + 1) % Tile::kSteps, 0, a[0]);
        }
        if (step + 1 < Tile::kSteps) {
          if (m == 0) load_tokens(offset, step + 1, b[(step + 1) % 2]);
        } else if (m == Tile::kTilesM - 2) {
          cp_async_wait<0>();
          __syncthreads();  // the next stage is visible to all, and all have left this one
          offset = Tile::kStageBytes - offset;
          load_weights(offset);
          load_tokens(offset, 0, b[0]);
        }
#pragma unroll
        for (int n = 0; n < Tile::kTilesN; ++n) {
          mma_m16n8k16<Element>(sums[m][n], a[m % 2], b[step % 2][n][0], b[step % 2][n][1]);
        }
      }
    }
  }

  cp_async_wait<0>();
  float* s_sums = reinterpret_cast<float*>(s_ring);  // (kTokens, channels), pitch kSumPitch
#pragma unroll
  for (int part = Tile::kSlices - 1; part >= 0; --part) {
    __syncthreads();  // the ring becomes the last slice's sums, to which the others are added
    if (slice != part) continue;
#pragma unroll
    for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kTilesN; ++n) {
        float* s_token = s_sums + (warp_token + 8 * n + lane % 4 * 2) * Tile::kSumPitch + tile * kTileChannels + 16 * m +
                         lane / 4;
        const float(&r)[4] = sums[m][n];
        const bool first = part == Tile::kSlices - 1;
        s_token[0] = first ? r[0] : s_token[0] + r[0];
        s_token[Tile::kSumPitch] = first ? r[1] : s_token[Tile::kSumPitch] + r[1];
        s_token[8] = first ? r[2] : s_token[8] + r[2];
        s_token[Tile::kSumPitch + 8] = first ? r[3] : s_token[Tile::kSumPitch + 8] + r[3];
      }
    }
  }
  __syncthreads();

  store_sums<Tile::kTokens, kTiledTileChannels, Tile::kSumPitch>(operands, g_partials, s_sums, range.first_token,
                                                                 range.first_channel, static_cast<int>(threadIdx.x),
                                                                 Tile::kThreads);
}

}  // namespace baracuda
