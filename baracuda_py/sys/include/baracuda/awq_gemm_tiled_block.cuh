// Blocks of TILED weights (awq_tiles.cuh) for the tensor cores: what every kernel for them shares.
#pragma once

#include "baracuda/awq_gemm.cuh"
#include "baracuda/awq_tiles.cuh"
#include "baracuda/int4_pair.cuh"
#include "baracuda/mma.cuh"

namespace baracuda {

constexpr int kLaneBytes = 16;
constexpr int kChunkChannels = kLaneBytes / 2;  // input channels of a chunk of x

constexpr int kSliceChannels = 32;  // input channels of two k16 steps: what ldmatrix_x4 gives of eight tokens
constexpr int kSlices = kBlockDepth / kSliceChannels;
constexpr int kSliceChunks = kSliceChannels / kChunkChannels;

// Neighbouring blocks of a tile in shared memory, read by a lane when they are needed.
template <typename Shape>
struct SharedBlocks {
  const unsigned char* s_blocks;  // (kTilesM / 2, block_bytes)
  int lane;

  __device__ __forceinline__ const unsigned char* block(int tile) const {
    return s_blocks + tile / 2 * block_bytes(Shape::kGroups);
  }
  // The m16 tile's nibbles of 64 input channels, the block's first or second half.
  __device__ __forceinline__ uint4 words(int tile, int half) const {
    return *reinterpret_cast<const uint4*>(block(tile) + ((tile % 2 * 2 + half) * kWarpLanes + lane) * kLaneBytes);
  }
  // The zero points, and the scales, of a group and the lane's two rows of an m16 tile.
  __device__ __forceinline__ unsigned zeros(int group, int tile) const {
    return block(tile)[zero_offset(Shape::kGroups, group) + lane / 4 * 2 + tile % 2];
  }
  __device__ __forceinline__ unsigned scales(int group, int tile) const {
    return *reinterpret_cast<const unsigned*>(block(tile) + scale_offset(group) + (lane / 4 * 2 + tile % 2) * 4);
  }
};

}  // namespace baracuda
