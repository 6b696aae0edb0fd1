// The kernel of awq_gemm for TILED weights (awq_tiles.cuh) and many tokens on sm_90a: y^T = W x^T by warpgroup instructions,
// weights as operand A, which is in registers, x as operand B, which they read from shared memory.
//
// A CTA computes tiles of 128 output channels of kTokens tokens, one after the other (WideSchedule). One warp copies, into
// rings, boxes of x of 64 input channels and blocks of packed weights of 128, ahead of two warpgroups, which take 64 channels
// each, a warp 16 of them. While the tensor cores work on k16 steps, the next ones' weights are made. For few tokens there are
// two such pairs, which take a block in turn, and the second's sums are added to the first's.
//
// A weight is (q - z) * s, rounded to the element's type once; sums are f32, over all of a range.
//
// Weights as wgmma's operand A from registers: CUTLASS's example 55; dequantising under running instructions, and the rest
// of the schedule, is our prototype's.
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/awq_gemm_wide_parts.cuh"
#include "baracuda/awq_gemm_wide_schedule.cuh"
#include "baracuda/awq_gemm_wide_store.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/register_count.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/shared_memory.cuh"
#include "baracuda/warp_uniform.cuh"
#include "baracuda/wgmma.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWideTwoTokens, 32);  // up to here, and this many groups, two pairs of warpgroups share out ic
BARACUDA_CONSTANT(kWideTwoGroups, 2);
BARACUDA_CONSTANT(kWideTwoThreads, 544);
BARACUDA_CONSTANT(kWideFewTokens, 160);  // up to here a warp copies, beyond a warpgroup
BARACUDA_CONSTANT(kWideThreads, 288);
BARACUDA_CONSTANT(kWideManyThreads, 384);

constexpr int kBlockSteps = kBlockDepth / 16;       // k16 steps of a block
constexpr int kRoundSteps = 2;                      // that are multiplied, and made, at a time
constexpr int kRounds = kBlockSteps / kRoundSteps;  // of a block
constexpr int kSets = 4;  // of fragments: one is made while instructions that run read two; a divisor of the rounds
constexpr unsigned kStageBarrierBytes = 2 * kBarrierBytes;
constexpr unsigned kXRowBytes = 128;  // of a token: 64 input channels

// Shapes of one entry point.
template <int kTokenCount, int kGroupCount>
struct WideShape {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr bool kEven = true;          // WideSchedule
  static constexpr int kSums = kTokens / 2;    // of a thread
  // Few sums and groups leave room for more warps, which hide more of each other's waits: two pairs of warpgroups take a
  // block each in turn. `stages` is then a multiple of four, so that a place is always the same pair's: a wait for its next
  // phase would be passed too early by one that has not seen the last one end.
  static constexpr int kDepths = kTokens <= kWideTwoTokens && kGroups <= kWideTwoGroups ? 2 : 1;
  static constexpr int kTiles = kWideChannels / kTileChannels;  // a warpgroup each
  static constexpr int kTileWarps = kWarpgroupThreads / kWarpLanes;
  static constexpr int kDepthWarps = kTiles * kTileWarps;  // that take the same blocks
  static constexpr int kWarps = kDepths * kDepthWarps;     // that compute
  // Where 168 registers a thread are too few, a whole warpgroup copies, and gives up most of its own.
  static constexpr bool kMovesRegisters = kTokens > kWideFewTokens;
  static constexpr int kThreads = kMovesRegisters ? kWideManyThreads : kDepths == 2 ? kWideTwoThreads : kWideThreads;
  static constexpr int kBoundThreads = (kThreads + 127) / 128 * 128;  // registers come as if warps came in fours
  // Blocks, measured on an H100: the fewer tokens, the more a jump back costs beside a block's products.
  static constexpr int kUnroll = kTokens == 32 ? 2 : kTokens <= 128 ? 4 : kTokens <= 160 ? 2 : 1;
  static constexpr unsigned kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr unsigned kWeightBytes = kTiles * kTileBytes;
  static constexpr unsigned kBoxBytes = kTokens * kXRowBytes;
  static constexpr int kStoreTokens = kWideStoreBytes / kStoreRowBytes;  // that a warpgroup stores at a time
  static constexpr unsigned kSumBytes = kDepths == 2 ? kTiles * kSums * kWarpgroupThreads * 4 : 0;  // that are exchanged
  static_assert(kThreads == (kWarps + (kMovesRegisters ? kTileWarps : 1)) * kWarpLanes, "one warp copies, or one warpgroup");
  static_assert(kBoxBytes % 1024 == 0, "operand B begins at multiples of 1024 bytes");
};

