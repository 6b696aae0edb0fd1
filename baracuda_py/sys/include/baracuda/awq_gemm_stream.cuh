// The stream kernel of awq_gemm: y^T = W x^T, weights as mma operand A, tokens as operand B's columns. One launch, no
// workspace.
//
// A warp computes 32 or 64 output channels of kTokens tokens. `rows` warps of a CTA take neighbouring channels; such columns
// of warps share out the blocks of 128 input channels (column w takes w, w + columns, ...). A warp copies its own weights to a
// ring of its own, several blocks ahead, and loads its own tokens' x to registers, one block ahead: so there is no barrier of
// the CTA before the sums of the warps are added, in the order of the columns.
//
// A row's bits do not depend on m: tokens do not meet, and the order of k depends on ic, the groups and the columns only.
#pragma once

#include "baracuda/awq_gemm_stream_weights.cuh"
#include "baracuda/shared_memory.cuh"

namespace baracuda {

// Shapes of one entry point. Weights is a struct of awq_gemm_stream_weights.cuh.
template <typename WeightsType, int kTokenTiles, int kRing>
struct StreamShape {
  using Weights = WeightsType;
  using Element = typename Weights::Element;
  static constexpr int kTilesM = Weights::kTiles;  // m16 tiles
  static constexpr int kTilesN = kTokenTiles;      // n8 tiles
  static constexpr int kStages = kRing;
  static constexpr int kTokens = 8 * kTilesN;
  static constexpr int kRingBytes = kStages * Weights::kStageBytes;
  static constexpr int kWarpBytes = kRingBytes + kTilesN * kBlockChunks * Weights::kTokenBytes;
  static constexpr int kSums = kTilesM * kTilesN * 4;  // of a lane
  static_assert(kSums * kWarpLanes * 4 <= kWarpBytes, "the sums of a warp take the place of its ring");
  static_assert(kStages >= 2, "one stage is read while another is filled");
};

// A lane's x: of token 8n + lane / 4, eight input channels of each chunk of a block. What lies beyond m and ic is 0.
template <typename Shape>
struct StreamTokens {
  const AwqGemmOperands<typename Shape::Element>& operands;
  long long first_token;
  int lane;
  uint4 r_x[Shape::kTilesN][kBlockChunks];

  __device__ __forceinline__ void load(int block, int n, int chunk) {
    const long long token = first_token + 8 * n + lane / 4;
    const int k = block * kBlockDepth + chunk * kChunkDepth + lane % 4 * kChunkChannels;
    r_x[n][chunk] = token < operands.m && k < operands.ic
                        ? __ldg(reinterpret_cast<const uint4*>(operands.x + token * operands.ldx + k))
                        : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void load(int block) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
      for (int chunk = 0; chunk < kBlockChunks; ++chunk) load(block, n, chunk);
    }
  }
};

