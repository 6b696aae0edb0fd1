// The tile kernel of awq_gemm for TILED weights (awq_tiles.cuh): y^T = W x^T, weights as mma operand A, tokens as operand
// B's columns, k cut over blockIdx.z.
//
// A CTA computes 128 output channels of kTokens tokens over one range of k. Two slices of four warps take half of the input
// channels of each block of 128, so that a warp has 64 channels of half of the tokens: what it reads of shared memory, and
// makes of weights, serves as many products as its registers hold sums. A slice copies its own half of a block, weights and
// x, to a ring of its own, and has barriers of its own: slices drift apart, and one multiplies while the other waits. Their
// sums are added in the end.
//
// A weight is (q - z) * s, rounded to the element's type once; sums are f32, over all of the range.
//
// With one range, a row's bits do not depend on m: tokens do not meet, and input channels are added in the same order for
// any kTokens.
#pragma once

#include "baracuda/awq_gemm_sums.cuh"
#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kTiledTileChannels, 128);  // output channels of a CTA

// Shapes of one entry point, and where a stage of a slice keeps what: of each block of 32 output channels the nibbles, and of
// each group scales and zero points; then x.
template <int kTokenCount, int kGroupCount, int kRing>
struct TiledTile {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kStages = kRing;
  static constexpr int kSlices = 2;      // of a block's input channels
  static constexpr int kTokenWarps = 2;  // of a slice
  static constexpr int kTiles = kTiledTileChannels / kTileChannels;
  static constexpr int kSliceThreads = kTokenWarps * kTiles * kWarpLanes;
  static constexpr int kThreads = kSlices * kSliceThreads;
  static constexpr int kWarpTokens = kTokens / kTokenWarps;
  static constexpr int kTilesM = kTileChannels / 16;  // m16 tiles of a warp
  static constexpr int kTilesN = kWarpTokens / 8;     // n8 tiles of a warp
  static constexpr int kSliceDepth = kBlockDepth / kSlices;
  static constexpr int kSteps = kSliceDepth / 16;
  static constexpr int kSliceGroups = kGroups > kSlices ? kGroups / kSlices : 1;
  static constexpr int kNibbleBytes = kBlockWeightBytes / kSlices;
  static constexpr int kGroupBytes = kGroupScaleBytes + kGroupZeroBytes;
  static constexpr int kUnitBytes = kNibbleBytes + kSliceGroups * kGroupBytes;  // of a block of 32 output channels
  static constexpr int kWeightBytes = kTiles * kBlockHalves * kUnitBytes;
  static constexpr int kRowBytes = kSliceDepth * 2;  // x of a token
  static constexpr int kRowChunks = kRowBytes / kLaneBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  // Four more channels a token spread a warp's stores over the banks.
  static constexpr int kSumPitch = kTiledTileChannels + 4;
  static constexpr int kSumBytes = kTokens * kSumPitch * 4;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kSlices * kRingBytes;
  static_assert(kSumBytes <= kSharedBytes, "the sums take the place of the rings");
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

// What a thread copies of its slice of each block: where the next one's pieces lie. What lies beyond oc, m and ic is 0.
template <typename Tile, typename Element>
struct TiledCopies {
  static constexpr int kGroupPieces = Tile::kGroupBytes / kLaneBytes;  // of a group: scales, then zero points
  static constexpr int kUnitPieces = Tile::kSliceGroups * kGroupPieces;
  static constexpr int kTokenPasses = Tile::kTokens * Tile::kRowChunks / Tile::kSliceThreads;
  static constexpr int kPassTokens = Tile::kSliceThreads / Tile::kRowChunks;
  static_assert(Tile::kNibbleBytes * kBlockHalves == Tile::kSliceThreads * kLaneBytes, "a thread copies 16 bytes of a tile");
  static_assert(Tile::kTiles * kBlockHalves * kUnitPieces <= Tile::kSliceThreads, "a thread copies a piece at most");

  const AwqGemmOperands<Element>& operands;
  const unsigned char* g_nibbles;  // the thread's of the first tile
  const unsigned char* g_groups;   // its scales or zero points
  const Element* g_x;              // its chunk of its first token
  long long tile_bytes;            // of a tile, all of ic
  unsigned s_nibbles, s_groups, s_x;  // offsets in a stage
  int tokens;                      // that there are, from its first on
  int k;
  bool second;       // whether there is a second tile
  bool has_groups;

