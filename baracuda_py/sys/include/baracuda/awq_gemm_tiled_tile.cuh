// The tile kernel of awq_gemm for TILED weights (awq_tiles.cuh): y^T = W x^T, weights as mma operand A, tokens as operand
// B's columns, k cut over blockIdx.z.
//
// A CTA computes 128 output channels of kTokens tokens over one range of k. Two slices of four warps take half of the input
// channels of each block of 128; a warp has 32 of the output channels and all of the tokens, so that a weight is made once.
// A slice copies its own half of a block, weights and x, to a ring of its own, and has barriers of its own: slices drift
// apart, and one multiplies while the other waits. Their sums are added in the end.
//
// On an H100 the products alone take 0.80 of the time. Without the making of weights, or without the copies, it is 0.92;
// without ldmatrix, or without the barriers, it is the same.
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

// Shapes of one entry point, and where a stage of a slice keeps what: of each block of 32 output channels the nibbles, and
// of each group scales and zero points; then x.
template <int kTokenCount, int kGroupCount, int kRing>
struct TiledTile {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kStages = kRing;
  static constexpr int kSlices = 2;  // of a block's input channels
  static constexpr int kTiles = kTiledTileChannels / kTileChannels;
  static constexpr int kUnits = kTiles * kBlockHalves;  // of 32 output channels, a warp's
  static constexpr int kSliceThreads = kUnits * kWarpLanes;
  static constexpr int kThreads = kSlices * kSliceThreads;
  static constexpr int kTilesM = kBlockChannels / 16;  // m16 tiles of a warp
  static constexpr int kTilesN = kTokens / 8;          // n8 tiles
  static constexpr int kPairs = kTilesN / 2;           // of n8 tiles
  static constexpr int kSliceDepth = kBlockDepth / kSlices;
  static constexpr int kSteps = kSliceDepth / 16;
  static constexpr int kSlots = kSteps * kPairs;  // of a slice of a block
  // Pairs of n8 tiles in registers, of which the first is multiplied; a power of two, so that a block's last slot leaves
  // them where the next one's first expects them.
  static constexpr int kHeldPairs = kPairs < 4 ? 4 : kPairs;
  // The slot at which nothing of the stage is left to be read.
  static constexpr int kLastRead = kSlots - kHeldPairs + 1;
  // Every how many slots there are copies: several at a time, for the compiler puts three loads before them.
  static constexpr int kCopySlots = kLastRead >= 24 ? 8 : kLastRead < 6 ? 2 : 4;
  static constexpr int kCopyPlaces = (kLastRead + kCopySlots - 1) / kCopySlots;
  static constexpr int kWeightSlot = kLastRead > kSlots - kPairs ? kLastRead : kSlots - kPairs;
  static constexpr int kSliceGroups = kGroups > kSlices ? kGroups / kSlices : 1;
  static constexpr int kNibbleBytes = kBlockWeightBytes / kSlices;
  static constexpr int kGroupBytes = kGroupScaleBytes + kGroupZeroBytes;
  static constexpr int kUnitBytes = kNibbleBytes + kSliceGroups * kGroupBytes;
  static constexpr int kWeightBytes = kUnits * kUnitBytes;
  static constexpr int kRowBytes = kSliceDepth * 2;  // x of a token
  static constexpr int kRowChunks = kRowBytes / kLaneBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  // Four more channels a token spread a warp's stores over the banks.
  static constexpr int kSumPitch = kTiledTileChannels + 4;
  static constexpr int kSumBytes = kTokens * kSumPitch * 4;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kSlices * kRingBytes;
  static_assert(kSumBytes <= kSharedBytes, "the sums take the place of the rings");
  static_assert(kSlots % kHeldPairs == 0, "pairs keep their registers from block to block");
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

// What a thread copies of its slice of each block: where the next one's pieces lie. What lies beyond m and ic is 0.
template <typename Tile, typename Element>
struct TiledCopies {
  static constexpr int kGroupPieces = Tile::kGroupBytes / kLaneBytes;  // of a group: scales, then zero points
  static constexpr int kUnitPieces = Tile::kSliceGroups * kGroupPieces;
  static constexpr int kTokenPasses = Tile::kTokens * Tile::kRowChunks / Tile::kSliceThreads;
  static constexpr int kPassTokens = Tile::kSliceThreads / Tile::kRowChunks;
  static constexpr int kPieces = Tile::kTiles + 1 + kTokenPasses;  // of a block: nibbles, a group's, x
  // The address registers of a copy are taken some time after it is issued: in turn, they do not keep the next one waiting.
  static constexpr int kTurns = 2;
  static_assert(Tile::kNibbleBytes * kBlockHalves == Tile::kSliceThreads * kLaneBytes, "a thread copies 16 bytes of a tile");
  static_assert(Tile::kUnits * kUnitPieces <= Tile::kSliceThreads, "a thread copies a piece at most");
  static_assert(kTokenPasses % kTurns == 0, "each turn comes as often");

