// Blocks of TILED weights (awq_tiles.cuh) times tokens, on the tensor cores: what every kernel for them shares.
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

// What a lane needs of them, in registers: then they may be overwritten.
template <typename Shape>
struct HeldBlocks {
  uint4 r_words[Shape::kTilesM][2];
  uint2 r_scales[Shape::kGroups][Shape::kTilesM / 2];
  unsigned r_zeros[Shape::kGroups][Shape::kTilesM / 2];

  __device__ __forceinline__ explicit HeldBlocks(const SharedBlocks<Shape>& shared) {
    const int row = shared.lane / 4;
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) r_words[tile][half] = shared.words(tile, half);
    }
#pragma unroll
    for (int group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
      for (int pair = 0; pair < Shape::kTilesM / 2; ++pair) {
        const unsigned char* s_block = shared.block(2 * pair);
        r_scales[group][pair] = *reinterpret_cast<const uint2*>(s_block + scale_offset(group) + row * 8);
        r_zeros[group][pair] =
            *reinterpret_cast<const unsigned short*>(s_block + zero_offset(Shape::kGroups, group) + row * 2);
      }
    }
  }

  __device__ __forceinline__ uint4 words(int tile, int half) const { return r_words[tile][half]; }
  __device__ __forceinline__ unsigned zeros(int group, int tile) const {
    return r_zeros[group][tile / 2] >> 8 * (tile % 2);
  }
  __device__ __forceinline__ unsigned scales(int group, int tile) const {
    return tile % 2 == 0 ? r_scales[group][tile / 2].x : r_scales[group][tile / 2].y;
  }
};

// Adds a group's sums of an m16 tile times the scales of the lane's two rows.
template <int kTilesN>
__device__ __forceinline__ void add_scaled(const float (&partial)[kTilesN][4], float2 scale, float (&sums)[kTilesN][4]) {
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    sums[n][0] = fmaf(partial[n][0], scale.x, sums[n][0]);
    sums[n][1] = fmaf(partial[n][1], scale.x, sums[n][1]);
    sums[n][2] = fmaf(partial[n][2], scale.y, sums[n][2]);
    sums[n][3] = fmaf(partial[n][3], scale.y, sums[n][3]);
  }
}

// Adds the product of neighbouring blocks of a tile and tokens to `sums`, [m16 tile][n8 tile]. Shape has kTilesM, two a
// block, kTilesN and kGroups. `blocks` are SharedBlocks or HeldBlocks; `tokens` reads the B operand of a slice.
// q - z is exact; f32 sums are scaled once a group.
template <typename Shape, typename Element, typename Blocks, typename Tokens>
__device__ __forceinline__ void multiply_block(const Blocks& blocks, const Tokens& tokens, bool scales_bf16,
                                               float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
  using Pair = Int4Pair<Element>;
  unsigned upper[Shape::kTilesM], lower[Shape::kTilesM];  // zero terms of a tile's rows 0 to 7, and 8 to 15
  float partial[Shape::kTilesM][Shape::kTilesN][4];
#pragma unroll
  for (int half = 0; half < kSlices / 2; ++half) {
    uint4 words[Shape::kTilesM];
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) words[tile] = blocks.words(tile, half);
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int slice = 2 * half + second;
      const int part = slice * Shape::kGroups / kSlices;
      if (slice * Shape::kGroups % kSlices == 0) {
#pragma unroll
        for (int tile = 0; tile < Shape::kTilesM; ++tile) {
          const unsigned zeros = blocks.zeros(part, tile);
          upper[tile] = Pair::template zero_term<0>(nibble(zeros, 0));
          lower[tile] = Pair::template zero_term<1>(nibble(zeros, 1));
#pragma unroll
          for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
            for (int r = 0; r < 4; ++r) partial[tile][n][r] = 0.0f;
          }
        }
      }
      const auto fragment = [&](int step, int tile, unsigned(&a)[4]) {
        const unsigned word = second == 0 ? (step == 0 ? words[tile].x : words[tile].y)
                                          : (step == 0 ? words[tile].z : words[tile].w);
        a[0] = Pair::template spread_pair<0>(word, upper[tile]);
        a[1] = Pair::template spread_pair<1>(word, lower[tile]);
        a[2] = Pair::template spread_pair<2>(word, upper[tile]);
        a[3] = Pair::template spread_pair<3>(word, lower[tile]);
      };
      unsigned b[Shape::kTilesN][4];
      tokens.read(b, slice);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int tile = 0; tile < Shape::kTilesM; ++tile) {
          unsigned a[4];
          fragment(step, tile, a);
#pragma unroll
          for (int n = 0; n < Shape::kTilesN; ++n) {
            mma_m16n8k16<Element>(partial[tile][n], a, b[n][2 * step], b[n][2 * step + 1]);
          }
        }
      }
      if ((slice + 1) * Shape::kGroups % kSlices != 0) continue;
#pragma unroll
      for (int tile = 0; tile < Shape::kTilesM; ++tile) {
        add_scaled(partial[tile], scale_pair_to_f32(blocks.scales(part, tile), scales_bf16), sums[tile]);
      }
    }
  }
}

}  // namespace baracuda
