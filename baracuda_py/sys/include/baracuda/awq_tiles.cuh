// The weight layout TILED: 4-bit weights in the order of tensor-core fragments, with scales and zero points.
//
// A tile is 64 output channels and all ic, a block 32 of them by 128 input channels. Tiles follow each other, in a
// tile the blocks of 128 input channels, in those the halves of the tile. With groups groups of 128 channels:
//
//   nibbles      2048 bytes: word [m][c][4 r + t][j], its nibble h + 2 d + 4 e
//   scales       64 bytes a group: [r][m][h], 2 bytes each
//   zero points  16 bytes a group: [r][m], h = 0 in the low bits
//
// of output channel 16 m + 8 h + r and input channel 64 c + 16 j + 8 d + 2 t + e (m, h, c, d, e < 2; r < 8; j, t < 4).
// So lane 4 r + t has, in one word, its A fragment of the m16 tile m and the k16 step 4 c + j: nibbles i and i + 4 are
// the pair of register i of mma.m16n8k16, and of a warp's quarter of wgmma.m64nNk16.
//
// Output channels are padded with scales of 0, input channels with nibbles that equal the zero point.
#pragma once

#include "baracuda/constant.cuh"

namespace baracuda {

constexpr int kTileChannels = 64;  // output channels
constexpr int kBlockChannels = 32;
constexpr int kBlockDepth = 128;  // input channels
constexpr int kBlockHalves = kTileChannels / kBlockChannels;
constexpr int kBlockWeightBytes = kBlockChannels * kBlockDepth / 2;
constexpr int kGroupScaleBytes = kBlockChannels * 2;
constexpr int kGroupZeroBytes = kBlockChannels / 2;

__host__ __device__ __forceinline__ constexpr int block_bytes(int groups) {
  return kBlockWeightBytes + (kGroupScaleBytes + kGroupZeroBytes) * groups;
}
__host__ __device__ __forceinline__ constexpr int scale_offset(int group) {
  return kBlockWeightBytes + kGroupScaleBytes * group;
}
__host__ __device__ __forceinline__ constexpr int zero_offset(int groups, int group) {
  return kBlockWeightBytes + kGroupScaleBytes * groups + kGroupZeroBytes * group;
}
static_assert(block_bytes(1) % 16 == 0 && block_bytes(4) % 16 == 0, "blocks start at multiples of 16 bytes");

}  // namespace baracuda