  const unsigned char* g_nibbles;  // the thread's of the first tile
  const unsigned char* g_groups;   // its scales or zero points
  const unsigned char* g_x[kTurns];  // its chunk of its tokens
  long long tile_bytes;            // to the second tile; 0 where there is none: its outputs are not stored
  long long turn_bytes;            // to the token of the next turn
  long long block_bytes_left;      // from the last token to the first of the next block
  unsigned s_nibbles, s_groups, s_x;  // offsets in a stage
  int passes;                      // whose token there is
  int k;
  int k_end;

  __device__ __forceinline__ TiledCopies(const AwqGemmOperands<Element>& operands, const TiledRange& range, int slice) {
    constexpr int kBytes = block_bytes(Tile::kGroups);
    const int thread = static_cast<int>(threadIdx.x) % Tile::kSliceThreads;
    const long long columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
    const long long stored_tile = columns * (kBlockHalves * kBytes);
    const unsigned char* g_block = reinterpret_cast<const unsigned char*>(operands.weights) +
                                   range.first_channel / kTileChannels * stored_tile +
                                   static_cast<long long>(range.first) * (kBlockHalves * kBytes);
    tile_bytes = operands.oc - range.first_channel > kTileChannels ? stored_tile : 0;
    const int half = thread / (2 * kWarpLanes);  // of the tile's channels
    const int m16 = thread / kWarpLanes % 2;
    const int lane = thread % kWarpLanes;
    g_nibbles = g_block + half * kBytes + ((m16 * Tile::kSlices + slice) * kWarpLanes + lane) * kLaneBytes;
    s_nibbles = half * Tile::kUnitBytes + (m16 * kWarpLanes + lane) * kLaneBytes;

    const int unit = thread / kUnitPieces % Tile::kUnits;
    const int group = thread % kUnitPieces / kGroupPieces;
    const int piece = thread % kGroupPieces;
    const int stored = Tile::kGroups > 1 ? slice * Tile::kSliceGroups + group : 0;
    constexpr int kScalePieces = kGroupScaleBytes / kLaneBytes;
    g_groups = g_block + unit / kBlockHalves * tile_bytes + unit % kBlockHalves * kBytes +
               (piece < kScalePieces ? scale_offset(stored) + piece * kLaneBytes : zero_offset(Tile::kGroups, stored));
    s_groups = unit * Tile::kUnitBytes + Tile::kNibbleBytes + group * Tile::kGroupBytes + piece * kLaneBytes;

    const int token = thread / Tile::kRowChunks;
    const int chunk = thread % Tile::kRowChunks;
    const long long left = operands.m - range.first_token - token;
    passes = left < Tile::kTokens ? (static_cast<int>(left) + kPassTokens - 1) / kPassTokens : kTokenPasses;
    k = range.first * kBlockDepth + slice * Tile::kSliceDepth + chunk * kChunkChannels;
    const long long end = static_cast<long long>(range.end) * kBlockDepth;
    k_end = end < operands.ic ? static_cast<int>(end) : operands.ic;
    const long long pass_bytes = kPassTokens * operands.ldx * 2;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      g_x[turn] = reinterpret_cast<const unsigned char*>(operands.x + (range.first_token + token) * operands.ldx + k) +
                  turn * pass_bytes;
    }
    turn_bytes = kTurns * pass_bytes;
    block_bytes_left = kBlockDepth * 2 - (kTokenPasses - kTurns) * pass_bytes;
    s_x = Tile::kWeightBytes + token * Tile::kRowBytes + (chunk ^ token % 8) * kLaneBytes;
  }