// Whether scales may be of the other element: a bf16 one may lie beyond f16's range.
template <typename Element>
constexpr bool kScalesVary = false;
template <>
constexpr bool kScalesVary<__nv_bfloat16> = true;

// The weights of a warp in a block as operand A, and what they are made of.
template <typename Shape, typename Element>
struct WideWeights {
  bool scales_bf16;
  uint4 r_words[2];
  unsigned r_group_scales[Shape::kGroups];  // of rows r and r + 8
  unsigned r_group_zeros[Shape::kGroups];
  unsigned r_scales[2];  // of the group that is made: of a row each, in both halves
  unsigned r_zeros[2];   // zero_term
  unsigned r_fragments[kSets][kRoundSteps][4];

  __device__ __forceinline__ void load(const SharedBlocks<Shape>& block, int tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) r_words[half] = block.words(tile, half);
#pragma unroll
    for (int group = 0; group < Shape::kGroups; ++group) {
      r_group_zeros[group] = block.zeros(group, tile);
      r_group_scales[group] = block.scales(group, tile);
    }
  }

  // The rounds of a block in their order: after the last, none needs what has been loaded.
  __device__ __forceinline__ void make(int round) {
    using Pair = Int4Pair<Element>;
    const unsigned words[kBlockSteps] = {r_words[0].x, r_words[0].y, r_words[0].z, r_words[0].w,
                                         r_words[1].x, r_words[1].y, r_words[1].z, r_words[1].w};
#pragma unroll
    for (int i = 0; i < kRoundSteps; ++i) {
      const int step = round * kRoundSteps + i;
      if (step * Shape::kGroups % kBlockSteps == 0) begin_group(step * Shape::kGroups / kBlockSteps);
      unsigned(&a)[4] = r_fragments[round % kSets][i];
      a[0] = mul_pair<Element>(Pair::template spread_pair<0>(words[step], r_zeros[0]), r_scales[0]);
      a[1] = mul_pair<Element>(Pair::template spread_pair<1>(words[step], r_zeros[1]), r_scales[1]);
      a[2] = mul_pair<Element>(Pair::template spread_pair<2>(words[step], r_zeros[0]), r_scales[0]);
      a[3] = mul_pair<Element>(Pair::template spread_pair<3>(words[step], r_zeros[1]), r_scales[1]);
    }
  }

  // Starts the products of a round with a box of x.
  __device__ __forceinline__ void multiply(int round, float (&sums)[Shape::kSums], unsigned long long rows) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kRoundSteps; ++i) {
      const int step = round * kRoundSteps + i;
      wgmma_m64k16<Element>(sums, r_fragments[round % kSets][i], wgmma_step(rows, step % 4));
    }
    wgmma_commit();
  }

 private:
  __device__ __forceinline__ void begin_group(int group) {
    using Pair = Int4Pair<Element>;
    unsigned scales = r_group_scales[group];
    if constexpr (kScalesVary<Element>) {
      const float2 rounded = scale_pair_to_f32(scales, scales_bf16);
      scales = pair_from_f32<Element>(rounded.x, rounded.y);
    }
    r_scales[0] = join_low_halves(scales, scales);
    r_scales[1] = join_high_halves(scales, scales);
    r_zeros[0] = Pair::template zero_term<0>(nibble(r_group_zeros[group], 0));
    r_zeros[1] = Pair::template zero_term<1>(nibble(r_group_zeros[group], 1));
  }
};

