// OC_MAJOR weights, (oc, ic / 2) bytes, for the kernel of awq_gemm_bulk.cuh. In a unit of awq_gemm_bulk_boxes.cuh, an output
// channel is 64 bytes, a block's input channels, swizzled.
//
// ldmatrix gives lane 4g + t, of the eight rows 8r + g of a strip (r = 0 .. 3), word t of a slice's four: its input channels
// 8t .. 8t + 7. Slot r is row g of m16 tile r / 2 where r is even, row g + 8 where it is odd.
#pragma once

#include "baracuda/awq_gemm_bulk_boxes.cuh"

namespace baracuda {

// What a lane needs of a unit, in registers: then it may be overwritten.
template <typename Shape>
struct HeldRows {
  uint4 r_words[Shape::kBlocks][kSlices];            // of a strip's four slots
  unsigned r_scales[Shape::kGroups][Shape::kTilesM];  // of rows g and g + 8
  unsigned r_zeros[Shape::kGroups][Shape::kBlocks];   // slot r in nibble 2r + 1

  // Something of every load.
  __device__ __forceinline__ unsigned loaded() const {
    unsigned all = 0;
#pragma unroll
    for (int strip = 0; strip < Shape::kBlocks; ++strip) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) all |= r_words[strip][slice].x;
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) all |= r_zeros[group][strip];
    }
    // One load gives four of them.
#pragma unroll
    for (int pair = 0; pair < Shape::kGroups * Shape::kTilesM; pair += 4) {
      all |= r_scales[pair / Shape::kTilesM][pair % Shape::kTilesM];
    }
    return all;
  }
};

template <typename Shape>
struct BulkOcMajor : BulkBoxes<Shape> {
  using Tokens = WordTokenBoxes<Shape>;
  using Boxes = BulkBoxes<Shape>;
  using Boxes::kStrips;
  using Boxes::kWeightBytes;
  using Boxes::kZeroBytes;
  using Boxes::kZeros;
  static constexpr int kRowBytes = kBlockDepth / 2;  // of an output channel
  static constexpr bool kNeighboursTogether = false;  // a CTA takes tiles that follow each other
  static constexpr bool kOneBranch = Shape::kGroups < 4 || Shape::kBlocks == 1 || Shape::kTilesN == 1;
  static constexpr int kExchanged = 8;  // channels that lanes of other tokens exchange, so that sums lie in distinct banks

  // Where 16 bytes of a row lie: by its address, for swizzling rows of 64 bytes repeats in 512, and a unit begins at a
  // multiple of 256.
  static __device__ __forceinline__ unsigned place(unsigned s_row, int quarter) {
    return s_row + (static_cast<unsigned>(quarter * kLaneBytes) ^ (s_row >> 3 & 0x30u));
  }

  __device__ __forceinline__ void copy(unsigned s_unit, unsigned s_barrier) const {
    box_copy(s_unit, this->weight_map, this->next_block * kRowBytes, this->next_half * kBlockChannels, 0, s_barrier);
    this->copy_groups(s_unit, s_barrier);
  }

  // Asks for the same by all lanes of a warp: cp_async_wait() of all of them shows that it has come.
  __device__ __forceinline__ void copy_by_threads(unsigned s_unit, int lane) const {
    constexpr int kQuarters = kRowBytes / kLaneBytes;
    constexpr int kRows = kWarpLanes / kQuarters;  // that the lanes take at a time
    const int quarter = lane % kQuarters;
    const int row = lane / kQuarters;
    const int channel = this->next_half * kBlockChannels + row;
    const int k = this->next_block * kBlockDepth + quarter * (2 * kLaneBytes);
    const long long row_bytes = this->ic / 2;
    const unsigned char* g_piece = this->g_weights + channel * row_bytes + k / 2;
#pragma unroll
    for (int i = 0; i < kStrips * kBlockChannels / kRows; ++i) {
      const bool valid = k < this->ic && channel + i * kRows < this->oc;
      cp_async_16(place(s_unit + (i * kRows + row) * kRowBytes, quarter), valid ? g_piece : this->g_weights, valid);
      g_piece += kRows * row_bytes;
    }
    this->copy_groups_by_threads(s_unit, lane);
    cp_async_commit();
  }

