// The kernel of awq_gemm for TILED weights (awq_tiles.cuh) and many tokens on sm_90a: y^T = W x^T by warpgroup instructions,
// weights as operand A, which is in registers, x as operand B, which they read from shared memory. k is cut over blockIdx.z.
//
// A CTA computes 128 output channels of kTokens tokens over one range of k. One warp copies: in a ring of stages, a block of
// 128 input channels each, two tiles' packed weights by bulk copies and x as boxes. Two warpgroups take a tile of 64 channels
// each, a warp 16 of them. While the tensor cores work on one half of a block, the other half's weights are made.
//
// A weight is (q - z) * s, rounded to the element's type once; sums are f32, over all of the range.
//
// Weights as wgmma's operand A from registers: CUTLASS's example 55; dequantising under running instructions, and the rest
// of the schedule, is our prototype's.
#pragma once

#include "baracuda/awq_gemm_sums.cuh"
#include "baracuda/awq_gemm_tiled_tile.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/wgmma.cuh"

namespace baracuda {

// Shapes of one entry point.
template <int kTokenCount, int kGroupCount>
struct WideShape {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kSums = kTokens / 2;    // of a thread
  static constexpr int kTiles = kTiledTileChannels / kTileChannels;
  static constexpr int kTileWarps = kTileChannels / 16;  // a warpgroup
  static constexpr int kWarps = kTiles * kTileWarps;     // that compute
  static constexpr int kThreads = (kWarps + 1) * kWarpLanes;
  static constexpr unsigned kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr unsigned kWeightBytes = kTiles * kTileBytes;
  static constexpr unsigned kRowBytes = 128;  // of a box: 64 input channels
  static constexpr unsigned kBoxBytes = kTokens * kRowBytes;
  static constexpr unsigned kTokenBytes = 2 * kBoxBytes;  // of a block
  static constexpr int kSumPitch = kTiledTileChannels + 4;  // so that lanes of other tokens write to distinct banks
  static_assert(2 * (kTokenBytes + kWeightBytes) >= kTokens * kSumPitch * 4, "the sums take the place of two stages");
  static_assert(kBoxBytes % 1024 == 0, "operand B begins at multiples of 1024 bytes");
};

// The weights of a warp in half a block as operand A, one fragment a k16 step, and what they are made of.
template <typename Shape, typename Element>
struct WideWeights {
  static constexpr int kSteps = 4;  // k16 steps of half a block
  uint4 r_words[2];
  unsigned r_zeros[Shape::kGroups];
  unsigned r_scales[Shape::kGroups];  // of rows r and r + 8
  unsigned r_fragments[2][kSteps][4];

  __device__ __forceinline__ void load(const SharedBlocks<Shape>& block, int tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) r_words[half] = block.words(tile, half);
#pragma unroll
    for (int group = 0; group < Shape::kGroups; ++group) {
      r_zeros[group] = block.zeros(group, tile);
      r_scales[group] = block.scales(group, tile);
    }
  }

  template <int kHalf>
  __device__ __forceinline__ void make(bool scales_bf16) {
    using Pair = Int4Pair<Element>;
    const unsigned words[kSteps] = {r_words[kHalf].x, r_words[kHalf].y, r_words[kHalf].z, r_words[kHalf].w};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int group = (kHalf * kSteps + step) * Shape::kGroups / (2 * kSteps);
      const float2 scales = scale_pair_to_f32(r_scales[group], scales_bf16);
      const unsigned upper_scale = pair_from_f32<Element>(scales.x, scales.x);
      const unsigned lower_scale = pair_from_f32<Element>(scales.y, scales.y);
      const unsigned upper = Pair::template zero_term<0>(nibble(r_zeros[group], 0));
      const unsigned lower = Pair::template zero_term<1>(nibble(r_zeros[group], 1));
      unsigned(&a)[4] = r_fragments[kHalf][step];
      a[0] = fma_pair<Element>(Pair::template spread_pair<0>(words[step], upper), upper_scale, 0);
      a[1] = fma_pair<Element>(Pair::template spread_pair<1>(words[step], lower), lower_scale, 0);
      a[2] = fma_pair<Element>(Pair::template spread_pair<2>(words[step], upper), upper_scale, 0);
      a[3] = fma_pair<Element>(Pair::template spread_pair<3>(words[step], lower), lower_scale, 0);
    }
  }

  // Starts the products of one half with a box of x.
  template <int kHalf>
  __device__ __forceinline__ void multiply(float (&sums)[Shape::kSums], unsigned s_box) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      wgmma_m64k16<Element>(sums, r_fragments[kHalf][step], wgmma_rows(s_box + 32 * step));
    }
    wgmma_commit();
  }
};

