// TILED weights (awq_tiles.cuh) for the kernel of awq_gemm_bulk.cuh: a unit, what a warp takes at a time, is contiguous.
#pragma once

#include "baracuda/awq_gemm_bulk.cuh"

namespace baracuda {

// What a lane needs of a unit, in registers: then it may be overwritten.
template <typename Shape>
struct HeldBlocks {
  uint4 r_words[Shape::kTilesM][2];                  // of the halves of a block's input channels
  unsigned r_scales[Shape::kGroups][Shape::kTilesM];  // of rows g and g + 8
  unsigned r_zeros[Shape::kGroups][Shape::kBlocks];   // of rows g and g + 8 of the first m16 tile, then of the second

  // Something of every load.
  __device__ __forceinline__ unsigned loaded() const {
    unsigned all = 0;
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) {
      all |= r_words[tile][0].x | r_words[tile][1].x;
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        if (tile % 2 == 0) all |= r_scales[group][tile] | r_zeros[group][tile / 2];
      }
    }
    return all;
  }
};

template <typename Shape>
struct BulkTiled {
  using Tokens = TokenBoxes<Shape>;
  static constexpr unsigned kUnitBytes = block_bytes(Shape::kGroups) * Shape::kBlocks;
  static constexpr unsigned kCopiedBytes = kUnitBytes;
  static constexpr bool kNeighboursTogether = false;  // a CTA takes tiles that follow each other
  static constexpr bool kOneBranch = true;
  static constexpr int kExchanged = 8;  // channels that lanes of other tokens exchange, so that sums lie in distinct banks

  const unsigned char* g_weights;
  unsigned long long policy;  // of L2
  const unsigned char* g_next = nullptr;

  // Of 32 channels, that there are with padding.
  static __device__ __forceinline__ int halves(int oc) {
    return (oc + kTileChannels - 1) / kTileChannels * kBlockHalves;
  }

  // The next unit to copy is a block of 32 channels from `half`; there are `columns` blocks of input channels.
  __device__ __forceinline__ void start(int columns, int half, int block) {
    constexpr int kBytes = block_bytes(Shape::kGroups);
    g_next = g_weights + (static_cast<long long>(half / kBlockHalves) * columns + block) * (kBlockHalves * kBytes) +
             half % kBlockHalves * kBytes;
  }
  __device__ __forceinline__ void advance() { g_next += Shape::kDepthWarps * kBlockHalves * block_bytes(Shape::kGroups); }

  __device__ __forceinline__ void copy(unsigned s_unit, unsigned s_barrier) const {
    bulk_copy(s_unit, g_next, kUnitBytes, s_barrier, policy);
  }

  // Asks for the same by all lanes of a warp: cp_async_wait() of all of them shows that it has come.
  __device__ __forceinline__ void copy_by_threads(unsigned s_unit, int lane) const {
#pragma unroll
    for (unsigned first = 0; first < kUnitBytes; first += kWarpLanes * kLaneBytes) {
      const unsigned offset = first + lane * kLaneBytes;
      if (offset < kUnitBytes) cp_async_16(s_unit + offset, g_next + offset, true);
    }
    cp_async_commit();
  }

  using Held = HeldBlocks<Shape>;
  static __device__ __forceinline__ Held hold(const unsigned char* s_unit, int lane) {
    Held held;
    const unsigned char* s_words = s_unit + lane * kLaneBytes;
    const unsigned char* s_scales = s_unit + lane / 4 * 8;
    const unsigned char* s_zeros = s_unit + lane / 4 * 2;
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) {
      const int block = tile / 2 * block_bytes(Shape::kGroups);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        held.r_words[tile][half] =
            *reinterpret_cast<const uint4*>(s_words + block + (tile % 2 * 2 + half) * (kWarpLanes * kLaneBytes));
      }
    }
#pragma unroll
    for (int group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
      for (int tile = 0; tile < Shape::kTilesM; tile += 2) {
        const int block = tile / 2 * block_bytes(Shape::kGroups);
        const uint2 scales = *reinterpret_cast<const uint2*>(s_scales + block + scale_offset(group));
        held.r_scales[group][tile] = scales.x;
        held.r_scales[group][tile + 1] = scales.y;
        held.r_zeros[group][tile / 2] =
            *reinterpret_cast<const unsigned short*>(s_zeros + block + zero_offset(Shape::kGroups, group));
      }
    }
    return held;
  }

  // Operand A of an m16 tile: rows g and g + 8 have units of their own.
  template <typename Element>
  static __device__ __forceinline__ void fragment(const Held& held, int slice, int step, int tile, unsigned (&a)[4]) {
    const uint4& words = held.r_words[tile][slice / 2];
    const unsigned word = slice % 2 == 0 ? (step == 0 ? words.x : words.y) : (step == 0 ? words.z : words.w);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = Int4Pair<Element>::raw_pair(word, i);
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
  // Of a channel's sums.
  template <typename Element>
  static __device__ __forceinline__ float units(int channel) { return Int4Pair<Element>::raw_units(channel / 8 % 2); }

  // The channel of a lane's row of a m16 tile: its g'th, or its g + 8'th.
  static __device__ __forceinline__ int channel(int lane, int tile, int lower) { return 16 * tile + lane / 4 + 8 * lower; }
};

}  // namespace baracuda
