// The kernel of awq_gemm for TILED weights (awq_tiles.cuh) and some tokens on sm_90a, where memory and arithmetic cost alike:
// y^T = W x^T by warpgroup instructions, weights as operand A, which is in registers, x as operand B in shared memory. One
// launch, no workspace.
//
// While mma.sync multiplies 8 tokens, a scheduler issues nothing else for 6.4 cycles (H200, m16n8k16); a warpgroup's
// instructions run while the next weights are made. So from some 16 tokens on this kernel takes less than awq_gemm_bulk.cuh.
//
// A CTA computes one or more tiles of kChannels output channels and kTokens tokens, one after the other. Two warpgroups take
// its items in turn, two blocks of weights each: of two strips of 64 output channels, which share what is read of x, or of one
// and twice as many input channels. Two other warps copy, one into a ring for each warpgroup: one for both falls behind. Where
// there are few tiles, two CTAs of a cluster (kParts) share out a tile's items.
//
// A warp's products go in batches of up to four k16 steps: while one runs, the next one's weights are made. A piece, of a
// strip and a group, has f32 sums of its own, which are scaled while the next one's products run. q - z is exact.
//
// A row's bits do not depend on m: tokens do not meet, and the order of k depends on ic, the groups, kStrips and kParts only.
//
// Weights as wgmma's operand A from registers: CUTLASS's example 55; splitting k over the warps of a CTA is Marlin's (Frantar
// et al., arXiv 2408.11743).
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/awq_gemm_wide_store.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/cluster.cuh"
#include "baracuda/elect.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/register_count.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/shared_memory.cuh"
#include "baracuda/warp_uniform.cuh"
#include "baracuda/wgmma.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWarpgroupKernelThreads, 384);

constexpr int kBlockSteps = kBlockDepth / 16;  // k16 steps of a block
constexpr int kBoxSteps = 4;                   // of a box of x: rows of 128 bytes
constexpr unsigned kBoxRow = 128;               // bytes

// Shapes of one entry point.
template <int kStripCount, int kTokenCount, int kGroupCount, int kClusterParts = 1>
struct WarpgroupShape {
  static constexpr int kStrips = kStripCount;  // of 64 output channels, of each warpgroup: 1 or 2
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr int kParts = kClusterParts;  // CTAs that share out k: 1 or 2
  static constexpr int kChannels = kStrips * kWarpgroupChannels;
  static constexpr int kSums = kTokens / 2;  // of a strip and a thread
  static constexpr int kDepths = 2;          // warpgroups that share out k
  static constexpr int kTileWarps = kWarpgroupThreads / kWarpLanes;
  static constexpr int kWarps = kDepths * kTileWarps;  // that multiply
  static constexpr int kThreads = kWarpgroupKernelThreads;
  static constexpr int kItemBlocks = 2 / kStrips;         // of 128 input channels, of an item
  static constexpr int kUnits = kStrips * kItemBlocks;    // blocks of 64 output channels, of an item: 2
  static constexpr int kPieces = kUnits * kGroups;        // of an item: what has sums of its own
  // Of x, in a ring. Operand B has kTokens rows, of which the last box may lack some. A constant: with a place as large as its
  // boxes, descriptors leave the uniform registers, 30 instructions an item.
  static constexpr unsigned kPlaceBytes = 2 * kItemBlocks * kTokens * kBoxRow;
  static constexpr int kPieceSteps = kBlockSteps / kGroups;
  static constexpr int kBatchSteps = kPieceSteps < 4 ? kPieceSteps : 4;
  static constexpr int kPieceBatches = kPieceSteps / kBatchSteps;
  static constexpr int kBatches = kPieces * kPieceBatches;
  static constexpr unsigned kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a strip, in one column of blocks
  static constexpr unsigned kWeightBytes = kUnits * kTileBytes;  // of an item
  static constexpr unsigned kSumBytes = kSums * kWarpgroupThreads * 4;  // of a strip
  static constexpr unsigned kExchanged = (kStrips + kParts - 1) * kSumBytes;
  static_assert(kBatches % 2 == 0, "batches take turns with two sets of fragments");
  static_assert(kStrips == 1 || kParts == 1, "a strip for two parts");
  static_assert(kDepths * kTileWarps + kTileWarps == kThreads / kWarpLanes, "a warpgroup copies");
};

