// What the layouts whose scales and zero points lie apart from the weights share, for the kernel of awq_gemm_bulk.cuh: a unit
// is boxes of weights, of scales and of zero points.
#pragma once

#include "baracuda/awq_gemm_bulk.cuh"

namespace baracuda {

template <typename Shape>
struct BulkBoxes {
  static constexpr int kStrips = Shape::kBlocks;  // of 32 output channels
  static constexpr unsigned kWeightBytes = kStrips * kBlockChannels * kBlockDepth / 2;
  static constexpr unsigned kScaleBytes = kStrips * kGroupScaleBytes;  // of a group
  static constexpr unsigned kZeroBytes = kStrips * kGroupZeroBytes;
  // A box lies at a multiple of 128 bytes, and swizzling of rows of 32 bytes repeats in 256.
  static constexpr unsigned kZeros = kWeightBytes + (Shape::kGroups * kScaleBytes + 127u) / 128u * 128u;
  static constexpr unsigned kUnitBytes = (kZeros + Shape::kGroups * kZeroBytes + 255u) / 256u * 256u;
  static constexpr unsigned kCopiedBytes = kWeightBytes + Shape::kGroups * (kScaleBytes + kZeroBytes);

  const TensorMap* weight_map;
  const TensorMap* scale_map;
  const TensorMap* zero_map;
  const unsigned char* g_weights;
  const unsigned char* g_scales;  // (groups, oc) of 2 bytes
  const unsigned char* g_zeros;   // (groups, oc / 2)
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

  __device__ __forceinline__ void copy_groups(unsigned s_unit, unsigned s_barrier) const {
    const int group = one_group ? 0 : next_block * Shape::kGroups;
    box_copy(s_unit + kWeightBytes, scale_map, next_half * kBlockChannels, group, 0, s_barrier);
    box_copy(s_unit + kZeros, zero_map, next_half * kGroupZeroBytes, group, 0, s_barrier);
  }

  // Of a strip and group, four pieces of scales and one of zero points, by all lanes of a warp.
  __device__ __forceinline__ void copy_groups_by_threads(unsigned s_unit, int lane) const {
    constexpr int kPieces = kGroupScaleBytes / kLaneBytes + 1;
#pragma unroll
    for (int i = lane; i < Shape::kGroups * kStrips * kPieces; i += kWarpLanes) {
      const int strip = i % kStrips;
      const int half = next_half + strip;
      const int piece = i / kStrips % kPieces;
      const int group = i / kStrips / kPieces;
      const bool zeros = piece == kPieces - 1;
      const long long stored = one_group ? 0 : next_block * Shape::kGroups + group;
      const unsigned char* g_piece = zeros ? g_zeros + stored * (oc / 2) + half * kGroupZeroBytes
                                           : g_scales + (stored * oc + half * kBlockChannels) * 2 + piece * kLaneBytes;
      const unsigned placed = zeros ? kZeros + group * kZeroBytes + strip * kGroupZeroBytes
                                    : kWeightBytes + group * kScaleBytes + strip * kGroupScaleBytes + piece * kLaneBytes;
      const bool valid =
          half * kBlockChannels < oc && next_block * kBlockDepth + group * (kBlockDepth / Shape::kGroups) < ic;
      cp_async_16(s_unit + placed, valid ? g_piece : g_zeros, valid);
    }
  }
};

}  // namespace baracuda
