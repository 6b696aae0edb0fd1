// What a warp of the stream kernel of awq_gemm reads of packed weights, a struct for each layout: how a block of 128 input
// channels lies in a stage of its ring, the copies that bring it there, and the fragments that a lane makes of it.
//
// lane 4g + t; slot r (0 .. 2 * kTiles - 1): operand row g (even r) or g + 8 (odd r) of m16 tile r / 2. Which channel a slot
// is, and which k a fragment's columns are, is free as long as scales, tokens and outputs follow:
//
//   OC_MAJOR           channel 2 * kTiles * g + r
//   HF_GEMM, 4 tiles   channel 8g + hf_gemm_element(r): one word of weights is a k's 8 slots
//   HF_GEMM, 2 tiles   channel 8 * (g / 2) + 2r + g % 2: half g % 2 of word g / 2
//   TILED              channel 8r + g
//
// Of 32 input channels, a chunk, lane t has 8t .. 8t + 7 of OC_MAJOR and HF_GEMM weights, which are 16 bytes of a token's x;
// TILED has its own order, in which ldmatrix brings x.
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/cp_async.cuh"

namespace baracuda {

constexpr int kChunkDepth = 32;  // input channels of a chunk: two k16 steps
constexpr int kBlockChunks = kBlockDepth / kChunkDepth;

// Where the sums of two neighbouring output channels, the first of them even, are: m16 tile, half of its rows, lane.
struct StreamPair {
  int channel;
  int tile[2];
  int half[2];
  int lane[2];
};

// Two channels that neighbouring columns of lanes hold in the same slot; the even column takes even slots, the odd one odd.
__device__ __forceinline__ StreamPair pair_of_lanes(int lane, int tile, int channel) {
  const int half = lane / 4 % 2;
  const int even = lane & ~4;
  return {channel, {tile, tile}, {half, half}, {even, even + 4}};
}

// Scales and zero points of OC_MAJOR and HF_GEMM, which lie apart from the weights: a group has, in a stage, kChannels scales
// and kChannels nibbles.
template <int kChannels, int kGroups>
struct PlainGroups {
  static constexpr int kWords = kChannels / kNibblesPerWord;
  static constexpr int kScaleBytes = kChannels * 2;
  static constexpr int kBytes = kScaleBytes + kWords * 4;  // of a group

  // A block's groups; what lies beyond oc and ic is 0.
  template <typename Element>
  static __device__ __forceinline__ void copy(const AwqGemmOperands<Element>& operands, long long first_channel, int block,
                                              unsigned s_groups, int lane) {
    constexpr int kPieces = 2 * kWords * kGroups;  // scales, and zero points, of a word's channels
#pragma unroll
    for (int pass = 0; pass < (kPieces + kWarpLanes - 1) / kWarpLanes; ++pass) {
      const int piece = pass * kWarpLanes + lane;
      const int group = piece / (2 * kWords);
      const int word = piece % kWords;
      const int k = block * kBlockDepth + group * (kBlockDepth / kGroups);
      const long long channel = first_channel + word * kNibblesPerWord;
      const bool valid = channel < operands.oc && k < operands.ic;
      const int index = kGroups == 1 && operands.group != kBlockDepth ? 0 : k / (kBlockDepth / kGroups);
      const long long first = valid ? static_cast<long long>(index) * operands.oc + channel : 0;
      const unsigned s_group = s_groups + group * kBytes;
      if (piece >= kPieces) continue;
      if (piece / kWords % 2 == 0) {
        cp_async_16(s_group + word * kLaneBytes, static_cast<const unsigned short*>(operands.scales) + first, valid);
      } else {
        cp_async_4(s_group + kScaleBytes + word * 4, operands.zeros + first / kNibblesPerWord, valid);
      }
    }
  }