// What a warp multiplies: its 16 channels of each strip.
template <typename Shape, typename Element>
struct WarpgroupProducts {
  static constexpr int kStrips = Shape::kStrips;
  static constexpr int kPieces = Shape::kPieces;

  bool scales_bf16;
  float sums[kStrips][Shape::kSums];
  float partial[2][Shape::kSums];  // of pieces in turn
  float2 scales[2];                // theirs, of rows r and r + 8
  unsigned words[2][Shape::kBatchSteps];  // of batches in turn
  unsigned fragments[2][Shape::kBatchSteps][4];
  unsigned r_scales[Shape::kUnits][Shape::kGroups], r_zeros[Shape::kUnits][Shape::kGroups];  // of an item

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < Shape::kSums; ++i) sums[strip][i] = 0.0f;
    }
  }

  // Of the item to multiply next; `s_item` is where the warp's part of it lies in the first unit.
  __device__ __forceinline__ void load(const unsigned char* s_item, int lane, int tile) {
#pragma unroll
    for (int unit = 0; unit < Shape::kUnits; ++unit) {
      const SharedBlocks<Shape> block{s_item + unit * Shape::kTileBytes, lane};
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        r_zeros[unit][group] = block.zeros(group, tile);
        r_scales[unit][group] = block.scales(group, tile);
      }
    }
  }

  // Of an item's pieces the strips of a group follow each other, then groups, then blocks.
  static __device__ __forceinline__ constexpr int unit_of(int piece) {
    return piece / (kStrips * Shape::kGroups) * kStrips + piece % kStrips;
  }

  // A piece, whose products have ended.
  __device__ __forceinline__ void finish(int piece) {
    const float2 scale = scales[piece % 2];
#pragma unroll
    for (int i = 0; i < Shape::kSums; ++i) {
      float& sum = sums[piece % kStrips][i];
      sum = fmaf(wgmma_settled(partial[piece % 2][i]), i % 4 < 2 ? scale.x : scale.y, sum);
    }
  }

  // The words of a batch; `s_words` is where the warp's part of them lies in the first unit. Volatile, or the compiler makes
  // all weights of an item before its first products, and then waits for them.
  __device__ __forceinline__ void load_words(const unsigned char* s_words, int index) {
    const int piece = index / Shape::kPieceBatches;
    const int step = piece / kStrips % Shape::kGroups * Shape::kPieceSteps + index % Shape::kPieceBatches * Shape::kBatchSteps;
    const int offset = step / kBoxSteps * (kWarpLanes * kLaneBytes) + step % kBoxSteps * 4;
    load_in_order(words[index % 2], s_words + unit_of(piece) * Shape::kTileBytes + offset);
  }

  // Begins the products of the item with its boxes of x, and ends all but the last.
  __device__ __forceinline__ void multiply(const unsigned char* s_words, unsigned s_rows, unsigned box_bytes) {
    using Pair = Int4Pair<Element>;
    unsigned zero_terms[2];
    load_words(s_words, 0);
#pragma unroll
    for (int index = 0; index < Shape::kBatches; ++index) {
      const int piece = index / Shape::kPieceBatches, batch = index % Shape::kPieceBatches;
      const int group = piece / kStrips % Shape::kGroups;
      if (index >= 2) wgmma_wait<1>();  // batches up to the last but one have ended
      if (index - 1 >= Shape::kPieceBatches && (index - 1) % Shape::kPieceBatches == 0) {
        finish((index - 1) / Shape::kPieceBatches - 1);
      }
      if (batch == 0) {
        const unsigned zeros = r_zeros[unit_of(piece)][group];
        scales[piece % 2] = scale_pair_to_f32(r_scales[unit_of(piece)][group], scales_bf16);
        zero_terms[0] = Pair::template zero_term<0>(nibble(zeros, 0));
        zero_terms[1] = Pair::template zero_term<1>(nibble(zeros, 1));
      }
      unsigned(&made)[Shape::kBatchSteps][4] = fragments[index % 2];
#pragma unroll
      for (int i = 0; i < Shape::kBatchSteps; ++i) {
        const unsigned word = words[index % 2][i];
        made[i][0] = Pair::template spread_pair<0>(word, zero_terms[0]);
        made[i][1] = Pair::template spread_pair<1>(word, zero_terms[1]);
        made[i][2] = Pair::template spread_pair<2>(word, zero_terms[0]);
        made[i][3] = Pair::template spread_pair<3>(word, zero_terms[1]);
      }
      if (index + 1 < Shape::kBatches) load_words(s_words, index + 1);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < Shape::kBatchSteps; ++i) {
        const int step = group * Shape::kPieceSteps + batch * Shape::kBatchSteps + i;
        const unsigned box = piece / (kStrips * Shape::kGroups) * 2 + step / kBoxSteps;
        const unsigned long long rows = wgmma_step(wgmma_rows(s_rows + box * box_bytes), step % kBoxSteps);
        if (batch == 0 && i == 0) {
          wgmma_m64k16_anew<Element>(partial[piece % 2], made[i], rows);
        } else {
          wgmma_m64k16<Element>(partial[piece % 2], made[i], rows);
        }
      }
      wgmma_commit();
    }
  }

  __device__ __forceinline__ void end() {
    wgmma_wait<0>();
    if (Shape::kPieceBatches == 1) finish(kPieces - 2);
    finish(kPieces - 1);
  }
};