template <typename Shape, typename Element>
__device__ __forceinline__ void awq_gemm_tiled_wide(const AwqGemmOperands<Element>& operands,
                                                    float4* __restrict__ g_parts, const TensorMap* x_map,
                                                    const WideSchedule& schedule, int stages) {
  unsigned char* s_memory = dynamic_shared_for_boxes();
  // Uniform: otherwise the compiler makes it anew in each block, from a special register.
  const unsigned s_base = warp_uniform(shared_address(s_memory));
  // A block's weights lie in a ring of half as many places: they have been read when its first box may be overwritten.
  const int slots = (stages + 1) / 2;
  const unsigned weights = stages * Shape::kBoxBytes;
  const unsigned rows = weights + slots * Shape::kWeightBytes;
  // A stage's barriers: that it is full, and behind it that it is empty.
  const unsigned exchanged = rows + Shape::kTiles * kWideStoreBytes;
  const unsigned s_barriers = s_base + exchanged + Shape::kSumBytes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(warp_uniform(threadIdx.x / kWarpLanes));
  WideWorks works(schedule);
  WideWork work;
  RingPlace stage;
  RingPlace slot;

  const bool computes = warp < Shape::kWarps;
  const bool copies = warp == Shape::kWarps && lane == 0;
  if (!computes) {
    if (copies) {
      for (int place = 0; place < stages; ++place) {
        mbarrier_init(s_barriers + place * kStageBarrierBytes, 1);
        mbarrier_init(s_barriers + place * kStageBarrierBytes + kBarrierBytes, Shape::kDepthWarps);
      }
      mbarrier_fence_init();
    }
    grid_dependency_release();
  }
  __syncwarp();
  __syncthreads();  // the barriers can be used
  if (!computes) {
    if constexpr (Shape::kMovesRegisters) lower_register_count<40>();
    if (!copies) return;
    const unsigned char* g_weights = reinterpret_cast<const unsigned char*>(operands.weights);
    const long long last_tile = (static_cast<long long>(operands.oc) + kTileChannels - 1) / kTileChannels - 1;
    grid_dependency_wait();  // x may be what the launch before writes
    int fresh = stages;  // places that have not been filled
    while (works.next(work)) {
      const WidePlace place = schedule.template place<Shape>(work.tile);
      for (int block = work.first; block < work.end; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned s_barrier = s_barriers + stage.place * kStageBarrierBytes;
          if (fresh > 0) {
            --fresh;
          } else {
            mbarrier_wait(s_barrier + kBarrierBytes, stage.parity ^ 1);
          }
          mbarrier_arrive_expecting(s_barrier, schedule.tokens * kXRowBytes + (half == 0 ? Shape::kWeightBytes : 0));
          if (half == 0) {
#pragma unroll
            for (int tile = 0; tile < Shape::kTiles; ++tile) {
              const long long wanted = place.channel / kTileChannels + tile;
              const long long from = wanted < last_tile ? wanted : last_tile;  // beyond oc: any, nothing is stored
              bulk_copy(s_base + weights + slot.place * Shape::kWeightBytes + tile * Shape::kTileBytes,
                        g_weights + (from * schedule.blocks + block) * Shape::kTileBytes, Shape::kTileBytes, s_barrier);
            }
            slot.advance(slots);
          }
          box_copy(s_base + stage.place * Shape::kBoxBytes, x_map, 0, static_cast<int>(place.token), 2 * block + half,
                   s_barrier);
          stage.advance(stages);
        }
      }
    }
    return;
  }

  if constexpr (Shape::kMovesRegisters) raise_register_count<232>();
  const int depth = warp / Shape::kDepthWarps;
  const int tile = warp / Shape::kTileWarps % Shape::kTiles;
  const int strip = warp % Shape::kTileWarps;  // of 16 channels
  const unsigned char* s_blocks = s_memory + weights + tile * Shape::kTileBytes + strip / 2 * block_bytes(Shape::kGroups);
  const auto release = [&](int place) {
    __syncwarp();  // all lanes are done with it
    if (lane == 0) {
      mbarrier_arrive(s_barriers + place * kStageBarrierBytes + kBarrierBytes);
    }
  };
  const auto skip = [&] {  // a block that others take
    stage.advance(stages);
    stage.advance(stages);
    slot.advance(slots);
  };
