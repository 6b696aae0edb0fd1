// The kernel of awq_gemm for TILED weights (awq_tiles.cuh): y^T = W x^T, weights as mma operand A, tokens as operand B's
// columns.
//
// A CTA computes kChannels output channels of kTokens tokens. Its warps share out the blocks of 128 input channels (warp
// w takes w, w + warps, ...), and each streams its own through a ring of its own: a stage is the block's packed weights,
// which are contiguous, and the tokens' x. So there is no barrier of the CTA before the sums of the warps are added, in
// the order of the warps.
//
// A row's bits do not depend on m: tokens do not meet, and the order of k depends on ic, the groups and the warps only.
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

// Shapes of one entry point.
template <int kBlockCount, int kTokenTiles, int kGroupCount, int kRing>
struct TiledShape {
  static constexpr int kBlocks = kBlockCount;  // of 32 output channels: 1, or 2, a whole tile
  static constexpr int kTilesM = 2 * kBlocks;  // m16 tiles
  static constexpr int kTilesN = kTokenTiles;  // n8 tiles
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kStages = kRing;
  static constexpr int kChannels = kBlockChannels * kBlocks;
  static constexpr int kTokens = 8 * kTilesN;
  static constexpr int kWeightBytes = block_bytes(kGroups) * kBlocks;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes * kTokens;
  static constexpr int kRingBytes = kStageBytes * kStages;  // of a warp
  static constexpr int kSumBytes = kChannels * kTokens * 4;  // of a warp
  static_assert(kSumBytes <= kRingBytes, "the sums of a warp take the place of its ring");
  static_assert(kStages >= 2, "one stage is read while another is filled");
};

// What a warp copies from, and how far it has come.
template <typename Shape, typename Element>
struct TiledStream {
  const AwqGemmOperands<Element>& operands;
  const unsigned char* g_weights;  // the CTA's first block
  long long first_token;

  // Block `block` of 128 input channels into a stage; what lies beyond x is 0.
  __device__ __forceinline__ void copy(unsigned s_stage, int block, int lane) const {
    constexpr int kPieces = Shape::kWeightBytes / kLaneBytes;
    const unsigned char* g_block =
        g_weights + static_cast<long long>(block) * (kBlockHalves * block_bytes(Shape::kGroups));
#pragma unroll
    for (int pass = 0; pass < (kPieces + kWarpLanes - 1) / kWarpLanes; ++pass) {
      const int piece = pass * kWarpLanes + lane;
      if (piece < kPieces) cp_async_16(s_stage + piece * kLaneBytes, g_block + piece * kLaneBytes, true);
    }
    const int chunk = lane % kTokenChunks;
    const int k = block * kBlockDepth + chunk * kChunkChannels;
#pragma unroll
    for (int token = lane / kTokenChunks; token < Shape::kTokens; token += kWarpLanes / kTokenChunks) {
      const bool valid = first_token + token < operands.m && k < operands.ic;
      const Element* g_x = operands.x + (valid ? (first_token + token) * operands.ldx + k : 0);
      cp_async_16(s_stage + Shape::kWeightBytes + token_offset(token, chunk), g_x, valid);
    }
  }
};

template <typename Shape, typename Element>
__device__ __forceinline__ void awq_gemm_tiled(const AwqGemmOperands<Element>& operands) {
  unsigned char* s_rings = dynamic_shared<unsigned char>();  // (warps, kRingBytes)
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int warps = static_cast<int>(blockDim.x) / kWarpLanes;
  const int blocks = (operands.ic + kBlockDepth - 1) / kBlockDepth;
  // Tokens first: CTAs that read the same weights run side by side. What a row of the grid does not hold is in the next.
  const unsigned channel_blocks = (static_cast<unsigned>(operands.oc) + Shape::kChannels - 1) / Shape::kChannels;
  const unsigned token_blocks = gridDim.x / channel_blocks;
  const long long first_channel = static_cast<long long>(blockIdx.x / token_blocks) * Shape::kChannels;
  const long long first_token =
      (static_cast<long long>(blockIdx.y) * token_blocks + blockIdx.x % token_blocks) * Shape::kTokens;

  const long long tile_bytes = static_cast<long long>(blocks) * (kBlockHalves * block_bytes(Shape::kGroups));
  const TiledStream<Shape, Element> stream{
      operands,
      reinterpret_cast<const unsigned char*>(operands.weights) + first_channel / kTileChannels * tile_bytes +
          first_channel % kTileChannels / kBlockChannels * block_bytes(Shape::kGroups),
      first_token};
  unsigned char* s_ring = s_rings + warp * Shape::kRingBytes;
  const unsigned s_ring_address = shared_address(s_ring);

  float sums[Shape::kTilesM][Shape::kTilesN][4] = {};
  int copied = warp;  // the next block to copy
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage, copied += warps) {
    if (copied < blocks) stream.copy(s_ring_address + stage * Shape::kStageBytes, copied, lane);
    cp_async_commit();  // an empty group past the end keeps the count of groups that are waited for
  }
  int stage = 0;
#pragma unroll 1
  for (int block = warp; block < blocks; block += warps, copied += warps) {
    cp_async_wait<Shape::kStages - 2>();
    __syncwarp();  // the stage is visible to all lanes, and all have left the one that is overwritten next
    const int freed = stage == 0 ? Shape::kStages - 1 : stage - 1;
    if (copied < blocks) stream.copy(s_ring_address + freed * Shape::kStageBytes, copied, lane);
    cp_async_commit();
    multiply_block<Shape, Element>(
        SharedBlocks<Shape>{s_ring + stage * Shape::kStageBytes, lane},
        TokenRows{s_ring_address + stage * Shape::kStageBytes + Shape::kWeightBytes}, lane, operands.scales_bf16, sums);
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }

  cp_async_wait<0>();
  __syncthreads();  // the rings become the warps' sums, (warps, kTokens, kChannels)
  float* s_sums = reinterpret_cast<float*>(s_rings);
  float* s_warp = s_sums + warp * (Shape::kTokens * Shape::kChannels);
#pragma unroll
  for (int tile = 0; tile < Shape::kTilesM; ++tile) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
      float* s_token = s_warp + (8 * n + lane % 4 * 2) * Shape::kChannels + 16 * tile + lane / 4;
      s_token[0] = sums[tile][n][0];
      s_token[Shape::kChannels] = sums[tile][n][1];
      s_token[8] = sums[tile][n][2];
      s_token[Shape::kChannels + 8] = sums[tile][n][3];
    }
  }
  __syncthreads();

  constexpr int kPairs = Shape::kChannels / 2;
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < Shape::kTokens * kPairs;
       index += static_cast<int>(blockDim.x)) {
    const int token = index / kPairs;
    const int pair = index % kPairs * 2;
    if (first_token + token >= operands.m || first_channel + pair >= operands.oc) continue;
    const float* s_pair = s_sums + token * Shape::kChannels + pair;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
    for (int part = 0; part < warps; ++part) {
      const float2 partial =
          *reinterpret_cast<const float2*>(s_pair + part * (Shape::kTokens * Shape::kChannels));
      sum.x += partial.x;
      sum.y += partial.y;
    }
    store_output_pair(operands, first_token + token, first_channel + pair, sum);
  }
}

}  // namespace baracuda