  // Nibbles of the lane's slots, slot r in position r, where a word has `kSlots` of them a column of lanes.
  template <int kSlots>
  static __device__ __forceinline__ unsigned zeros(const unsigned char* s_groups, int group, int column) {
    const unsigned* s_zeros = reinterpret_cast<const unsigned*>(s_groups + group * kBytes + kScaleBytes);
    if constexpr (kSlots == kNibblesPerWord) return s_zeros[column];
    return s_zeros[column / 2] >> (kNibbleBits * kSlots * (column % 2));
  }
};

template <int kTileCount, int kGroupCount, typename ElementType>
struct StreamOcMajor {
  using Element = ElementType;
  using Pair = Int4Pair<Element>;
  static constexpr int kTiles = kTileCount;  // m16 tiles
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kSlots = 2 * kTiles;
  static constexpr int kChannels = 16 * kTiles;
  static constexpr int kRowBytes = kBlockDepth / 2;  // of a channel
  static constexpr int kWeightBytes = kChannels * kRowBytes;
  using Groups = PlainGroups<kChannels, kGroups>;
  static constexpr int kStageBytes = kWeightBytes + kGroups * Groups::kBytes;
  static constexpr int kTokenBytes = 0;  // lanes use the x that they load
  static_assert(kSlots == 4 || kSlots == 8, "a lane's channels lie in one word of zeros");

  // Rows of a slot follow each other, and their chunks are exchanged, so that a warp reads 32 distinct banks.
  static __device__ __forceinline__ int offset(int column, int slot, int chunk) {
    return (slot * 8 + column) * kRowBytes + (chunk ^ column / 2 % 4) * kLaneBytes;
  }

  static __device__ __forceinline__ void copy(const AwqGemmOperands<Element>& operands, long long first_channel, int block,
                                              unsigned s_stage, int lane) {
    const int chunk = lane % kBlockChunks;
    const int k = block * kBlockDepth + chunk * kChunkDepth;
    const long long pitch = operands.ic / kNibblesPerWord;
#pragma unroll
    for (int pass = 0; pass < kChannels * kBlockChunks / kWarpLanes; ++pass) {
      const int row = pass * (kWarpLanes / kBlockChunks) + lane / kBlockChunks;
      const bool valid = first_channel + row < operands.oc && k < operands.ic;
      const unsigned* g_chunk = operands.weights + (valid ? (first_channel + row) * pitch + k / kNibblesPerWord : 0);
      cp_async_16(s_stage + offset(row / kSlots, row % kSlots, chunk), g_chunk, valid);
    }
    Groups::copy(operands, first_channel, block, s_stage + kWeightBytes, lane);
  }

  // Elements i and i + 4 of a lane's eight of x, as the nibbles of a word pair up.
  static __device__ __forceinline__ void tokens(const uint4& x, unsigned, int, unsigned (&b)[4]) {
    b[0] = join_low_halves(x.x, x.z);
    b[1] = join_high_halves(x.x, x.z);
    b[2] = join_low_halves(x.y, x.w);
    b[3] = join_high_halves(x.y, x.w);
  }

  const unsigned char* s_stage;
  int lane;
  unsigned r_words[kSlots];  // of a chunk
  unsigned r_even[kSlots];   // zero terms
  unsigned r_odd[kSlots];

  __device__ __forceinline__ StreamOcMajor(const unsigned char* stage, int lane_index)
      : s_stage(stage), lane(lane_index) {}

  __device__ __forceinline__ void load_zeros(int group) {
    const unsigned zeros = Groups::template zeros<kSlots>(s_stage + kWeightBytes, group, lane / 4);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      r_even[slot] = Pair::template zero_term<0>(nibble(zeros, slot));
      r_odd[slot] = Pair::template zero_term<1>(nibble(zeros, slot));
    }
  }

  // Of rows g and g + 8 of a tile.
  __device__ __forceinline__ float2 scales(int group, int tile, bool scales_bf16) const {
    const unsigned* s_scales =
        reinterpret_cast<const unsigned*>(s_stage + kWeightBytes + group * Groups::kBytes) + lane / 4 * kTiles;
    return scale_pair_to_f32(s_scales[tile], scales_bf16);
  }

