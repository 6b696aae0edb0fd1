// HF_GEMM weights for the kernel of awq_gemm_bulk.cuh. A unit is boxes of weights, scales and zero points, a strip of 32
// output channels being 16 bytes of each input channel: rows of 16 or, swizzled, 32 bytes.
//
// ldmatrix transposes a strip's rows: lane 4g + t gets, of input channels 2t and 2t + 1 of eight, half g % 2 of word g / 2.
// Position j of that pair is output channel 8 * (g / 2) + 2j + g % 2: row g of the strip's m16 tile j / 2 where j is even,
// row g + 8 where it is odd.
#pragma once

#include "baracuda/awq_gemm_bulk.cuh"

namespace baracuda {

// What a lane needs of a unit, in registers: then it may be overwritten.
template <typename Shape>
struct HeldStrips {
  uint4 r_words[Shape::kBlocks][kSlices];
  unsigned r_scales[Shape::kGroups][Shape::kTilesM];  // of rows g and g + 8
  unsigned r_zeros[Shape::kGroups][Shape::kBlocks];   // position j in nibble j
};

template <typename Shape>
struct BulkHfGemm {
  static constexpr int kStrips = Shape::kBlocks;
  static constexpr int kRowBytes = kStrips * kLaneBytes;
  static constexpr unsigned kWeightBytes = kBlockDepth * kRowBytes;
  static constexpr unsigned kScaleBytes = kStrips * kGroupScaleBytes;  // of a group
  static constexpr unsigned kZeroBytes = kStrips * kGroupZeroBytes;
  // A box lies at a multiple of 128 bytes, and swizzling repeats in 256.
  static constexpr unsigned kZeros = kWeightBytes + (Shape::kGroups * kScaleBytes + 127u) / 128u * 128u;
  static constexpr unsigned kUnitBytes = (kZeros + Shape::kGroups * kZeroBytes + 255u) / 256u * 256u;
  static constexpr unsigned kCopiedBytes = kWeightBytes + Shape::kGroups * (kScaleBytes + kZeroBytes);
  // Neighbouring tiles lie in the same lines: CTAs take them at the same time, so that those come from memory once.
  static constexpr bool kNeighboursTogether = true;
  static constexpr int kExchanged = 2;  // channels that lanes of other tokens exchange, so that sums lie in distinct banks

  const TensorMap* weight_map;
  const TensorMap* scale_map;
  const TensorMap* zero_map;
  const unsigned char* g_weights;  // (ic, oc / 2)
  const unsigned char* g_scales;   // (groups, oc) of 2 bytes
  const unsigned char* g_zeros;    // (groups, oc / 2)
  int ic;
  int oc;
  bool one_group;  // a channel
  int next_half = 0;
  int next_block = 0;

  // Of 32 channels.
  static __device__ __forceinline__ int halves(int oc) { return (oc + kBlockChannels - 1) / kBlockChannels; }

  // The next unit to copy is a block of 32 channels from `half`.
  __device__ __forceinline__ void start(int, int half, int block) {
    next_half = half;
    next_block = block;
  }
  __device__ __forceinline__ void advance() { next_block += Shape::kDepthWarps; }

  __device__ __forceinline__ void copy(unsigned s_unit, unsigned s_barrier, bool) const {
    const int group = one_group ? 0 : next_block * Shape::kGroups;
    box_copy(s_unit, weight_map, next_half * kLaneBytes, next_block * kBlockDepth, 0, s_barrier);
    box_copy(s_unit + kWeightBytes, scale_map, next_half * kBlockChannels, group, 0, s_barrier);
    box_copy(s_unit + kZeros, zero_map, next_half * kGroupZeroBytes, group, 0, s_barrier);
  }

  // Asks for the same by all lanes of a warp: cp_async_wait() of all of them shows that it has come.
  __device__ __forceinline__ void copy_by_threads(unsigned s_unit, int lane) const {
    constexpr int kRows = kWarpLanes / kStrips;  // that the lanes take at a time
    const int strip = lane % kStrips;
    const int row = lane / kStrips;
    const int half = next_half + strip;
    const bool there = half * kBlockChannels < oc;
    const long long row_bytes = oc / 2;
    const unsigned char* g_strip = g_weights + (next_block * kBlockDepth + row) * row_bytes + half * kLaneBytes;
#pragma unroll
    for (int i = 0; i < kBlockDepth / kRows; ++i) {
      const int placed = kStrips == 1 ? 0 : strip ^ (i * kRows + row) / 4 % 2;  // as swizzled
      const bool valid = there && next_block * kBlockDepth + i * kRows + row < ic;
      cp_async_16(s_unit + (i * kRows + row) * kRowBytes + placed * kLaneBytes, valid ? g_strip : g_weights, valid);
      g_strip += kRows * row_bytes;
    }
    // Of a strip and group, four pieces of scales and one of zero points.
    constexpr int kPieces = kGroupScaleBytes / kLaneBytes + 1;
#pragma unroll
    for (int i = lane; i < Shape::kGroups * kStrips * kPieces; i += kWarpLanes) {
      const int piece = i / kStrips % kPieces;
      const int group = i / kStrips / kPieces;
      const bool zeros = piece == kPieces - 1;
      const long long stored = one_group ? 0 : next_block * Shape::kGroups + group;
      const unsigned char* g_piece = zeros ? g_zeros + stored * row_bytes + half * kGroupZeroBytes
                                           : g_scales + (stored * oc + half * kBlockChannels) * 2 + piece * kLaneBytes;
      const unsigned placed = zeros ? kZeros + group * kZeroBytes + strip * kGroupZeroBytes
                                    : kWeightBytes + group * kScaleBytes + strip * kGroupScaleBytes + piece * kLaneBytes;
      const bool valid = there && next_block * kBlockDepth + group * (kBlockDepth / Shape::kGroups) < ic;
      cp_async_16(s_unit + placed, valid ? g_piece : g_zeros, valid);
    }
    cp_async_commit();
  }