// Adds the product of a block and `tokens` to `sums`. What is used up of `tokens` is replaced by block `next`'s at once.
// q - z is exact; f32 sums are scaled once a group.
template <typename Shape>
__device__ __forceinline__ void multiply_stream_block(const unsigned char* s_stage, unsigned char* s_tokens, int lane,
                                                      bool scales_bf16, StreamTokens<Shape>& tokens, int next,
                                                      float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
  using Weights = typename Shape::Weights;
  constexpr int kPartChunks = kBlockChunks / Weights::kGroups;
  const unsigned s_token_address = shared_address(s_tokens);
  if constexpr (Weights::kTokenBytes != 0) {
    Weights::store_tokens(s_tokens, lane, tokens.r_x);
    tokens.load(next);
  }
  Weights weights(s_stage, lane);
#pragma unroll
  for (int part = 0; part < Weights::kGroups; ++part) {
    weights.load_zeros(part);
    float partial[Shape::kTilesM][Shape::kTilesN][4] = {};
#pragma unroll
    for (int chunk = part * kPartChunks; chunk < (part + 1) * kPartChunks; ++chunk) {
      weights.load_chunk(chunk);
      unsigned b[Shape::kTilesN][4];
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
        Weights::tokens(tokens.r_x[n][chunk], s_token_address + (n * kBlockChunks + chunk) * Weights::kTokenBytes, lane,
                        b[n]);
        if constexpr (Weights::kTokenBytes == 0) tokens.load(next, n, chunk);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int tile = 0; tile < Shape::kTilesM; ++tile) {
          unsigned a[4];
          weights.fragment(step, tile, a);
#pragma unroll
          for (int n = 0; n < Shape::kTilesN; ++n) {
            mma_m16n8k16<typename Shape::Element>(partial[tile][n], a, b[n][2 * step], b[n][2 * step + 1]);
          }
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) {
      const float2 scales = weights.scales(part, tile, scales_bf16);
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
        sums[tile][n][0] = fmaf(partial[tile][n][0], scales.x, sums[tile][n][0]);
        sums[tile][n][1] = fmaf(partial[tile][n][1], scales.x, sums[tile][n][1]);
        sums[tile][n][2] = fmaf(partial[tile][n][2], scales.y, sums[tile][n][2]);
        sums[tile][n][3] = fmaf(partial[tile][n][3], scales.y, sums[tile][n][3]);
      }
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void awq_gemm_stream(const AwqGemmOperands<typename Shape::Element>& operands, int rows) {
  using Weights = typename Shape::Weights;
  unsigned char* s_warps = dynamic_shared<unsigned char>();  // (warps, kWarpBytes)
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int columns = static_cast<int>(blockDim.x) / kWarpLanes / rows;
  const int column = warp / rows;
  // Tokens first: CTAs that read the same weights run side by side. What a row of the grid does not hold is in the next.
  const int block_channels = rows * Weights::kChannels;
  const unsigned channel_blocks = (static_cast<unsigned>(operands.oc) + block_channels - 1) / block_channels;
  const unsigned token_blocks = gridDim.x / channel_blocks;
  const long long block_channel = static_cast<long long>(blockIdx.x / token_blocks) * block_channels;
  const long long first_channel = block_channel + warp % rows * Weights::kChannels;
  const long long first_token =
      (static_cast<long long>(blockIdx.y) * token_blocks + blockIdx.x % token_blocks) * Shape::kTokens;
  const int blocks = first_channel < operands.oc ? (operands.ic + kBlockDepth - 1) / kBlockDepth : 0;

  unsigned char* s_ring = s_warps + warp * Shape::kWarpBytes;
  const unsigned s_ring_address = shared_address(s_ring);
  int copied = column;  // the next block to copy
  const auto copy_next = [&](int stage) {
    if (copied < blocks) {
      Weights::copy(operands, first_channel, copied, s_ring_address + stage * Weights::kStageBytes, lane);
    }
    cp_async_commit();  // an empty group past the end keeps the count of groups that are waited for
    copied += columns;
  };
#pragma unroll 1
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) copy_next(stage);

  StreamTokens<Shape> tokens{operands, first_token, lane};
  if (column < blocks) tokens.load(column);
  float sums[Shape::kTilesM][Shape::kTilesN][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int block = column; block < blocks; block += columns) {
    cp_async_wait<Shape::kStages - 2>();
    __syncwarp();  // the stage is visible to all lanes, and all have left the one that is overwritten next
    copy_next(stage == 0 ? Shape::kStages - 1 : stage - 1);
    multiply_stream_block<Shape>(s_ring + stage * Weights::kStageBytes, s_ring + Shape::kRingBytes, lane,
                                 operands.scales_bf16, tokens, block + columns, sums);
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }

  __syncwarp();  // the ring, to which no copy is on its way, becomes the warp's sums, (kSums, lanes)
  float* s_sums = reinterpret_cast<float*>(s_ring);
#pragma unroll
  for (int tile = 0; tile < Shape::kTilesM; ++tile) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        s_sums[((tile * Shape::kTilesN + n) * 4 + r) * kWarpLanes + lane] = sums[tile][n][r];
      }
    }
  }
  __syncthreads();

  constexpr int kWarpPairs = Shape::kSums / 2 * kWarpLanes;
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < rows * kWarpPairs; index += static_cast<int>(blockDim.x)) {
    const int row = index / kWarpPairs;
    const int odd = index / kWarpLanes % 2;  // token
    const int n = index / (2 * kWarpLanes) % Shape::kTilesN;
    const StreamPair pair = Weights::pair(index % kWarpLanes, index / (2 * kWarpLanes) / Shape::kTilesN % Shape::kTilesM);
    const long long token = first_token + 8 * n + index % 4 * 2 + odd;
    const long long channel = block_channel + row * Weights::kChannels + pair.channel;
    if (token >= operands.m || channel >= operands.oc) continue;
    const auto place = [&](int which) {
      const int sum = (pair.tile[which] * Shape::kTilesN + n) * 4 + 2 * pair.half[which] + odd;
      return sum * kWarpLanes + pair.lane[which];
    };
    const int first = place(0), second = place(1);
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
    for (int part = 0; part < columns; ++part) {
      const float* s_part = reinterpret_cast<const float*>(s_warps + (part * rows + row) * Shape::kWarpBytes);
      sum.x += s_part[first];
      sum.y += s_part[second];
    }
    store_output_pair(operands, token, channel, sum);
  }
}

}  // namespace baracuda
