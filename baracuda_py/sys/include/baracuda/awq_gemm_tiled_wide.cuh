// The kernel of awq_gemm for TILED weights (awq_tiles.cuh) and many tokens on sm_90a: y^T = W x^T by warpgroup instructions,
// weights as operand A, which is in registers, x as operand B, which they read from shared memory.
//
// A CTA computes tiles of 128 output channels of kTokens tokens, one after the other (WideSchedule). One warp copies, into a
// ring, blocks of 128 input channels: two boxes of x and packed weights, ahead of two warpgroups, which take 64 channels
// each, a warp 16 of them. While the tensor cores work on k16 steps, the next ones' weights are made.
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
#include "baracuda/elect.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/register_count.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/warp_uniform.cuh"
#include "baracuda/wgmma.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWideFewTokens, 160);  // up to here a warp copies, beyond a warpgroup
BARACUDA_CONSTANT(kWideMostTokens, 224);  // beyond, and with four groups a block, a warpgroup stores one chunk at a time, not two
BARACUDA_CONSTANT(kWideThreads, 288);
BARACUDA_CONSTANT(kWideManyThreads, 384);

constexpr int kBlockSteps = kBlockDepth / 16;       // k16 steps of a block
constexpr int kBoxSteps = 4;                        // of a box of x
constexpr int kRoundSteps = 2;                      // that are multiplied, and made, at a time
constexpr int kRounds = kBlockSteps / kRoundSteps;  // of a block
constexpr int kSets = 4;  // of fragments: one is made while instructions that run read two; a divisor of the rounds
constexpr unsigned kXRowBytes = 128;  // of a token: 64 input channels

// Shapes of one entry point.
template <int kTokenCount, int kGroupCount>
struct WideShape {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr bool kEven = true;          // WideSchedule
  static constexpr int kSums = kTokens / 2;    // of a thread
  static constexpr int kTiles = kWideChannels / kTileChannels;  // a warpgroup each
  static constexpr int kTileWarps = kWarpgroupThreads / kWarpLanes;
  static constexpr int kWarps = kTiles * kTileWarps;  // that compute
  // Where 168 registers a thread are too few, a whole warpgroup copies, and gives up most of its own.
  static constexpr bool kMovesRegisters = kTokens > kWideFewTokens;
  static constexpr int kThreads = kMovesRegisters ? kWideManyThreads : kWideThreads;
  static constexpr int kBoundThreads = (kThreads + 127) / 128 * 128;  // registers come as if warps came in fours
  static constexpr unsigned kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr unsigned kWeightBytes = kTiles * kTileBytes;
  static constexpr unsigned kBoxBytes = kTokens * kXRowBytes;
  static constexpr int kRoom = kTokens > kWideMostTokens && kGroups == 4 ? 1 : 2;  // for chunks: so that three blocks fit
  static constexpr unsigned kStoreBytes = kWideStoreBytes / 2 * kRoom;
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

  // The rounds of a block in their order.
  __device__ __forceinline__ void make(int round) {
    using Pair = Int4Pair<Element>;
    const uint4& half = r_words[round * kRoundSteps / kBoxSteps];
    const unsigned words[kBoxSteps] = {half.x, half.y, half.z, half.w};
#pragma unroll
    for (int i = 0; i < kRoundSteps; ++i) {
      const int step = round * kRoundSteps + i;
      if (step * Shape::kGroups % kBlockSteps == 0) begin_group(step * Shape::kGroups / kBlockSteps);
      unsigned(&a)[4] = r_fragments[round % kSets][i];
      a[0] = mul_pair<Element>(Pair::template spread_pair<0>(words[step % kBoxSteps], r_zeros[0]), r_scales[0]);
      a[1] = mul_pair<Element>(Pair::template spread_pair<1>(words[step % kBoxSteps], r_zeros[1]), r_scales[1]);
      a[2] = mul_pair<Element>(Pair::template spread_pair<2>(words[step % kBoxSteps], r_zeros[0]), r_scales[0]);
      a[3] = mul_pair<Element>(Pair::template spread_pair<3>(words[step % kBoxSteps], r_zeros[1]), r_scales[1]);
    }
  }