  // The passes over tokens that copy something of the next block: none past the range.
  __device__ __forceinline__ int present() const { return k < k_end ? passes : 0; }

  // Copies pieces [kFirst, kEnd) of the next block, in their order; the last goes on to the block behind. Weights past the
  // range are 0.
  template <int kFirst, int kEnd>
  __device__ __forceinline__ void copy(unsigned s_stage, int present, bool any) {
    if constexpr (kFirst < kEnd) {
      copy<kFirst>(s_stage, present, any);
      copy<kFirst + 1, kEnd>(s_stage, present, any);
    }
  }

  template <int kPiece>
  __device__ __forceinline__ void copy(unsigned s_stage, int present, bool any) {
    if constexpr (kPiece < Tile::kTiles) {
      cp_async_16(s_stage + s_nibbles + kPiece * (kBlockHalves * Tile::kUnitBytes), g_nibbles + kPiece * tile_bytes, any);
      if (kPiece == Tile::kTiles - 1) g_nibbles += kBlockHalves * block_bytes(Tile::kGroups);
    } else if constexpr (kPiece == Tile::kTiles) {
      if (static_cast<int>(threadIdx.x) % Tile::kSliceThreads < Tile::kUnits * kUnitPieces) {
        cp_async_16(s_stage + s_groups, g_groups, any);
      }
      g_groups += kBlockHalves * block_bytes(Tile::kGroups);
    } else {
      constexpr int kPass = kPiece - Tile::kTiles - 1;
      const unsigned char*& g_token = g_x[kPass % kTurns];
      cp_async_16(s_stage + s_x + kPass * (kPassTokens * Tile::kRowBytes), g_token, kPass < present);
      g_token += kPass + kTurns < kTokenPasses ? turn_bytes : block_bytes_left;
      // Else the compiler makes each address from the first one, by multiplication.
      asm volatile("" : "+l"(g_token));
    }
    if (kPiece == kPieces - 1) k += kBlockDepth;
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
  unsigned r_zeros[kGroups];
  uint2 r_scales[kGroups];
  // Of the group in use, by tile: rows r and r + 8.
  unsigned r_terms[Tile::kTilesM][2];
  unsigned r_factors[Tile::kTilesM][2];

  __device__ __forceinline__ void load(const unsigned char* s_unit, int lane) {
#pragma unroll
    for (int tile = 0; tile < Tile::kTilesM; ++tile) {
      r_words[tile] = *reinterpret_cast<const uint4*>(s_unit + (tile * kWarpLanes + lane) * kLaneBytes);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const unsigned char* s_group = s_unit + Tile::kNibbleBytes + group * Tile::kGroupBytes;
      r_zeros[group] = *reinterpret_cast<const unsigned short*>(s_group + kGroupScaleBytes + lane / 4 * 2);
      r_scales[group] = *reinterpret_cast<const uint2*>(s_group + lane / 4 * 8);
    }
  }

  // Takes the group of a step, where it is not that of the one before.
  __device__ __forceinline__ void take_group(int step, bool scales_bf16) {
    if (step * kGroups % Tile::kSteps != 0) return;
    const int group = step * kGroups / Tile::kSteps;
    const unsigned zeros = join_low_halves(r_zeros[group], r_zeros[group]);
    r_terms[0][0] = Pair::template stored_zero_term<0>(zeros);
    r_terms[0][1] = Pair::template stored_zero_term<1>(zeros);
    r_terms[1][0] = Pair::template stored_zero_term<2>(zeros);
    r_terms[1][1] = Pair::template stored_zero_term<3>(zeros);
#pragma unroll
    for (int tile = 0; tile < Tile::kTilesM; ++tile) {
      const unsigned scales =
          element_scales<Element>(tile == 0 ? r_scales[group].x : r_scales[group].y, scales_bf16);
      r_factors[tile][0] = join_low_halves(scales, scales);
      r_factors[tile][1] = join_high_halves(scales, scales);
    }
  }

  // Registers [kFirst, kEnd) of a step's fragments, one m16 tile's after the other.
  template <int kStep, int kFirst, int kEnd>
  __device__ __forceinline__ void make(unsigned (&a)[Tile::kTilesM][4]) const {
    if constexpr (kFirst < kEnd) {
      constexpr int kTile = kFirst / 4;
      constexpr int kRegister = kFirst % 4;
      const uint4& words = r_words[kTile];
      const unsigned word = kStep == 0 ? words.x : kStep == 1 ? words.y : kStep == 2 ? words.z : words.w;
      a[kTile][kRegister] = fma_pair<Element>(Pair::template spread_pair<kRegister>(word, r_terms[kTile][kRegister % 2]),
                                              r_factors[kTile][kRegister % 2], 0);
      make<kStep, kFirst + 1, kEnd>(a);
    }
  }
};

// The first of `count` things that belong to a place, of `places` over which they are spread.
__host__ __device__ __forceinline__ constexpr int first_of(int place, int count, int places) {
  return place < places ? (place * count + places - 1) / places : count;
}

// What a warp multiplies: of its slice of each block, slot by slot, the 32 output channels of its unit with two n8 tiles of
// tokens. Under the products of a slot, pieces of a later block are copied, x of a later slot is loaded, and weights of
// the next step are made.
template <typename Tile, typename Element>
struct TiledProducts {
  using Copies = TiledCopies<Tile, Element>;
  static constexpr int kRegisters = Tile::kTilesM * 4;  // of a step's weights