  using Held = HeldRows<Shape>;
  static __device__ __forceinline__ Held hold(const unsigned char* s_unit, int lane) {
    Held held;
    const int column = lane / 4;
    const unsigned s_rows = shared_address(s_unit) + lane * kRowBytes;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        unsigned words[4];
        ldmatrix_x4(words, place(s_rows + strip * (kBlockChannels * kRowBytes), slice));
        held.r_words[strip][slice] = make_uint4(words[0], words[1], words[2], words[3]);
      }
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        const unsigned char* s_zeros = s_unit + kZeros + group * kZeroBytes + strip * kGroupZeroBytes;
        const uint4 words = *reinterpret_cast<const uint4*>(s_zeros);
        // Byte g / 2 of each word, then half g % 2 of it.
        const unsigned selector = column / 2 * 0x11u + 0x40u;
        const unsigned low = __byte_perm(words.x, words.y, selector);
        const unsigned high = __byte_perm(words.z, words.w, selector);
        held.r_zeros[group][strip] = join_low_halves(low, high) << kNibbleBits * (1 - column % 2);
      }
    }
    // Scales of eight channels are a row of a matrix. Transposed, rows p and p + 1 give column g of both, to lanes that
    // would have had other rows by the same two addresses.
    constexpr int kPairs = Shape::kGroups * Shape::kTilesM;
#pragma unroll
    for (int pair = 0; pair < kPairs; pair += 4) {
      unsigned scales[4];
      const int wanted = (pair + lane / 8) % kPairs;
      ldmatrix_x4_transposed(scales, shared_address(s_unit) + kWeightBytes + (2 * wanted + lane % 2) * kLaneBytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (pair + i < kPairs) held.r_scales[(pair + i) / Shape::kTilesM][(pair + i) % Shape::kTilesM] = scales[i];
      }
    }
    return held;
  }

  // Operand A of an m16 tile. A row's positions are input channels and want one unit, that of position 1: from here on, or
  // from `subtract` on.
  template <typename Element>
  static __device__ __forceinline__ void fragment(const Held& held, int slice, int step, int tile, unsigned (&a)[4]) {
    const uint4& words = held.r_words[tile / 2][slice];
    const unsigned rows[2] = {tile % 2 == 0 ? words.x : words.z, tile % 2 == 0 ? words.y : words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = 2 * step + i / 2;
      a[i] = Shape::kSubtractsFirst ? Int4Pair<Element>::raw_pair(rows[i % 2], position)
                                    : Int4Pair<Element>::alike_pair(rows[i % 2], position);
    }
  }
  // Operand A less zero points.
  template <typename Element>
  static __device__ __forceinline__ void subtract(unsigned (&a)[4], uint2 zero_terms) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = fma_pair<Element>(a[i], Int4Pair<Element>::alike_factor(i / 2), i % 2 == 0 ? zero_terms.x : zero_terms.y);
    }
  }
  template <typename Element>
  static __device__ __forceinline__ uint2 zero_terms(const Held& held, int group, int tile) {
    const unsigned zeros = held.r_zeros[group][tile / 2];
    const unsigned both = tile % 2 == 0 ? join_low_halves(zeros, zeros) : join_high_halves(zeros, zeros);
    return make_uint2(Int4Pair<Element>::raw_zero_term(both, 1), Int4Pair<Element>::raw_zero_term(both, 3));
  }
  template <typename Element>
  static __device__ __forceinline__ float2 zeros(const Held& held, int group, int tile) {
    const unsigned zeros = held.r_zeros[group][tile / 2];
    const int upper = 4 * (tile % 2) + 1;
    return make_float2(Int4Pair<Element>::raw_zero(zeros, upper), Int4Pair<Element>::raw_zero(zeros, upper + 2));
  }
  // Of a channel's sums.
  template <typename Element>
  static __device__ __forceinline__ float units(int) { return Int4Pair<Element>::raw_units(1); }

  // The channel of a lane's row of a m16 tile: its g'th, or its g + 8'th.
  static __device__ __forceinline__ int channel(int lane, int tile, int lower) { return 16 * tile + lane / 4 + 8 * lower; }
};

}  // namespace baracuda