  // Starts the products of a round with a box of x.
  __device__ __forceinline__ void multiply(int round, float (&sums)[Shape::kSums], unsigned long long rows) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kRoundSteps; ++i) {
      const int step = round * kRoundSteps + i;
      wgmma_m64k16<Element>(sums, r_fragments[round % kSets][i], wgmma_step(rows, step % kBoxSteps));
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
  const unsigned s_base = warp_uniform(shared_address(s_memory));
  // A ring of blocks: two boxes of x, and weights.
  const unsigned weights = stages * (2 * Shape::kBoxBytes);
  const unsigned rows = weights + stages * Shape::kWeightBytes;
  const unsigned s_full = s_base + rows + Shape::kTiles * Shape::kStoreBytes;  // barriers
  const unsigned s_empty = s_full + stages * kBarrierBytes;
  // Of a block, where its tile begins: the warp that copies has the time to divide.
  int2* s_tiles = reinterpret_cast<int2*>(s_memory + (s_empty + stages * kBarrierBytes - s_base));
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(warp_uniform(threadIdx.x / kWarpLanes));
  WideWorks works(schedule);
  WideWork work;
  RingPlace ring;
  // Uniform, as all that the loops over blocks depend on must be: else the compiler keeps operands of the instructions and
  // addresses in registers of each thread, and moves them.
  const auto next = [&] {
    if (!works.next(work)) return false;
    const auto uniform = [](int value) { return static_cast<int>(warp_uniform(static_cast<unsigned>(value))); };
    work = {uniform(work.tile), uniform(work.first), uniform(work.end), work.part};
    return true;
  };
  const auto at = [&](unsigned bytes) { return static_cast<unsigned>(ring.place) * bytes; };

  const bool computes = warp < Shape::kWarps;
  if (!computes) {
    if (warp == Shape::kWarps && elect_one()) {
#pragma unroll 1
      for (int place = 0; place < stages; ++place) {
        mbarrier_init(s_full + place * kBarrierBytes, 1);
        mbarrier_init(s_empty + place * kBarrierBytes, Shape::kWarps);
      }
      mbarrier_fence_init();
    }
    grid_dependency_release();
  }
  __syncwarp();
  __syncthreads();  // the barriers can be used
  if (!computes) {
    if constexpr (Shape::kMovesRegisters) lower_register_count<40>();
    if (warp > Shape::kWarps) return;
    const unsigned char* g_weights = reinterpret_cast<const unsigned char*>(operands.weights);
    const int last_tile = (operands.oc + kTileChannels - 1) / kTileChannels - 1;
    const unsigned nbytes = schedule.tokens * (2 * kXRowBytes) + Shape::kWeightBytes;
    grid_dependency_wait();  // x may be what the launch before writes
    int fresh = stages;  // places that have not been filled
#pragma unroll 1
    while (next()) {
      const WidePlace place = schedule.template place<Shape>(work.tile);
      const int token = static_cast<int>(warp_uniform(static_cast<unsigned>(place.token)));
      const int first_tile = static_cast<int>(warp_uniform(static_cast<unsigned>(place.channel / kTileChannels)));
#pragma unroll 1
      for (int block = work.first; block < work.end; ++block) {
        if (fresh > 0) {
          --fresh;
        } else {
          mbarrier_wait_for_warp(s_empty + at(kBarrierBytes), ring.parity ^ 1);
        }
        if (elect_one()) {
          s_tiles[ring.place] = make_int2(token, first_tile);
        }
        __syncwarp();  // ahead of the arrival, which shows it
        if (elect_one()) {
          const unsigned s_barrier = s_full + at(kBarrierBytes);
          mbarrier_arrive_expecting(s_barrier, nbytes);
#pragma unroll
          for (int tile = 0; tile < Shape::kTiles; ++tile) {
            const int wanted = first_tile + tile;
            const long long from = wanted < last_tile ? wanted : last_tile;  // beyond oc: any, nothing is stored
            bulk_copy(s_base + weights + at(Shape::kWeightBytes) + tile * Shape::kTileBytes,
                      g_weights + (from * schedule.blocks + block) * Shape::kTileBytes, Shape::kTileBytes, s_barrier);
          }
          const unsigned s_boxes = s_base + at(2 * Shape::kBoxBytes);
          box_copy(s_boxes, x_map, 0, token, 2 * block, s_barrier);
          box_copy(s_boxes + Shape::kBoxBytes, x_map, 0, token, 2 * block + 1, s_barrier);
        }
        ring.advance(stages);
      }
    }
    return;
  }

  if constexpr (Shape::kMovesRegisters) raise_register_count<232>();
  const int tile = warp / Shape::kTileWarps;
  const int strip = warp % Shape::kTileWarps;  // of 16 channels
  const unsigned char* s_blocks = s_memory + weights + tile * Shape::kTileBytes + strip / 2 * block_bytes(Shape::kGroups);
  bool releases = false;  // whether instructions ahead of these may still read a place
  unsigned s_read = s_empty;  // its barrier
  int last = 0;               // which it is
  const auto release = [&] {
    __syncwarp();  // all lanes are done with it
    if (lane == 0 && releases) {
      mbarrier_arrive(s_read);
    }
  };
  WideWeights<Shape, Element> r_weights;
  r_weights.scales_bf16 = operands.scales_bf16;
  const auto full = [&] { return s_full + at(kBarrierBytes); };
  const auto take = [&] { r_weights.load(SharedBlocks<Shape>{s_blocks + at(Shape::kWeightBytes), lane}, strip % 2); };
#pragma unroll 1
  while (next()) {
    float sums[Shape::kSums];
#pragma unroll
    for (int i = 0; i < Shape::kSums; ++i) sums[i] = 0.0f;
    releases = false;
    // Multiplies a block, whose first weights have been made, and makes the next one's first.
    const auto multiply = [&](bool more) {
      const unsigned s_next = s_empty + at(kBarrierBytes);
      const unsigned long long rows_of_x = wgmma_rows(s_base + at(2 * Shape::kBoxBytes));
      last = ring.place;
      ring.advance(stages);
      bool ready = false;
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int box = round * kRoundSteps / kBoxSteps;
        r_weights.multiply(round, sums, wgmma_step(rows_of_x, box * static_cast<int>(Shape::kBoxBytes / 32)));
        // An answer takes as long as weights do to be made.
        if (more && round == kRounds - 2) ready = mbarrier_ended_for_warp(full(), ring.parity);
        if (round + 1 < kRounds) {
          r_weights.make(round + 1);
        } else if (more) {
          r_weights.make(0);
        }
        wgmma_wait<1>();
        if (round == 0) release();
        if (more && round == kRounds - 2) {
          if (__builtin_expect(!ready, 0)) {
            mbarrier_wait_for_warp(full(), ring.parity);
          }
          take();
        }
      }
      releases = true;
      s_read = s_next;
    };
    mbarrier_wait_for_warp(full(), ring.parity);
    take();
    r_weights.make(0);
#pragma unroll 1
    for (int block = work.first; block < work.end - 1; ++block) multiply(true);
    multiply(false);
    const int2 begin = s_tiles[last];
    wgmma_wait<0>();
    release();
    wgmma_settle(sums);
    const int thread = thread_read_here() % kWarpgroupThreads;  // of the warpgroup
    const WidePlace place = {static_cast<long long>(begin.y) * kTileChannels, begin.x};
    if (work.part == kFinished) {
      store_warpgroup_sums<Shape::kTokens, Shape::kRoom>(
          operands, sums, s_memory + rows + tile * Shape::kStoreBytes, place.token, schedule.template end<Shape>(place),
          place.channel + tile * kTileChannels, thread, 1 + tile);
    } else {
      store_part<Shape>(sums, g_parts, work.part, tile, thread);
    }
    __syncwarp();  // or the compiler takes the lanes to be apart in what follows, and nothing to be uniform
  }
}

}  // namespace baracuda