  __device__ __forceinline__ void load_chunk(int chunk) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      r_words[slot] = *reinterpret_cast<const unsigned*>(s_stage + offset(lane / 4, slot, chunk) + lane % 4 * 4);
    }
  }

  __device__ __forceinline__ void fragment(int step, int tile, unsigned (&a)[4]) const {
    const int upper = 2 * tile, lower = 2 * tile + 1;
    if (step == 0) {
      a[0] = Pair::template spread_pair<0>(r_words[upper], r_even[upper]);
      a[1] = Pair::template spread_pair<0>(r_words[lower], r_even[lower]);
      a[2] = Pair::template spread_pair<1>(r_words[upper], r_odd[upper]);
      a[3] = Pair::template spread_pair<1>(r_words[lower], r_odd[lower]);
    } else {
      a[0] = Pair::template spread_pair<2>(r_words[upper], r_even[upper]);
      a[1] = Pair::template spread_pair<2>(r_words[lower], r_even[lower]);
      a[2] = Pair::template spread_pair<3>(r_words[upper], r_odd[upper]);
      a[3] = Pair::template spread_pair<3>(r_words[lower], r_odd[lower]);
    }
  }

  static __device__ __forceinline__ StreamPair pair(int lane, int tile) {
    return {kSlots * (lane / 4) + 2 * tile, {tile, tile}, {0, 1}, {lane, lane}};
  }
};

template <int kTileCount, int kGroupCount, typename ElementType>
struct StreamHfGemm {
  using Element = ElementType;
  using Pair = Int4Pair<Element>;
  static constexpr int kTiles = kTileCount;  // m16 tiles
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kSlots = 2 * kTiles;
  static constexpr int kChannels = 16 * kTiles;
  static constexpr int kWords = kChannels / kNibblesPerWord;  // of an input channel
  static constexpr int kWeightBytes = kBlockDepth * kWords * 4;
  using Groups = PlainGroups<kChannels, kGroups>;
  static constexpr int kStageBytes = kWeightBytes + kGroups * Groups::kBytes;
  static constexpr int kTokenBytes = 0;  // lanes use the x that they load
  static constexpr int kLaneDepth = kChunkDepth / 4;  // input channels of a lane in a chunk
  static_assert(kSlots == 4 || kSlots == 8, "a lane takes a word of weights, or half of one");

  // Input channel 8t + i of a chunk lies in row 4i + t, so that the rows that a warp reads lie in distinct banks.
  static __device__ __forceinline__ int row_of(int k) {
    return k / kChunkDepth * kChunkDepth + k % kLaneDepth * 4 + k % kChunkDepth / kLaneDepth;
  }

  static __device__ __forceinline__ void copy(const AwqGemmOperands<Element>& operands, long long first_channel, int block,
                                              unsigned s_stage, int lane) {
    const long long pitch = operands.oc / kNibblesPerWord;
    const unsigned* g_block = operands.weights + block * static_cast<long long>(kBlockDepth) * pitch +
                              first_channel / kNibblesPerWord;
    const int rows = operands.ic - block * kBlockDepth;  // that there are
    if (pitch % 4 == 0) {
      constexpr int kPieces = kWords / 4;  // of a row
      const int word = lane % kPieces * 4;
      const bool in_row = first_channel + word * kNibblesPerWord < operands.oc;
#pragma unroll
      for (int pass = 0; pass < kBlockDepth * kPieces / kWarpLanes; ++pass) {
        const int k = pass * (kWarpLanes / kPieces) + lane / kPieces;
        const bool valid = in_row && k < rows;
        // The rest of the line is other CTAs'.
        cp_async_16_of_line(s_stage + (row_of(k) * kWords + word) * 4, valid ? g_block + k * pitch + word : operands.weights,
                            valid);
      }
    } else {  // rows of weights do not start at multiples of 16 bytes
      const int word = lane % kWords;
      const bool in_row = first_channel + word * kNibblesPerWord < operands.oc;
#pragma unroll 1
      for (int k = lane / kWords; k < kBlockDepth; k += kWarpLanes / kWords) {
        const bool valid = in_row && k < rows;
        cp_async_4(s_stage + (row_of(k) * kWords + word) * 4, valid ? g_block + k * pitch + word : operands.weights, valid);
      }
    }
    Groups::copy(operands, first_channel, block, s_stage + kWeightBytes, lane);
  }

