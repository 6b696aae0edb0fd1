// HF_GEMM weights, (ic, oc / 2) bytes, for the kernel of awq_gemm_bulk.cuh. In a unit of awq_gemm_bulk_boxes.cuh, a strip of
// 32 output channels is 16 bytes of each input channel: rows of 16 or, swizzled, 32 bytes.
//
// ldmatrix transposes a strip's rows: lane 4g + t gets, of input channels 2t and 2t + 1 of eight, half g % 2 of word g / 2.
// Position j of that pair is output channel 8 * (g / 2) + 2j + g % 2: row g of the strip's m16 tile j / 2 where j is even,
// row g + 8 where it is odd.
#pragma once

#include "baracuda/awq_gemm_bulk_boxes.cuh"

namespace baracuda {

// What a lane needs of a unit, in registers: then it may be overwritten.
template <typename Shape>
struct HeldStrips {
  uint4 r_words[Shape::kBlocks][kSlices];
  unsigned r_scales[Shape::kGroups][Shape::kTilesM];  // of rows g and g + 8
  unsigned r_zeros[Shape::kGroups][Shape::kBlocks];   // position j in nibble j

  // Something of every load.
  __device__ __forceinline__ unsigned loaded() const {
    unsigned all = 0;
#pragma unroll
    for (int strip = 0; strip < Shape::kBlocks; ++strip) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) all |= r_words[strip][slice].x;
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        all |= r_scales[group][2 * strip] | r_scales[group][2 * strip + 1] | r_zeros[group][strip];
      }
    }
    return all;
  }
};

template <typename Shape>
struct BulkHfGemm : BulkBoxes<Shape> {
  using Tokens = TokenBoxes<Shape>;
  using Boxes = BulkBoxes<Shape>;
  using Boxes::kScaleBytes;
  using Boxes::kStrips;
  using Boxes::kWeightBytes;
  using Boxes::kZeroBytes;
  using Boxes::kZeros;
  static constexpr int kRowBytes = kStrips * kLaneBytes;  // of an input channel
  // Neighbouring tiles lie in the same lines: CTAs take them at the same time, so that those come from memory once.
  static constexpr bool kNeighboursTogether = true;
  static constexpr bool kOneBranch = Shape::kGroups < 4 || Shape::kBlocks == 1;
  static constexpr int kExchanged = 2;  // channels that lanes of other tokens exchange, so that sums lie in distinct banks

  __device__ __forceinline__ void copy(unsigned s_unit, unsigned s_barrier) const {
    box_copy(s_unit, this->weight_map, this->next_half * kLaneBytes, this->next_block * kBlockDepth, 0, s_barrier);
    this->copy_groups(s_unit, s_barrier);
  }

  // Asks for the same by all lanes of a warp: cp_async_wait() of all of them shows that it has come.
  __device__ __forceinline__ void copy_by_threads(unsigned s_unit, int lane) const {
    constexpr int kRows = kWarpLanes / kStrips;  // that the lanes take at a time
    const int strip = lane % kStrips;
    const int row = lane / kStrips;
    const int half = this->next_half + strip;
    const bool there = half * kBlockChannels < this->oc;
    const long long row_bytes = this->oc / 2;
    const unsigned char* g_strip = this->g_weights + (this->next_block * kBlockDepth + row) * row_bytes + half * kLaneBytes;
#pragma unroll
    for (int i = 0; i < kBlockDepth / kRows; ++i) {
      const int placed = kStrips == 1 ? 0 : strip ^ (i * kRows + row) / 4 % 2;  // as swizzled
      const bool valid = there && this->next_block * kBlockDepth + i * kRows + row < this->ic;
      cp_async_16(s_unit + (i * kRows + row) * kRowBytes + placed * kLaneBytes, valid ? g_strip : this->g_weights, valid);
      g_strip += kRows * row_bytes;
    }
    this->copy_groups_by_threads(s_unit, lane);
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

  // Operand A of an m16 tile: rows g and g + 8 have units of their own.
  template <typename Element>
  static __device__ __forceinline__ void fragment(const Held& held, int slice, int step, int tile, unsigned (&a)[4]) {
    const uint4& words = held.r_words[tile / 2][slice];
    const unsigned first = step == 0 ? words.x : words.z, second = step == 0 ? words.y : words.w;
    const int upper = tile % 2 * 2;
    a[0] = Int4Pair<Element>::raw_pair(first, upper);
    a[1] = Int4Pair<Element>::raw_pair(first, upper + 1);
    a[2] = Int4Pair<Element>::raw_pair(second, upper);
    a[3] = Int4Pair<Element>::raw_pair(second, upper + 1);
  }
  // Operand A less zero points.
  template <typename Element>
  static __device__ __forceinline__ void subtract(unsigned (&a)[4], uint2 zero_terms) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = fma_pair<Element>(a[i], Int4Pair<Element>::ones(), i % 2 == 0 ? zero_terms.x : zero_terms.y);
    }
  }
  template <typename Element>
  static __device__ __forceinline__ uint2 zero_terms(const Held& held, int group, int tile) {
    return row_zero_terms<Element>(held.r_zeros[group][tile / 2], tile);
  }
  template <typename Element>
  static __device__ __forceinline__ float2 zeros(const Held& held, int group, int tile) {
    return row_zeros<Element>(held.r_zeros[group][tile / 2], tile);
  }
  // Of the sums of a channel, and of the next one where `channel` is even.
  template <typename Element>
  static __device__ __forceinline__ float units(int channel) { return Int4Pair<Element>::raw_units(channel / 2 % 2); }

  // The channel of a lane's row of a m16 tile: its g'th, or its g + 8'th.
  static __device__ __forceinline__ int channel(int lane, int tile, int lower) {
    return tile / 2 * kBlockChannels + lane / 8 * 8 + tile % 2 * 4 + lower * 2 + lane / 4 % 2;
  }
};

}  // namespace baracuda