  __device__ __forceinline__ TiledCopies(const AwqGemmOperands<Element>& all, const TiledRange& range, int slice)
      : operands(all) {
    constexpr int kBytes = block_bytes(Tile::kGroups);
    const int thread = static_cast<int>(threadIdx.x) % Tile::kSliceThreads;
    const long long columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
    tile_bytes = columns * (kBlockHalves * kBytes);
    const unsigned char* g_block = reinterpret_cast<const unsigned char*>(operands.weights) +
                                   range.first_channel / kTileChannels * tile_bytes +
                                   static_cast<long long>(range.first) * (kBlockHalves * kBytes);
    second = operands.oc - range.first_channel > kTileChannels;
    const int half = thread / (2 * kWarpLanes);  // of the tile's channels
    const int m16 = thread / kWarpLanes % 2;
    const int lane = thread % kWarpLanes;
    g_nibbles = g_block + half * kBytes + ((m16 * Tile::kSlices + slice) * kWarpLanes + lane) * kLaneBytes;
    s_nibbles = half * Tile::kUnitBytes + (m16 * kWarpLanes + lane) * kLaneBytes;

    const int unit = thread / kUnitPieces;
    const int group = thread % kUnitPieces / kGroupPieces;
    const int piece = thread % kGroupPieces;
    const int stored = Tile::kGroups > 1 ? slice * Tile::kSliceGroups + group : 0;
    constexpr int kScalePieces = kGroupScaleBytes / kLaneBytes;
    has_groups = unit < kBlockHalves || (unit < Tile::kTiles * kBlockHalves && second);
    g_groups = g_block + unit / kBlockHalves * tile_bytes + unit % kBlockHalves * kBytes +
               (piece < kScalePieces ? scale_offset(stored) + piece * kLaneBytes : zero_offset(Tile::kGroups, stored));
    s_groups = unit * Tile::kUnitBytes + Tile::kNibbleBytes + group * Tile::kGroupBytes + piece * kLaneBytes;

    const int token = thread / Tile::kRowChunks;
    const int chunk = thread % Tile::kRowChunks;
    const long long left = operands.m - range.first_token - token;
    tokens = left < Tile::kTokens ? static_cast<int>(left) : Tile::kTokens;
    k = range.first * kBlockDepth + slice * Tile::kSliceDepth + chunk * kChunkChannels;
    g_x = operands.x + (range.first_token + token) * operands.ldx + k;
    s_x = Tile::kWeightBytes + token * Tile::kRowBytes + (chunk ^ token % 8) * kLaneBytes;
  }