#pragma unroll 1
  while (works.next(work)) {
    float sums[Shape::kSums];
#pragma unroll
    for (int i = 0; i < Shape::kSums; ++i) sums[i] = 0.0f;
    WideWeights<Shape, Element> r_weights;
    r_weights.scales_bf16 = operands.scales_bf16;
    const auto full = [&] { return s_barriers + stage.place * kStageBarrierBytes; };
    const auto load = [&] {
      r_weights.load(SharedBlocks<Shape>{s_blocks + slot.place * Shape::kWeightBytes, lane}, strip % 2);
      slot.advance(slots);
    };
    const auto box = [&](int place) { return s_base + place * Shape::kBoxBytes; };
    if (Shape::kDepths == 2 && depth == 1) skip();
    const int first_block = work.first + depth;
    if (Shape::kDepths == 1 || first_block < work.end) {
      mbarrier_wait(full(), stage.parity);
      load();
      r_weights.make(0);
    }
    int before = -1;  // the stage that instructions before these may still read
// A jump back costs tens of cycles, which few warps a scheduler do not hide.
#pragma unroll(Shape::kUnroll)
    for (int block = first_block; block < work.end; block += Shape::kDepths) {
      const bool more = block + Shape::kDepths < work.end;
      const int first = stage.place;
      const unsigned long long first_rows = wgmma_rows(box(first));
      stage.advance(stages);
      const int second = stage.place;
      // In uniform registers, from which a step's takes one instruction; the first box's are needed sooner than that takes.
      const unsigned long long second_rows = wgmma_rows(warp_uniform(box(second)));
      bool ready = false;
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (round == kRounds / 2) {
          if (!ready) mbarrier_wait(full(), stage.parity);
          stage.advance(stages);
          if (Shape::kDepths == 2 && block + 1 < work.end) skip();
        }
        r_weights.multiply(round, sums, round < kRounds / 2 ? first_rows : second_rows);
        // An answer takes as long as weights do to be made.
        if (round == kRounds / 2 - 2 || round == kRounds - 2) ready = mbarrier_ended(full(), stage.parity);
        if (round + 1 < kRounds) {
          r_weights.make(round + 1);
        } else if (more) {
          r_weights.make(0);
        }
        wgmma_wait<1>();
        if (round == 0 && before >= 0) release(before);
        if (round == kRounds / 2) release(first);
        if (round == kRounds - 2 && more) {
          if (!ready) mbarrier_wait(full(), stage.parity);
          load();
        }
      }
      before = second;
    }
    wgmma_wait<0>();
    if (Shape::kDepths == 1 || before >= 0) release(before);
    wgmma_settle(sums);
    const int thread = thread_read_here() % kWarpgroupThreads;  // of the warpgroup
    if constexpr (Shape::kDepths == 2) {
      // (kSums / 4, threads), four sums each; the barriers are the pair's that has the tile.
      float4* s_sums = reinterpret_cast<float4*>(s_memory + exchanged) + tile * (Shape::kSums / 4 * kWarpgroupThreads) + thread;
      const int pair = 1 + Shape::kTiles + tile;
      if (depth == 1) {
#pragma unroll
        for (int i = 0; i < Shape::kSums / 4; ++i) {
          s_sums[i * kWarpgroupThreads] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
        }
      }
      partial_barrier<2 * kWarpgroupThreads>(pair);
      if (depth == 0) {
#pragma unroll
        for (int i = 0; i < Shape::kSums / 4; ++i) {
          const float4 others = s_sums[i * kWarpgroupThreads];
          sums[4 * i] += others.x;
          sums[4 * i + 1] += others.y;
          sums[4 * i + 2] += others.z;
          sums[4 * i + 3] += others.w;
        }
      }
      partial_barrier<2 * kWarpgroupThreads>(pair);  // they have been read
      if (depth == 1) continue;
    }

    const WidePlace place = schedule.template place<Shape>(work.tile);
    if (work.part == kFinished) {
      store_warpgroup_sums<Shape::kTokens, Shape::kStoreTokens>(operands, sums, s_memory + rows + tile * kWideStoreBytes,
                                                               place.token, schedule.template end<Shape>(place),
                                                               place.channel + tile * kTileChannels, thread, 1 + tile);
    } else {
      store_part<Shape>(sums, g_parts, work.part, tile, thread);
    }
  }
}

}  // namespace baracuda