template <typename Shape, typename Element>
__device__ __forceinline__ void awq_gemm_tiled_wide(const AwqGemmOperands<Element>& operands,
                                                    float* __restrict__ g_partials,  // (ranges, m, oc)
                                                    const TensorMap* x_map, int stages) {
  unsigned char* s_memory = dynamic_shared_for_boxes();
  const unsigned s_base = shared_address(s_memory);
  const unsigned weights = stages * Shape::kTokenBytes;  // the ring of x lies before that of weights
  const unsigned s_full = s_base + weights + stages * Shape::kWeightBytes;
  const unsigned s_empty = s_full + stages * kBarrierBytes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const TiledRange range = tiled_range<Shape>(operands.m, operands.ic);
  const long long all_tiles = (static_cast<long long>(operands.oc) + kTileChannels - 1) / kTileChannels;
  const long long first_tile = range.first_channel / kTileChannels;
  const int tiles = first_tile + 1 < all_tiles ? Shape::kTiles : 1;  // the last CTA may have one

  const bool copies = warp == Shape::kWarps;
  if (copies) {
    if (lane == 0) {
      for (int stage = 0; stage < stages; ++stage) {
        mbarrier_init(s_full + stage * kBarrierBytes, 1);
        mbarrier_init(s_empty + stage * kBarrierBytes, tiles * Shape::kTileWarps);
      }
      mbarrier_fence_init();
    }
    grid_dependency_release();
  }
  __syncwarp();
  __syncthreads();  // the barriers can be used
  if (copies) {
    if (lane != 0) return;
    const long long columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
    grid_dependency_wait();  // x may be what the launch before writes
    RingPlace stage;
    for (int block = range.first; block < range.end; ++block) {
      if (block - range.first >= stages) {
        mbarrier_wait(s_empty + stage.place * kBarrierBytes, stage.parity ^ 1);
      }
      const unsigned s_barrier = s_full + stage.place * kBarrierBytes;
      mbarrier_arrive_expecting(s_barrier, Shape::kTokenBytes + tiles * Shape::kTileBytes);
      for (int tile = 0; tile < tiles; ++tile) {
        const unsigned char* g_tile = reinterpret_cast<const unsigned char*>(operands.weights) +
                                      ((first_tile + tile) * columns + block) * Shape::kTileBytes;
        bulk_copy(s_base + weights + stage.place * Shape::kWeightBytes + tile * Shape::kTileBytes, g_tile,
                  Shape::kTileBytes, s_barrier);
      }
      box_copy(s_base + stage.place * Shape::kTokenBytes, x_map, 0, static_cast<int>(range.first_token), 2 * block,
               s_barrier);
      stage.advance(stages);
    }
    return;
  }

  const int tile = warp / Shape::kTileWarps;
  const int strip = warp % Shape::kTileWarps;  // of 16 channels
  float sums[Shape::kSums] = {};
  if (tile < tiles && range.first < range.end) {
    const unsigned char* s_blocks = s_memory + weights + tile * Shape::kTileBytes +
                                    strip / 2 * block_bytes(Shape::kGroups);
    WideWeights<Shape, Element> r_weights;
    RingPlace stage;
    const auto load = [&] {
      mbarrier_wait(s_full + stage.place * kBarrierBytes, stage.parity);
      r_weights.load(SharedBlocks<Shape>{s_blocks + stage.place * Shape::kWeightBytes, lane}, strip % 2);
    };
    load();
    r_weights.template make<0>(operands.scales_bf16);
    int before = -1;  // the stage that instructions before these may still read
#pragma unroll 1
    for (int block = range.first; block < range.end; ++block) {
      const int current = stage.place;
      const unsigned s_box = s_base + current * Shape::kTokenBytes;
      r_weights.template multiply<0>(sums, s_box);
      wgmma_wait<1>();  // the block before is done
      if (before >= 0) {
        __syncwarp();  // so are all lanes
        if (lane == 0) {
          mbarrier_arrive(s_empty + before * kBarrierBytes);
        }
      }
      r_weights.template make<1>(operands.scales_bf16);
      r_weights.template multiply<1>(sums, s_box + Shape::kBoxBytes);
      stage.advance(stages);
      if (block + 1 < range.end) load();
      wgmma_wait<1>();  // the first half is done
      if (block + 1 < range.end) r_weights.template make<0>(operands.scales_bf16);
      before = current;
    }
    wgmma_wait<0>();
    wgmma_settle(sums);
  }

  partial_barrier<Shape::kWarps * kWarpLanes>();  // the rings become the finished sums, (kTokens, channels)
  float* s_sums = reinterpret_cast<float*>(s_memory);
  if (tile < tiles) {
#pragma unroll
    for (int n = 0; n < Shape::kTokens / 8; ++n) {
      float* s_token = s_sums + (8 * n + lane % 4 * 2) * Shape::kSumPitch + tile * kTileChannels + strip * 16 + lane / 4;
      s_token[0] = sums[4 * n];
      s_token[Shape::kSumPitch] = sums[4 * n + 1];
      s_token[8] = sums[4 * n + 2];
      s_token[Shape::kSumPitch + 8] = sums[4 * n + 3];
    }
  }
  partial_barrier<Shape::kWarps * kWarpLanes>();
  store_sums<Shape::kTokens, kTiledTileChannels, Shape::kSumPitch>(
      operands, g_partials, s_sums, range.first_token, range.first_channel, static_cast<int>(threadIdx.x),
      Shape::kWarps * kWarpLanes);
}

}  // namespace baracuda
