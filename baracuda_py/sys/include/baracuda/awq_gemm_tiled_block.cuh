// Blocks of TILED weights (awq_tiles.cuh) times tokens, on the tensor cores: what every kernel for them shares.
#pragma once

#include "baracuda/awq_gemm.cuh"
#include "baracuda/awq_tiles.cuh"
#include "baracuda/int4_pair.cuh"
#include "baracuda/mma.cuh"

namespace baracuda {

constexpr int kLaneBytes = 16;
constexpr int kTokenBytes = kBlockDepth * 2;                 // x of a token in a stage
constexpr int kTokenChunks = kTokenBytes / kLaneBytes;
constexpr int kChunkChannels = kBlockDepth / kTokenChunks;   // input channels of a chunk

// Where a stage keeps 16 bytes of a token's x: rows of 256 bytes, their chunks exchanged so that eight tokens' lie in
// distinct banks.
__device__ __forceinline__ unsigned token_offset(int token, int chunk) {
  return static_cast<unsigned>(token * kTokenBytes + (chunk ^ token % 8) * kLaneBytes);
}

// Adds the product of neighbouring blocks of a tile and tokens to `sums`, [m16 tile][n8 tile]. Shape has kTilesM, two a
// block, kTilesN and kGroups. `s_blocks` is the first block, `s_tokens` the address of x, laid out by token_offset; x is
// of 16-bit elements. q - z is exact; f32 sums are scaled once a group.
template <typename Shape, typename Element>
__device__ __forceinline__ void multiply_block(const unsigned char* s_blocks, unsigned s_tokens, int lane,
                                               bool scales_bf16, float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
  using Pair = Int4Pair<Element>;
  constexpr int kSlices = kBlockDepth / kIcGrain;  // of 32 input channels, two k16 steps: what ldmatrix_x4 gives
  const int row = lane / 4;
  unsigned upper[Shape::kTilesM], lower[Shape::kTilesM];  // zero terms of a tile's rows 0 to 7, and 8 to 15
  float partial[Shape::kTilesM][Shape::kTilesN][4];
  // Loads of all four slices at once would take the registers of a wide tile.
#pragma unroll(Shape::kTilesN <= 2 ? kSlices / 2 : 1)
  for (int half = 0; half < kSlices / 2; ++half) {
    uint4 words[Shape::kTilesM];
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) {
      const unsigned char* s_block = s_blocks + tile / 2 * block_bytes(Shape::kGroups);
      words[tile] =
          *reinterpret_cast<const uint4*>(s_block + ((tile % 2 * 2 + half) * kWarpLanes + lane) * kLaneBytes);
    }
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int slice = 2 * half + second;
      const int part = slice * Shape::kGroups / kSlices;
      if (slice * Shape::kGroups % kSlices == 0) {
#pragma unroll
        for (int tile = 0; tile < Shape::kTilesM; ++tile) {
          const unsigned char* s_block = s_blocks + tile / 2 * block_bytes(Shape::kGroups);
          const unsigned zeros = s_block[zero_offset(Shape::kGroups, part) + 2 * row + tile % 2];
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
      const auto load_tokens = [&](int n, unsigned(&tokens)[4]) {
        ldmatrix_x4(tokens, s_tokens + token_offset(8 * n + lane % 8, 4 * slice + lane / 8));
      };
      // Whichever operand has fewer fragments is kept; sums are taken in the same order.
      if constexpr (Shape::kTilesN <= Shape::kTilesM) {
        unsigned tokens[Shape::kTilesN][4];
#pragma unroll
        for (int n = 0; n < Shape::kTilesN; ++n) load_tokens(n, tokens[n]);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int tile = 0; tile < Shape::kTilesM; ++tile) {
            unsigned a[4];
            fragment(step, tile, a);
#pragma unroll
            for (int n = 0; n < Shape::kTilesN; ++n) {
              mma_m16n8k16<Element>(partial[tile][n], a, tokens[n][2 * step], tokens[n][2 * step + 1]);
            }
          }
        }
      } else {
        unsigned a[2][Shape::kTilesM][4];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int tile = 0; tile < Shape::kTilesM; ++tile) fragment(step, tile, a[step][tile]);
        }
#pragma unroll
        for (int n = 0; n < Shape::kTilesN; ++n) {
          unsigned tokens[4];
          load_tokens(n, tokens);
#pragma unroll
          for (int step = 0; step < 2; ++step) {
#pragma unroll
            for (int tile = 0; tile < Shape::kTilesM; ++tile) {
              mma_m16n8k16<Element>(partial[tile][n], a[step][tile], tokens[2 * step], tokens[2 * step + 1]);
            }
          }
        }
      }
      if ((slice + 1) * Shape::kGroups % kSlices != 0) continue;
#pragma unroll
      for (int tile = 0; tile < Shape::kTilesM; ++tile) {
        const unsigned char* s_block = s_blocks + tile / 2 * block_bytes(Shape::kGroups);
        const float2 scale = scale_pair_to_f32(
            *reinterpret_cast<const unsigned*>(s_block + scale_offset(part) + (2 * row + tile % 2) * 4), scales_bf16);
#pragma unroll
        for (int n = 0; n < Shape::kTilesN; ++n) {
          sums[tile][n][0] = fmaf(partial[tile][n][0], scale.x, sums[tile][n][0]);
          sums[tile][n][1] = fmaf(partial[tile][n][1], scale.x, sums[tile][n][1]);
          sums[tile][n][2] = fmaf(partial[tile][n][2], scale.y, sums[tile][n][2]);
          sums[tile][n][3] = fmaf(partial[tile][n][3], scale.y, sums[tile][n][3]);
        }
      }
    }
  }
}

}  // namespace baracuda
