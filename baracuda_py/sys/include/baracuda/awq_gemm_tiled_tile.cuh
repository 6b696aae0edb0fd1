// The tile kernel of awq_gemm for TILED weights (awq_tiles.cuh): y^T = W x^T, weights as mma operand A, tokens as operand
// B's columns, k cut over blockIdx.z.
//
// A CTA computes 128 output channels of kTokens tokens over one range of k. A ring of cp.async stages holds a block of
// 128 input channels each: two tiles' packed weights, which are contiguous a tile, and x. Four rows of warps take a block
// of 32 output channels each, and share x; columns of warps share out the tokens.
//
// With one range, a row's bits do not depend on m: tokens do not meet, and blocks are added in their order.
#pragma once

#include "baracuda/awq_gemm_sums.cuh"
#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kTiledTileChannels, 128);  // output channels of a CTA

// Shapes of one entry point, and where a stage keeps what.
template <int kTokenTiles, int kTokenWarps, int kGroupCount, int kRing>
struct TiledTile {
  static constexpr int kTilesM = 2;            // m16 tiles of a warp: one block
  static constexpr int kTilesN = kTokenTiles;  // n8 tiles of a warp
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kStages = kRing;
  static constexpr int kWarpsM = kTiledTileChannels / kBlockChannels;
  static constexpr int kThreads = kWarpsM * kTokenWarps * kWarpLanes;
  static constexpr int kWarpTokens = 8 * kTilesN;
  static constexpr int kTokens = kWarpTokens * kTokenWarps;
  static constexpr int kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr int kTiles = kTiledTileChannels / kTileChannels;
  static constexpr int kWeightBytes = kTiles * kTileBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kTokenBytes;
  // Four more channels a token spread a warp's stores over the banks.
  static constexpr int kSumPitch = kTiledTileChannels + 4;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = kTokens * kSumPitch * 4;
  static constexpr int kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;
  static_assert(kSharedBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 give a CTA at most 99 KiB of shared memory");
};

// The part of the problem that one CTA computes: blocks [first, end) of 128 input channels.
struct TiledRange {
  long long first_channel;
  long long first_token;
  int first;
  int end;
};

// Tokens first: CTAs that read the same weights run side by side.
template <typename Tile>
__device__ __forceinline__ TiledRange tiled_range(int m, int ic) {
  const unsigned token_tiles = (static_cast<unsigned>(m) + Tile::kTokens - 1) / Tile::kTokens;
  const int blocks = (ic + kBlockDepth - 1) / kBlockDepth;
  const int splits = static_cast<int>(gridDim.z);
  const int split = static_cast<int>(blockIdx.z);
  const int even = blocks / splits;
  const int longer = blocks - even * splits;  // the first `longer` ranges have one block more
  TiledRange range;
  range.first_channel = static_cast<long long>(blockIdx.x / token_tiles) * kTiledTileChannels;
  range.first_token = static_cast<long long>(blockIdx.x % token_tiles) * Tile::kTokens;
  range.first = split * even + (split < longer ? split : longer);
  range.end = range.first + even + (split < longer ? 1 : 0);
  return range;
}

// What lies beyond oc, m and ic is 0.
template <typename Tile, typename Element>
__device__ __forceinline__ void copy_tiled_stage(const AwqGemmOperands<Element>& operands, const TiledRange& range,
                                                 int block, unsigned s_stage) {
  constexpr int kPieces = Tile::kTileBytes / kLaneBytes;  // of a tile
  const long long tiles = (static_cast<long long>(operands.oc) + kTileChannels - 1) / kTileChannels;
  const long long first_tile = range.first_channel / kTileChannels;
  const long long columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
  const unsigned char* g_weights = reinterpret_cast<const unsigned char*>(operands.weights);
#pragma unroll 1
  for (int piece = static_cast<int>(threadIdx.x); piece < Tile::kTiles * kPieces; piece += Tile::kThreads) {
    const int tile = piece / kPieces;
    const bool valid = first_tile + tile < tiles;
    const long long offset = ((first_tile + tile) * columns + block) * Tile::kTileBytes + piece % kPieces * kLaneBytes;
    cp_async_16(s_stage + piece * kLaneBytes, g_weights + (valid ? offset : 0), valid);
  }
  const int chunk = static_cast<int>(threadIdx.x) % kTokenChunks;
  const int k = block * kBlockDepth + chunk * kChunkChannels;
#pragma unroll
  for (int pass = 0; pass < Tile::kTokens * kTokenChunks / Tile::kThreads; ++pass) {
    const int token = pass * (Tile::kThreads / kTokenChunks) + static_cast<int>(threadIdx.x) / kTokenChunks;
    const bool valid = range.first_token + token < operands.m && k < operands.ic;
    const Element* g_x = operands.x + (valid ? (range.first_token + token) * operands.ldx + k : 0);
    cp_async_16(s_stage + Tile::kWeightBytes + token_offset(token, chunk), g_x, valid);
  }
}

template <typename Tile, typename Element>
__device__ __forceinline__ void awq_gemm_tiled_tile(const AwqGemmOperands<Element>& operands,
                                                    float* __restrict__ g_partials) {  // (split_k, m, oc)
  unsigned char* s_ring = dynamic_shared<unsigned char>();
  const unsigned s_ring_address = shared_address(s_ring);
  const TiledRange range = tiled_range<Tile>(operands.m, operands.ic);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int warp_block = warp % Tile::kWarpsM;
  const int warp_token = warp / Tile::kWarpsM * Tile::kWarpTokens;

  auto copy_stage = [&](int block, int stage) {
    if (block < range.end) {
      copy_tiled_stage<Tile>(operands, range, block, s_ring_address + stage * Tile::kStageBytes);
    }
    cp_async_commit();  // an empty group past the end keeps the count of groups that are waited for
  };
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_stage(range.first + stage, stage);

  float sums[Tile::kTilesM][Tile::kTilesN][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int block = range.first; block < range.end; ++block) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // the stage is visible to all, and all have left the one that is overwritten next
    copy_stage(block + Tile::kStages - 1, stage == 0 ? Tile::kStages - 1 : stage - 1);
    const unsigned offset = static_cast<unsigned>(stage * Tile::kStageBytes);
    multiply_block<Tile, Element>(
        SharedBlocks<Tile>{s_ring + offset + warp_block * block_bytes(Tile::kGroups), lane},
        TokenRows{s_ring_address + offset + Tile::kWeightBytes + warp_token * kTokenBytes}, lane, operands.scales_bf16,
        sums);
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }

  cp_async_wait<0>();
  __syncthreads();  // the ring becomes the finished sums, (kTokens, channels), pitch kSumPitch
  float* s_sums = reinterpret_cast<float*>(s_ring);
#pragma unroll
  for (int tile = 0; tile < Tile::kTilesM; ++tile) {
#pragma unroll
    for (int n = 0; n < Tile::kTilesN; ++n) {
      float* s_token = s_sums + (warp_token + 8 * n + lane % 4 * 2) * Tile::kSumPitch +
                       warp_block * kBlockChannels + 16 * tile + lane / 4;
      s_token[0] = sums[tile][n][0];
      s_token[Tile::kSumPitch] = sums[tile][n][1];
      s_token[8] = sums[tile][n][2];
      s_token[Tile::kSumPitch + 8] = sums[tile][n][3];
    }
  }
  __syncthreads();

  store_sums<Tile::kTokens, kTiledTileChannels, Tile::kSumPitch>(operands, g_partials, s_sums, range.first_token,
                                                                 range.first_channel, static_cast<int>(threadIdx.x),
                                                                 Tile::kThreads);
}

}  // namespace baracuda