  static __device__ __forceinline__ void tokens(const uint4& x, unsigned, int, unsigned (&b)[4]) {
    b[0] = x.x;
    b[1] = x.y;
    b[2] = x.z;
    b[3] = x.w;
  }

  const unsigned char* s_stage;
  int lane;
  unsigned r_words[kLaneDepth];  // of a chunk, an input channel each
  unsigned r_terms[kSlots];

  __device__ __forceinline__ StreamHfGemm(const unsigned char* stage, int lane_index)
      : s_stage(stage), lane(lane_index) {}

  __device__ __forceinline__ void load_zeros(int group) {
    const unsigned zeros = Groups::template zeros<kSlots>(s_stage + kWeightBytes, group, lane / 4);
#pragma unroll
    for (int slot = 0; slot < kSlots; slot += 2) {
      r_terms[slot] = Pair::template zero_term<0>(nibble(zeros, slot));
      r_terms[slot + 1] = Pair::template zero_term<1>(nibble(zeros, slot + 1));
    }
  }

  // Of rows g and g + 8 of a tile.
  __device__ __forceinline__ float2 scales(int group, int tile, bool scales_bf16) const {
    const unsigned* s_scales = reinterpret_cast<const unsigned*>(s_stage + kWeightBytes + group * Groups::kBytes);
    const int column = lane / 4;
    unsigned pair;
    if constexpr (kTiles == 4) {  // slots 2j and 2j + 1 are elements 4j and 4j + 2, then 4j - 7 and 4j - 5
      const uint2 four = reinterpret_cast<const uint2*>(s_scales)[column * 2 + tile % 2];
      pair = tile < 2 ? join_low_halves(four.x, four.y) : join_high_halves(four.x, four.y);
    } else {
      const uint2 four = reinterpret_cast<const uint2*>(s_scales)[column / 2 * 2 + tile];
      pair = __byte_perm(four.x, four.y, column % 2 == 0 ? 0x5410u : 0x7632u);
    }
    return scale_pair_to_f32(pair, scales_bf16);
  }

  __device__ __forceinline__ void load_chunk(int chunk) {
    const unsigned* s_words = reinterpret_cast<const unsigned*>(s_stage) +
                              (chunk * kChunkDepth + lane % 4) * kWords + (kTiles == 4 ? lane / 4 : lane / 8);
#pragma unroll
    for (int i = 0; i < kLaneDepth; ++i) r_words[i] = s_words[4 * i * kWords];
  }

  __device__ __forceinline__ void fragment(int step, int tile, unsigned (&a)[4]) const {
    const unsigned half = kTiles == 4 ? tile / 2 : lane / 4 % 2;  // of a word
    const unsigned selector = half == 0 ? 0x5410u : 0x7632u;
    const unsigned first = __byte_perm(r_words[4 * step], r_words[4 * step + 1], selector);
    const unsigned second = __byte_perm(r_words[4 * step + 2], r_words[4 * step + 3], selector);
    const unsigned upper = r_terms[2 * tile], lower = r_terms[2 * tile + 1];
    if (tile % 2 == 0) {
      a[0] = Pair::template spread_pair<0>(first, upper);
      a[1] = Pair::template spread_pair<1>(first, lower);
      a[2] = Pair::template spread_pair<0>(second, upper);
      a[3] = Pair::template spread_pair<1>(second, lower);
    } else {
      a[0] = Pair::template spread_pair<2>(first, upper);
      a[1] = Pair::template spread_pair<3>(first, lower);
      a[2] = Pair::template spread_pair<2>(second, upper);
      a[3] = Pair::template spread_pair<3>(second, lower);
    }
  }

  static __device__ __forceinline__ StreamPair pair(int lane, int tile) {
    const int column = lane / 4;
    if constexpr (kTiles == 4) {  // elements 2 * tile and the next lie four positions apart
      return {8 * column + 2 * tile, {tile / 2, tile / 2 + 2}, {tile % 2, tile % 2}, {lane, lane}};
    }
    return pair_of_lanes(lane, tile, 8 * (column / 2) + 2 * (2 * tile + column % 2));
  }
};

}  // namespace baracuda