// `tokens` are those of a box, a multiple of 8; `stages` those of a warpgroup's ring, which takes the next item before it lets
// go of one: two at least, unless there is one item.
template <typename Shape, typename Element>
__device__ __forceinline__ void awq_gemm_warpgroup(const AwqGemmOperands<Element>& operands, const TensorMap* x_map,
                                                   unsigned long long policy, int tokens, int stages, int tiles,
                                                   bool overlaps) {
  constexpr int kDepths = Shape::kDepths;
  unsigned char* s_memory = dynamic_shared_for_boxes();
  const unsigned s_base = warp_uniform(shared_address(s_memory));
  const unsigned box_bytes = tokens * kBoxRow;
  const unsigned x_bytes = 2 * Shape::kItemBlocks * box_bytes;  // of an item
  // Rings: place p of warpgroup d lies at kDepths * p + d.
  const unsigned weights = kDepths * stages * Shape::kPlaceBytes;
  const unsigned exchanged = weights + kDepths * stages * Shape::kWeightBytes;
  const unsigned rows = exchanged + Shape::kExchanged;
  const unsigned s_full = s_base + rows + kDepths * kWideStoreBytes;  // barriers: that an item is full
  const unsigned s_empty = s_full + kDepths * stages * kBarrierBytes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(warp_uniform(threadIdx.x / kWarpLanes));

  const int all_blocks = (operands.ic + kBlockDepth - 1) / kBlockDepth;
  const int all_items = (all_blocks + Shape::kItemBlocks - 1) / Shape::kItemBlocks;  // of a tile
  int part = 0;
  int first_item = 0;
  int end_item = all_items;
  if constexpr (Shape::kParts == 2) {
    part = static_cast<int>(cluster_rank());
    const int share = (all_items + 1) / 2;
    first_item = part * share;
    end_item = part == 0 ? share : all_items;
  }
  const int all_tiles = (operands.oc + Shape::kChannels - 1) / Shape::kChannels;
  const int first_tile = static_cast<int>(blockIdx.x) / Shape::kParts * tiles;
  const int end_tile = first_tile + tiles < all_tiles ? first_tile + tiles : all_tiles;
  const int first_token = static_cast<int>(blockIdx.y) * tokens;

  // Of the ring that this warp fills or empties.
  const int depth = static_cast<int>(warp_uniform(warp < Shape::kWarps ? warp / Shape::kTileWarps : warp - Shape::kWarps));
  const bool copies = warp >= Shape::kWarps && depth < kDepths;
  const unsigned char* g_weights = reinterpret_cast<const unsigned char*>(operands.weights);
  const int last_strip = (operands.oc + kWarpgroupChannels - 1) / kWarpgroupChannels - 1;
  RingPlace next;  // to copy to
  // Where the place of a ring lies in memory that has `bytes` for each.
  const auto at = [&](int place, unsigned bytes) { return static_cast<unsigned>(place * kDepths + depth) * bytes; };
  const auto copy_weights = [&](int tile, int item) {
    const unsigned s_barrier = s_full + at(next.place, kBarrierBytes);
    mbarrier_arrive_expecting(s_barrier, x_bytes + Shape::kWeightBytes);
#pragma unroll
    for (int unit = 0; unit < Shape::kUnits; ++unit) {
      // Beyond oc any, nothing is stored; beyond ic any, x is 0.
      const int strip = tile * Shape::kStrips + unit % Shape::kStrips;
      const int block = item * Shape::kItemBlocks + unit / Shape::kStrips;
      const long long from = static_cast<long long>(strip < last_strip ? strip : last_strip) * all_blocks +
                             (block < all_blocks ? block : all_blocks - 1);
      bulk_copy(s_base + weights + at(next.place, Shape::kWeightBytes) + unit * Shape::kTileBytes,
                g_weights + from * Shape::kTileBytes, Shape::kTileBytes, s_barrier, policy);
    }
  };
  const auto copy_tokens = [&](int item) {
    box_copy(s_base + at(next.place, Shape::kPlaceBytes), x_map, 0, first_token, item * (2 * Shape::kItemBlocks),
             s_full + at(next.place, kBarrierBytes));
  };
  int copied = 0;
  if (copies) {
    if (elect_one()) {
#pragma unroll 1
      for (int place = 0; place < stages; ++place) {
        mbarrier_init(s_full + at(place, kBarrierBytes), 1);
        mbarrier_init(s_empty + at(place, kBarrierBytes), Shape::kTileWarps);
      }
      mbarrier_fence_init();
    }
    // Weights that are asked for before x, which the launch ahead may be writing.
    const int early = overlaps ? stages : 1;
#pragma unroll 1
    for (int item = first_item + depth; copied < early && item < end_item; item += kDepths, ++copied) {
      if (elect_one()) {
        copy_weights(first_tile, item);
      }
      next.advance(stages);
    }
    grid_dependency_release();
    grid_dependency_wait();
    next = RingPlace{};
#pragma unroll 1
    for (int i = 0; i < copied; ++i) {
      if (elect_one()) {
        copy_tokens(first_item + depth + i * kDepths);
      }
      next.advance(stages);
    }
  }
  __syncwarp();
  __syncthreads();  // the barriers can be used
  if constexpr (Shape::kParts == 2) cluster_arrive_relaxed();
  if (warp >= Shape::kWarps) {
    lower_register_count<24>();
    if (copies) {
      int fresh = stages - copied;  // places that have not been filled
#pragma unroll 1
      for (int tile = first_tile; tile < end_tile; ++tile) {
#pragma unroll 1
        for (int item = first_item + depth + (tile == first_tile ? copied * kDepths : 0); item < end_item; item += kDepths) {
          if (fresh > 0) {
            --fresh;
          } else {
            mbarrier_wait(s_empty + at(next.place, kBarrierBytes), next.parity ^ 1);
          }
          if (elect_one()) {
            copy_weights(tile, item);
            copy_tokens(item);
          }
          next.advance(stages);
        }
      }
    }
    if constexpr (Shape::kParts == 2) {
      __syncwarp();
      cluster_wait();
    }
    return;
  }

  raise_register_count<240>();
  const int strip_warp = warp % Shape::kTileWarps;  // 16 channels of a strip
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
  const unsigned char* s_blocks = s_memory + weights + strip_warp / 2 * block_bytes(Shape::kGroups);
  WarpgroupProducts<Shape, Element> products;
  products.scales_bf16 = operands.scales_bf16;
  const unsigned char* s_words = s_blocks + (strip_warp % 2 * 2 * kWarpLanes + lane) * kLaneBytes;
  RingPlace ring;
#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; ++tile) {
    products.clear();
    int place = 0;
    const auto take = [&] {
      place = ring.place;
      mbarrier_wait(s_full + at(place, kBarrierBytes), ring.parity);
      products.load(s_blocks + at(place, Shape::kWeightBytes), lane, strip_warp % 2);
      ring.advance(stages);
    };
    if (first_item + depth < end_item) take();
#pragma unroll 1
    for (int item = first_item + depth; item < end_item; item += kDepths) {
      products.multiply(s_words + at(place, Shape::kWeightBytes), s_base + at(place, Shape::kPlaceBytes), box_bytes);
      const int done = place;
      if (item + kDepths < end_item) take();  // while the last products run
      products.end();
      __syncwarp();  // all lanes are done with it
      if (lane == 0) {
        mbarrier_arrive(s_empty + at(done, kBarrierBytes));
      }
    }

    // (kStrips, kSums / 4, threads), four sums each. A warpgroup stores a strip, and gives the other warpgroup its sums of
    // that one's; of one strip, the first stores it.
    if (tile != first_tile) {
      partial_barrier<kDepths * kWarpgroupThreads>(3);  // the last ones have been read
    }
    float4* s_sums = reinterpret_cast<float4*>(s_memory + exchanged) + thread;
    if (Shape::kStrips == 2 || depth == 1) {
      float4* s_other = s_sums + (Shape::kStrips == 2 ? (depth ^ 1) * (Shape::kSums / 4 * kWarpgroupThreads) : 0);
#pragma unroll
      for (int i = 0; i < Shape::kSums; i += 4) {
        const float(&all)[Shape::kStrips][Shape::kSums] = products.sums;
        constexpr int kLast = Shape::kStrips - 1;
        const bool first = Shape::kStrips == 2 && depth == 1;
        s_other[i / 4 * kWarpgroupThreads] =
            first ? make_float4(all[0][i], all[0][i + 1], all[0][i + 2], all[0][i + 3])
                  : make_float4(all[kLast][i], all[kLast][i + 1], all[kLast][i + 2], all[kLast][i + 3]);
      }
    }
    partial_barrier<kDepths * kWarpgroupThreads>(3);
    if (Shape::kStrips == 1 && depth == 1) {
      if constexpr (Shape::kParts == 2) {
        cluster_wait();
        return;
      }
      continue;
    }
    float own[Shape::kSums];
    const int strip = Shape::kStrips == 2 ? depth : 0;
    const float4* s_own = s_sums + strip * (Shape::kSums / 4 * kWarpgroupThreads);
#pragma unroll
    for (int i = 0; i < Shape::kSums; i += 4) {
      const float4 others = s_own[i / 4 * kWarpgroupThreads];
      const float other[4] = {others.x, others.y, others.z, others.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        own[i + j] = (strip == 0 ? products.sums[0][i + j] : products.sums[Shape::kStrips - 1][i + j]) + other[j];
      }
    }
    if constexpr (Shape::kParts == 2) {
      cluster_wait();  // the other part has begun
      // (kSums / 2, threads)
      const unsigned s_received = shared_address(s_memory) + exchanged + Shape::kSumBytes + thread * 8;
      if (part == 1) {
        const unsigned s_other = cluster_address(s_received, 0);
#pragma unroll
        for (int i = 0; i < Shape::kSums; i += 2) {
          store_cluster(s_other + i / 2 * kWarpgroupThreads * 8, make_float2(own[i], own[i + 1]));
        }
      }
      cluster_arrive();
      cluster_wait();
      if (part == 1) continue;
      const float2* s_pairs = reinterpret_cast<const float2*>(s_memory + exchanged + Shape::kSumBytes) + thread;
#pragma unroll
      for (int i = 0; i < Shape::kSums; i += 2) {
        const float2 pair = s_pairs[i / 2 * kWarpgroupThreads];
        own[i] += pair.x;
        own[i + 1] += pair.y;
      }
    }
    const int left = operands.m - first_token;
    store_warpgroup_sums<Shape::kTokens>(
        operands, own, s_memory + rows + depth * kWideStoreBytes, first_token, first_token + (left < tokens ? left : tokens),
        static_cast<long long>(tile) * Shape::kChannels + strip * kWarpgroupChannels, thread, 1 + depth);
  }
}

}  // namespace baracuda