  using Held = HeldStrips<Shape>;
  static __device__ __forceinline__ Held hold(const unsigned char* s_unit, int lane) {
    Held held;
    const int column = lane / 4;
    const unsigned selector = column % 2 == 0 ? 0x5410u : 0x7632u;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      const int exchanged = kStrips == 1 ? 0 : strip ^ lane / 4 % 2;  // by the 128 bytes that a row lies in
      const unsigned s_rows = shared_address(s_unit) + lane * kRowBytes + exchanged * kLaneBytes;
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        unsigned words[4];
        ldmatrix_x4_transposed(words, s_rows + slice * (kSliceChannels * kRowBytes));
        held.r_words[strip][slice] = make_uint4(words[0], words[1], words[2], words[3]);
      }
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        const unsigned char* s_scales = s_unit + kWeightBytes + group * kScaleBytes + strip * kGroupScaleBytes;
        const uint4 eight = reinterpret_cast<const uint4*>(s_scales)[column / 2];
        held.r_scales[group][2 * strip] = __byte_perm(eight.x, eight.y, selector);
        held.r_scales[group][2 * strip + 1] = __byte_perm(eight.z, eight.w, selector);
        const unsigned char* s_zeros = s_unit + kZeros + group * kZeroBytes + strip * kGroupZeroBytes;
        held.r_zeros[group][strip] = reinterpret_cast<const unsigned short*>(s_zeros)[column];
      }
    }
    return held;
  }

  // Adds the product of a unit and tokens to `sums`. q - z is exact; f32 sums are scaled once a group.
  template <typename Element, typename Tokens>
  static __device__ __forceinline__ void multiply(const Held& held, const Tokens& tokens, bool scales_bf16,
                                                  float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
    using Pair = Int4Pair<Element>;
    constexpr int kGroupSlices = kSlices / Shape::kGroups;
#pragma unroll
    for (int group = 0; group < Shape::kGroups; ++group) {
      unsigned upper[Shape::kTilesM], lower[Shape::kTilesM];  // zero terms of rows g, and g + 8
#pragma unroll
      for (int tile = 0; tile < Shape::kTilesM; ++tile) {
        const unsigned zeros = held.r_zeros[group][tile / 2];
        upper[tile] = Pair::template zero_term<0>(nibble(zeros, tile % 2 * 2));
        lower[tile] = Pair::template zero_term<1>(nibble(zeros, tile % 2 * 2 + 1));
      }
      float partial[Shape::kTilesM][Shape::kTilesN][4] = {};
#pragma unroll
      for (int slice = group * kGroupSlices; slice < (group + 1) * kGroupSlices; ++slice) {
        unsigned b[Shape::kTilesN][4];
        tokens.read(b, slice);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int tile = 0; tile < Shape::kTilesM; ++tile) {
            const uint4& words = held.r_words[tile / 2][slice];
            const unsigned first = step == 0 ? words.x : words.z, second = step == 0 ? words.y : words.w;
            unsigned a[4];
            if (tile % 2 == 0) {
              a[0] = Pair::template spread_pair<0>(first, upper[tile]);
              a[1] = Pair::template spread_pair<1>(first, lower[tile]);
              a[2] = Pair::template spread_pair<0>(second, upper[tile]);
              a[3] = Pair::template spread_pair<1>(second, lower[tile]);
            } else {
              a[0] = Pair::template spread_pair<2>(first, upper[tile]);
              a[1] = Pair::template spread_pair<3>(first, lower[tile]);
              a[2] = Pair::template spread_pair<2>(second, upper[tile]);
              a[3] = Pair::template spread_pair<3>(second, lower[tile]);
            }
#pragma unroll
            for (int n = 0; n < Shape::kTilesN; ++n) {
              mma_m16n8k16<Element>(partial[tile][n], a, b[n][2 * step], b[n][2 * step + 1]);
            }
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < Shape::kTilesM; ++tile) {
        add_scaled(partial[tile], scale_pair_to_f32(held.r_scales[group][tile], scales_bf16), sums[tile]);
      }
    }
  }

  // The channel of a lane's row of a m16 tile: its g'th, or its g + 8'th.
  static __device__ __forceinline__ int channel(int lane, int tile, int lower) {
    return tile / 2 * kBlockChannels + lane / 8 * 8 + tile % 2 * 4 + lower * 2 + lane / 4 % 2;
  }
};

}  // namespace baracuda