  // Copies one of kParts parts of the next block; with the last of them goes on to the one behind. One that is not
  // `present` is 0.
  template <int kParts>
  __device__ __forceinline__ void copy(unsigned s_stage, int part, bool present) {
    if (part == 0) {
      cp_async_16(s_stage + s_nibbles, g_nibbles, present);
      cp_async_16(s_stage + s_nibbles + kBlockHalves * Tile::kUnitBytes, g_nibbles + tile_bytes, present && second);
    }
    if (part == kParts - 1 && static_cast<int>(threadIdx.x) % Tile::kSliceThreads <
                                  Tile::kTiles * kBlockHalves * kUnitPieces) {
      cp_async_16(s_stage + s_groups, g_groups, present && has_groups);
    }
#pragma unroll
    for (int pass = part; pass < kTokenPasses; pass += kParts) {
      const int token = pass * kPassTokens;
      cp_async_16(s_stage + s_x + token * Tile::kRowBytes, g_x + token * operands.ldx,
                  present && token < tokens && k < operands.ic);
    }
    if (part + 1 < kParts) return;
    g_nibbles += kBlockHalves * block_bytes(Tile::kGroups);
    g_groups += kBlockHalves * block_bytes(Tile::kGroups);
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
  unsigned r_zeros[kGroups][Tile::kTilesM];   // of rows r and r + 8, in the low byte
  unsigned r_scales[kGroups][Tile::kTilesM];  // of rows r and r + 8, of the element's type

  __device__ __forceinline__ void load(const unsigned char* s_tile, int lane, bool scales_bf16) {
#pragma unroll
    for (int pair = 0; pair < Tile::kTilesM / 2; ++pair) {
      const unsigned char* s_unit = s_tile + pair * Tile::kUnitBytes;
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        r_words[2 * pair + second] = *reinterpret_cast<const uint4*>(s_unit + (second * kWarpLanes + lane) * kLaneBytes);
      }
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const unsigned char* s_group = s_unit + Tile::kNibbleBytes + group * Tile::kGroupBytes;
        const unsigned zeros = *reinterpret_cast<const unsigned short*>(s_group + kGroupScaleBytes + lane / 4 * 2);
        r_zeros[group][2 * pair] = zeros;
        r_zeros[group][2 * pair + 1] = zeros >> 8;
        const uint2 scales = *reinterpret_cast<const uint2*>(s_group + lane / 4 * 8);
        r_scales[group][2 * pair] = element_scales<Element>(scales.x, scales_bf16);
        r_scales[group][2 * pair + 1] = element_scales<Element>(scales.y, scales_bf16);
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
  unsigned char* s_rings = dynamic_shared<unsigned char>();  // (kSlices, kStages, kStageBytes)
  const TiledRange range = tiled_range<Tile>(operands.m, operands.ic);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int tile = warp % Tile::kTiles;
  const int warp_token = warp / Tile::kTiles % Tile::kTokenWarps * Tile::kWarpTokens;
  const int slice = warp / (Tile::kTiles * Tile::kTokenWarps);
  unsigned char* s_ring = s_rings + slice * Tile::kRingBytes;
  const unsigned s_ring_address = shared_address(s_ring);

  TiledCopies<Tile, Element> copies(operands, range, slice);
#pragma unroll 1
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    copies.template copy<1>(s_ring_address + stage * Tile::kStageBytes, 0, range.first + stage < range.end);
    cp_async_commit();
  }
  const auto wait_for_stage = [&] {  // the oldest of those that are on their way
    cp_async_wait<Tile::kStages - 2>();
    partial_barrier<Tile::kSliceThreads>(slice + 1);
  };

  float sums[Tile::kTilesM][Tile::kTilesN][4] = {};
  unsigned b[2][Tile::kTilesN][2];
  TiledSlice<Tile, Element> weights;
  // x of a k16 step, for all n8 tiles: of the two chunks of it, the lane gives one's row of a token. Chunks are exchanged as
  // they are copied; eight rows on, the order is the same.
  const unsigned s_lane =
      s_ring_address + Tile::kWeightBytes + (warp_token + lane / 16 * 8 + lane % 8) * Tile::kRowBytes;
  const unsigned lane_chunk = (lane / 8 % 2 ^ lane % 8) * kLaneBytes;
  const auto load_tokens = [&](int offset, int step, unsigned(&fragments)[Tile::kTilesN][2]) {
    const unsigned s_row = s_lane + offset + (lane_chunk ^ 2 * step * kLaneBytes);
#pragma unroll
    for (int n = 0; n < Tile::kTilesN; n += 2) {
      unsigned pair[4];
      ldmatrix_x4(pair, s_row + 8 * n * Tile::kRowBytes);
      fragments[n][0] = pair[0];
      fragments[n][1] = pair[1];
      fragments[n + 1][0] = pair[2];
      fragments[n + 1][1] = pair[3];
    }
  };
  const auto load_weights = [&](int offset) {
    weights.load(s_ring + offset + tile * kBlockHalves * Tile::kUnitBytes, lane, operands.scales_bf16);
  };
  int offset = 0;                                    // of the stage that is multiplied
  int left = Tile::kRingBytes - Tile::kStageBytes;  // of the one before it, which all have left
  unsigned a[2][4];
  wait_for_stage();
  load_weights(0);
  load_tokens(0, 0, b[0]);
  weights.fragment(0, 0, a[0]);
#pragma unroll 1
  for (int block = range.first; block < range.end; ++block) {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
        // Under the products of this fragment, a part of a later block is copied, the next fragment is made, and the next
        // step's x loaded. Past the last block there are blocks of zeros: branches would keep the compiler from mixing
        // these.
        if (step == 0) {
          copies.template copy<Tile::kTilesM>(s_ring_address + left, m, block + Tile::kStages - 1 < range.end);
          if (m + 1 == Tile::kTilesM) {
            cp_async_commit();
          }
        }
        if (m + 1 < Tile::kTilesM) {
          weights.fragment(step, m + 1, a[(m + 1) % 2]);
        } else {
          weights.fragment((step + 1) % Tile::kSteps, 0, a[0]);
        }
        if (step + 1 < Tile::kSteps) {
          if (m == 0) load_tokens(offset, step + 1, b[(step + 1) % 2]);
        } else if (m == Tile::kTilesM - 2) {
          wait_for_stage();  // the next one is visible to all, and all have left this one
          left = offset;
          offset = offset + Tile::kStageBytes == Tile::kRingBytes ? 0 : offset + Tile::kStageBytes;
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

  cp_async_wait<0>();  // blocks of zeros
  float* s_sums = reinterpret_cast<float*>(s_rings);  // (kTokens, channels), pitch kSumPitch
#pragma unroll
  for (int part = Tile::kSlices - 1; part >= 0; --part) {
    __syncthreads();  // the rings become the last slice's sums, to which the others are added
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