  Copies copies;
  TiledSlice<Tile, Element> weights;
  float sums[Tile::kTilesM][Tile::kTilesN][4];
  unsigned a[2][Tile::kTilesM][4];  // of a step, and of the next one
  unsigned b[Tile::kHeldPairs][4];
  const unsigned char* s_ring;
  unsigned s_ring_address;
  unsigned s_rows[Tile::kSteps];  // of x in the first stage, that the lane gives to ldmatrix: of the first pair of n8 tiles
  int lane;
  int unit;
  int slice;
  bool scales_bf16;
  int offset;  // of the stage that is multiplied
  int left;    // of the one before it, which all have left

  __device__ __forceinline__ TiledProducts(const AwqGemmOperands<Element>& operands, const TiledRange& range,
                                           unsigned char* s_rings)
      : copies(operands, range, static_cast<int>(threadIdx.x) / Tile::kSliceThreads), sums{} {
    lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    unit = static_cast<int>(threadIdx.x) / kWarpLanes % Tile::kUnits;
    slice = static_cast<int>(threadIdx.x) / Tile::kSliceThreads;
    scales_bf16 = operands.scales_bf16;
    s_ring = s_rings + slice * Tile::kRingBytes;
    s_ring_address = shared_address(s_ring);
    // Of the two chunks of a k16 step, the lane gives one's row of a token. Chunks are exchanged as they are copied; eight
    // rows on, the order is the same.
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      s_rows[step] = s_ring_address + Tile::kWeightBytes + (lane / 16 * 8 + lane % 8) * Tile::kRowBytes +
                     ((2 * step + lane / 8 % 2) ^ lane % 8) * kLaneBytes;
      asm volatile("" : "+r"(s_rows[step]));  // else the compiler makes each anew from the first
    }
    offset = 0;
    left = Tile::kRingBytes - Tile::kStageBytes;
  }

  // Waits for the oldest stage of those that are on their way.
  __device__ __forceinline__ void wait() const {
    cp_async_wait<Tile::kStages - 2>();
    partial_barrier<Tile::kSliceThreads>(slice + 1);
  }

  template <int kSlot>
  __device__ __forceinline__ void load_pair() {
    ldmatrix_x4(b[kSlot % Tile::kHeldPairs],
                s_rows[kSlot / Tile::kPairs] + offset + kSlot % Tile::kPairs * 16 * Tile::kRowBytes);
  }
  template <int kSlot, int kEnd>
  __device__ __forceinline__ void load_pairs() {
    if constexpr (kSlot < kEnd) {
      load_pair<kSlot>();
      load_pairs<kSlot + 1, kEnd>();
    }
  }

  __device__ __forceinline__ void load_weights() { weights.load(s_ring + offset + unit * Tile::kUnitBytes, lane); }

