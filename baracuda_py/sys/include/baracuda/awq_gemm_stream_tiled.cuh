// TILED weights (awq_tiles.cuh) for the stream kernel of awq_gemm; see awq_gemm_stream_weights.cuh.
#pragma once

#include "baracuda/awq_gemm_stream_weights.cuh"

namespace baracuda {

template <int kTileCount, int kGroupCount, typename ElementType>
struct StreamTiled {
  using Element = ElementType;
  using Pair = Int4Pair<Element>;
  static constexpr int kTiles = kTileCount;  // m16 tiles
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kChannels = 16 * kTiles;
  static constexpr int kStageBytes = kTiles / 2 * block_bytes(kGroups);
  static constexpr int kTokenBytes = 8 * kChunkDepth * 2;  // x of an n8 tile's chunk, which passes through shared memory

  struct Blocks {
    static constexpr int kGroups = kGroupCount;
  };

  static __device__ __forceinline__ void copy(const AwqGemmOperands<Element>& operands, long long first_channel, int block,
                                              unsigned s_stage, int lane) {
    const int columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
    const long long unit = first_channel / kTileChannels * columns + block;  // of kBlockHalves blocks
    const unsigned char* g_block = reinterpret_cast<const unsigned char*>(operands.weights) +
                                   unit * (kBlockHalves * block_bytes(kGroups)) +
                                   first_channel % kTileChannels / kBlockChannels * block_bytes(kGroups);
    constexpr int kPieces = kStageBytes / kLaneBytes;
#pragma unroll
    for (int pass = 0; pass < (kPieces + kWarpLanes - 1) / kWarpLanes; ++pass) {
      const int piece = pass * kWarpLanes + lane;
      if (piece < kPieces) cp_async_16(s_stage + piece * kLaneBytes, g_block + piece * kLaneBytes, true);
    }
  }

  // Where 16 bytes of a chunk lie: eight rows of 64 bytes, exchanged so that eight tokens' lie in distinct banks.
  static __device__ __forceinline__ unsigned token_offset(int token, int quarter) {
    return static_cast<unsigned>(token * (kChunkDepth * 2) + (quarter ^ token / 2 % 4) * kLaneBytes);
  }

  template <int kTilesN>
  static __device__ __forceinline__ void store_tokens(unsigned char* s_tokens, int lane,
                                                      const uint4 (&x)[kTilesN][kBlockChunks]) {
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
      for (int chunk = 0; chunk < kBlockChunks; ++chunk) {
        unsigned char* s_chunk = s_tokens + (n * kBlockChunks + chunk) * kTokenBytes;
        *reinterpret_cast<uint4*>(s_chunk + token_offset(lane / 4, lane % 4)) = x[n][chunk];
      }
    }
    __syncwarp();  // x of all lanes is there
  }

  static __device__ __forceinline__ void tokens(const uint4&, unsigned s_chunk, int lane, unsigned (&b)[4]) {
    ldmatrix_x4(b, s_chunk + token_offset(lane % 8, lane / 8));
  }

  SharedBlocks<Blocks> blocks;
  uint4 r_words[kTiles];  // of two chunks
  bool second = false;    // of them
  unsigned r_upper[kTiles], r_lower[kTiles];

  __device__ __forceinline__ StreamTiled(const unsigned char* stage, int lane) : blocks{stage, lane} {}

  __device__ __forceinline__ void load_zeros(int group) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const unsigned zeros = blocks.zeros(group, tile);
      r_upper[tile] = Pair::template zero_term<0>(nibble(zeros, 0));
      r_lower[tile] = Pair::template zero_term<1>(nibble(zeros, 1));
    }
  }

  // Of rows g and g + 8 of a tile.
  __device__ __forceinline__ float2 scales(int group, int tile, bool scales_bf16) const {
    return scale_pair_to_f32(blocks.scales(group, tile), scales_bf16);
  }

  __device__ __forceinline__ void load_chunk(int chunk) {
    second = chunk % 2 != 0;
    if (second) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) r_words[tile] = blocks.words(tile, chunk / 2);
  }

  __device__ __forceinline__ void fragment(int step, int tile, unsigned (&a)[4]) const {
    const uint4& words = r_words[tile];
    const unsigned word = second ? (step == 0 ? words.z : words.w) : (step == 0 ? words.x : words.y);
    a[0] = Pair::template spread_pair<0>(word, r_upper[tile]);
    a[1] = Pair::template spread_pair<1>(word, r_lower[tile]);
    a[2] = Pair::template spread_pair<2>(word, r_upper[tile]);
    a[3] = Pair::template spread_pair<3>(word, r_lower[tile]);
  }

  static __device__ __forceinline__ StreamPair pair(int lane, int tile) {
    const int column = lane / 4;
    return pair_of_lanes(lane, tile, 16 * tile + 8 * (column % 2) + (column & ~1));
  }
};

}  // namespace baracuda