  // Copies the first blocks, and takes what the first slot needs.
  __device__ __forceinline__ void begin(int blocks) {
#pragma unroll 1
    for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
      copies.template copy<0, Copies::kPieces>(s_ring_address + stage * Tile::kStageBytes, copies.present(), stage < blocks);
      cp_async_commit();
    }
    wait();
    load_weights();
    load_pairs<0, Tile::kHeldPairs - 1>();
    weights.take_group(0, scales_bf16);
    weights.template make<0, 0, kRegisters>(a[0]);
  }

  // Slots from kSlot on. Past the last block there are blocks of zeros: branches would keep the compiler from mixing these.
  template <int kSlot>
  __device__ __forceinline__ void multiply(unsigned s_left, int present, bool any) {
    constexpr int kStep = kSlot / Tile::kPairs;
    constexpr int kNext = (kStep + 1) % Tile::kSteps;
    constexpr int kPair = kSlot % Tile::kPairs;
    if constexpr (kSlot % Tile::kCopySlots == 0 && kSlot < Tile::kLastRead) {
      constexpr int kPlace = kSlot / Tile::kCopySlots;
      copies.template copy<first_of(kPlace, Copies::kPieces, Tile::kCopyPlaces),
                           first_of(kPlace + 1, Copies::kPieces, Tile::kCopyPlaces)>(s_left, present, any);
    }
    if constexpr (kSlot == Tile::kLastRead) {
      cp_async_commit();
      wait();
      left = offset;
      offset = offset + Tile::kStageBytes == Tile::kRingBytes ? 0 : offset + Tile::kStageBytes;
    }
    if constexpr (kSlot == Tile::kWeightSlot) load_weights();
    load_pair<(kSlot + Tile::kHeldPairs - 1) % Tile::kSlots>();
    // The last step has the next block's weights for some of its slots only.
    constexpr int kBegin = kNext > 0 ? 0 : (Tile::kWeightSlot + (Tile::kPairs > 2 ? 1 : 0)) % Tile::kPairs;
    if constexpr (kPair == kBegin) weights.take_group(kNext, scales_bf16);
    if constexpr (kPair >= kBegin) {
      constexpr int kPlaces = Tile::kPairs - kBegin;
      weights.template make<kNext, first_of(kPair - kBegin, kRegisters, kPlaces),
                            first_of(kPair - kBegin + 1, kRegisters, kPlaces)>(a[kNext % 2]);
    }
    const unsigned(&pair)[4] = b[kSlot % Tile::kHeldPairs];
#pragma unroll
    for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma_m16n8k16<Element>(sums[m][2 * kPair + half], a[kStep % 2][m], pair[2 * half], pair[2 * half + 1]);
      }
    }
    if constexpr (kSlot + 1 < Tile::kSlots) multiply<kSlot + 1>(s_left, present, any);
  }
};

// Adds the sums of both slices in shared memory, (kTokens, channels), pitch kSumPitch: either gives the other half of its
// tokens, and finishes the other half. This warp's are those of kSlice.
template <typename Tile, int kSlice>
struct TiledSums {
  static constexpr int kHalf = Tile::kTilesN / Tile::kSlices;
  static constexpr int kGiven = (1 - kSlice) * kHalf;  // the first n8 tile
  static constexpr int kTaken = kSlice * kHalf;

  const float (&sums)[Tile::kTilesM][Tile::kTilesN][4];
  float* s_lane;

  __device__ __forceinline__ float& place(int m, int n, int r) const {
    return s_lane[(8 * n + r % 2) * Tile::kSumPitch + 16 * m + r / 2 * 8];
  }
  __device__ __forceinline__ void give() const {
#pragma unroll
    for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
      for (int n = kGiven; n < kGiven + kHalf; ++n) {
#pragma unroll
        for (int r = 0; r < 4; ++r) place(m, n, r) = sums[m][n][r];
      }
    }
  }
  // Many loads before the stores: the compiler must take one as waiting for the other.
  __device__ __forceinline__ void take() const {
#pragma unroll
    for (int m = 0; m < Tile::kTilesM; ++m) {
      float others[kHalf][4];
#pragma unroll
      for (int n = 0; n < kHalf; ++n) {
#pragma unroll
        for (int r = 0; r < 4; ++r) others[n][r] = place(m, kTaken + n, r);
      }
#pragma unroll
      for (int n = 0; n < kHalf; ++n) {
#pragma unroll
        for (int r = 0; r < 4; ++r) place(m, kTaken + n, r) = others[n][r] + sums[m][kTaken + n][r];
      }
    }
  }
};

// Stores the finished sums of a tile, those beyond m and oc left out.
template <typename Tile, typename Element>
__device__ __forceinline__ void store_tile(const AwqGemmOperands<Element>& operands, float* __restrict__ g_partials,
                                           const float* s_sums, const TiledRange& range) {
  constexpr int kQuads = kTiledTileChannels / 4;
  constexpr int kPassTokens = Tile::kThreads / kQuads;
  constexpr int kHeld = 4;  // passes whose loads are under way together
  static_assert(Tile::kTokens / kPassTokens % kHeld == 0, "whole rounds");
  const int thread = static_cast<int>(threadIdx.x);
  const bool partial = gridDim.z > 1;
  const bool plain = operands.epilogue == kIdentity &&
                     (reinterpret_cast<unsigned long long>(operands.y) | operands.ldy * 2) % 8 == 0;
  if (!partial && !plain) {  // activations are much code
    store_sums<Tile::kTokens, kTiledTileChannels, Tile::kSumPitch>(operands, g_partials, s_sums, range.first_token,
                                                                   range.first_channel, thread, Tile::kThreads);
    return;
  }
  const long long column = range.first_channel + thread % kQuads * 4;
  if (column >= operands.oc) return;
  const long long range_rows = static_cast<long long>(blockIdx.z) * operands.m;
#pragma unroll 1
  for (int first = thread / kQuads; first < Tile::kTokens; first += kHeld * kPassTokens) {
    float4 sums[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      sums[i] = *reinterpret_cast<const float4*>(s_sums + (first + i * kPassTokens) * Tile::kSumPitch +
                                                 thread % kQuads * 4);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const long long row = range.first_token + first + i * kPassTokens;
      if (row >= operands.m) return;
      if (partial) {
        *reinterpret_cast<float4*>(g_partials + (range_rows + row) * operands.oc + column) = sums[i];
      } else {
        const uint2 outputs = {pair_from_f32<Element>(sums[i].x, sums[i].y), pair_from_f32<Element>(sums[i].z, sums[i].w)};
        *reinterpret_cast<uint2*>(operands.y + row * operands.ldy + column) = outputs;
      }
    }
  }
}

template <typename Tile, typename Element>
__device__ __forceinline__ void awq_gemm_tiled_tile(const AwqGemmOperands<Element>& operands,
                                                    float* __restrict__ g_partials) {  // (split_k, m, oc)
  unsigned char* s_rings = dynamic_shared<unsigned char>();  // (kSlices, kStages, kStageBytes)
  const TiledRange range = tiled_range<Tile>(operands.m, operands.ic);
  TiledProducts<Tile, Element> products(operands, range, s_rings);
  products.begin(range.end - range.first);
#pragma unroll 1
  for (int block = range.first; block < range.end; ++block) {
    products.template multiply<0>(products.s_ring_address + products.left, products.copies.present(),
                                  block + Tile::kStages - 1 < range.end);
  }

  cp_async_wait<0>();  // blocks of zeros
  __syncthreads();     // the rings become sums
  float* s_sums = reinterpret_cast<float*>(s_rings);  // (kTokens, channels), pitch kSumPitch
  float* s_lane = s_sums + products.lane % 4 * 2 * Tile::kSumPitch + products.unit * kBlockChannels + products.lane / 4;
  const TiledSums<Tile, 0> first{products.sums, s_lane};
  const TiledSums<Tile, 1> second{products.sums, s_lane};
  if (products.slice == 0) {
    first.give();
  } else {
    second.give();
  }
  __syncthreads();
  if (products.slice == 0) {
    first.take();
  } else {
    second.take();
  }
  __syncthreads();
  store_tile<Tile>(operands, g_partials, s_sums, range);
}

}  // namespace baracuda
