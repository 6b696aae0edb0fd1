// The kernel of awq_fp8_gemm for TILED weights (awq_tiles.cuh) on sm_90a: y^T = W x^T by warpgroup instructions on fp8,
// weights as operand A, which is in registers, x as operand B, which they read from shared memory.
//
//   y[m, oc] = epilogue(scale[m] * sum over k of x[m, k] * (q[k, oc] - z[k / group, oc]) * s[k / group, oc])
//
// A CTA computes tiles of 128 output channels of kTokens tokens, one after the other (WideSchedule). One warp copies, into a
// ring, boxes of x of 128 input channels and the blocks of packed weights that belong to them, ahead of two warpgroups,
// which take 64 output channels each, a warp 16 of them. While one makes weights, or adds what a group gave to its sums, the
// tensor cores can work for the other (Fp8Turns).
//
// In e4m3 the code of n, 0 to 15, is n * 2^-9: up to 7 a subnormal, beyond one of the eight least normal values. So |q - z|
// with a sign bit is a weight without a conversion. Products of a group are summed by the tensor cores, which keep fewer
// bits than f32 has while they do; then they are scaled and added to f32 sums.
//
// Sums of the tensor cores that are added to f32 ones: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2.
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/awq_gemm_wide_parts.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/global_load.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/register_count.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/shared_memory.cuh"
#include "baracuda/warp_uniform.cuh"
#include "baracuda/wgmma_fp8.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kFp8Threads, 384);  // two warpgroups that compute, and one that copies and gives up registers
BARACUDA_CONSTANT(kFp8MaxStages, 8);
BARACUDA_CONSTANT(kFp8FixedBytes, 9216);  // of shared memory ahead of the ring: of the stores, and barriers

constexpr int kFp8Steps = kBlockDepth / 32;  // k32 steps of a block
constexpr int kFp8TurnBarrier = 3;           // partial barriers 1 and 2 are those of the stores
constexpr float kFp8Unit = 512.0f;           // a weight is its code's value times this
constexpr unsigned kFp8StageBarrierBytes = 2 * kBarrierBytes;  // that it is full, and behind it that it is empty

// Shapes of one entry point.
template <int kTokenCount, int kGroupCount>
struct Fp8Shape {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr bool kEven = false;         // WideSchedule; with four groups ptxas would spill
  static constexpr int kSums = kTokens / 2;    // of a thread
  // Tokens that are multiplied at a time: their sums over a group are held beside those of all tokens.
  static constexpr int kPartTokens = kTokens < 128 ? kTokens : 128;
  static constexpr int kParts = kTokens / kPartTokens;
  static constexpr int kPartSums = kPartTokens / 2;
  static constexpr int kGroupSteps = kFp8Steps / kGroups;
  static constexpr int kTiles = kWideChannels / kTileChannels;  // a warpgroup each
  static constexpr int kTileWarps = kWarpgroupThreads / kWarpLanes;
  static constexpr int kWarps = kTiles * kTileWarps;                           // that compute
  static constexpr unsigned kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr unsigned kWeightBytes = kTiles * kTileBytes;
  static constexpr unsigned kRowBytes = kBlockDepth;  // of x
  static constexpr unsigned kBoxBytes = kTokens * kRowBytes;
  static constexpr unsigned kStageBytes = kBoxBytes + (kWeightBytes + 1023) / 1024 * 1024;
  static constexpr bool kTakesTurns = kGroups == 1;  // with more groups ptxas would spill
  // Of a thread: what the threads that copy give up, those that compute may take. Turns want more.
  static constexpr int kCopyingRegisters = kTakesTurns ? 24 : 40;
  static constexpr int kComputingRegisters = kTakesTurns ? 240 : 232;
  static constexpr int kStoreTokens = kWideStoreBytes / kStoreRowBytes;  // that a warpgroup stores at a time
  static_assert(kFp8Threads == (kWarps + kTileWarps) * kWarpLanes, "a warpgroup copies");
  static_assert(kPartTokens * kRowBytes % 1024 == 0 && kFp8FixedBytes % 1024 == 0,
                "operand B begins at multiples of 1024 bytes");
  static_assert(kTiles == 2 && kTileWarps * kCopyingRegisters + kWarps * kComputingRegisters <= 2048, "of 65536 registers");
  static_assert(kTiles * kWideStoreBytes + kFp8MaxStages * kFp8StageBarrierBytes <= kFp8FixedBytes, "that is their size");
  static_assert(kFp8Steps % kGroups == 0, "a group has whole steps");
};

// The codes of four weights q - z of an output channel, q in the low half of each byte.
struct Fp8Zero {
  unsigned zeros;    // z in each byte
  unsigned borrows;  // 128 - z

  __device__ __forceinline__ explicit Fp8Zero(unsigned zero)
      : zeros(zero * 0x01010101u), borrows(0x80808080u - zero * 0x01010101u) {}

  __device__ __forceinline__ unsigned codes(unsigned bytes) const {
    const unsigned values = bytes & 0x0f0f0f0fu;
    const unsigned above = values + borrows;  // 128 + q - z: the high bit says that q is at least z
    return __vabsdiffu4(values, zeros) | (~above & 0x80808080u);
  }
};

// The factors of x's rows, and that of the weights' codes.
struct TokenScales {
  const float* g_scales;
  int m;

  // To sums of n8 tiles as wgmma leaves them.
  template <int kSums>
  __device__ __forceinline__ void operator()(float (&sums)[kSums], long long first_token) const {
    const int own = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const long long token = first_token + 8 * i + own + column;
        const float scale = token < m ? load_coherent(g_scales + token) : 0.0f;
        // The small factor first: a product that f32 can hold does not overflow on the way.
        sums[4 * i + column] = sums[4 * i + column] * scale * kFp8Unit;
        sums[4 * i + 2 + column] = sums[4 * i + 2 + column] * scale * kFp8Unit;
      }
    }
  }
};

// A warp's weights of a group in a block as operand A, and what the next ones are made of.
template <typename Shape>
struct Fp8Weights {
  unsigned r_fragments[Shape::kGroupSteps][4];
  unsigned r_bytes[4];  // of half a block: a k16 step each, of rows r in the low halves of bytes, of rows r + 8 in the high

  // Groups in their order. A word of TILED weights has pairs of input channels, operand A four in a row: those of two
  // lanes' words, of which each has the eight of a k16 step.
  __device__ __forceinline__ void make(const unsigned char* s_block, int group, int lane, int tile) {
    const SharedBlocks<Shape> first{s_block, lane / 4 * 4 + lane % 2 * 2}, second{s_block, first.lane + 1};
    const unsigned zeros = first.zeros(group, tile);
    const Fp8Zero upper(nibble(zeros, 0)), lower(nibble(zeros, 1));
#pragma unroll
    for (int i = 0; i < Shape::kGroupSteps; ++i) {
      const int step = group * Shape::kGroupSteps + i;
      if (step % 2 == 0) {
        const uint4 of_first = first.words(tile, step / 2), of_second = second.words(tile, step / 2);
        const unsigned selector = 0x6420u + 0x1111u * (lane % 4 / 2);
        r_bytes[0] = __byte_perm(of_first.x, of_second.x, selector);
        r_bytes[1] = __byte_perm(of_first.y, of_second.y, selector);
        r_bytes[2] = __byte_perm(of_first.z, of_second.z, selector);
        r_bytes[3] = __byte_perm(of_first.w, of_second.w, selector);
      }
#pragma unroll
      for (int k16 = 0; k16 < 2; ++k16) {
        const unsigned bytes = r_bytes[step % 2 * 2 + k16];
        r_fragments[i][2 * k16] = upper.codes(bytes);
        r_fragments[i][2 * k16 + 1] = lower.codes(bytes >> kNibbleBits);
      }
    }
  }
};

// The two warpgroups take turns with the tensor cores, a part each: they wait for the same boxes, and would else both
// multiply at one time, and both add up at another.
template <typename Shape>
struct Fp8Turns {
  int tile;  // of this warpgroup

  __device__ __forceinline__ void begin() const {
    if constexpr (!Shape::kTakesTurns) return;
    if (tile == 0) {  // constant numbers take no registers
      partial_barrier<2 * kWarpgroupThreads, kFp8TurnBarrier>();
    } else {
      partial_barrier<2 * kWarpgroupThreads, kFp8TurnBarrier + 1>();
    }
  }
  __device__ __forceinline__ void pass() const {
    if constexpr (!Shape::kTakesTurns) return;
    if (tile == 0) {
      partial_barrier_arrive<2 * kWarpgroupThreads, kFp8TurnBarrier + 1>();
    } else {
      partial_barrier_arrive<2 * kWarpgroupThreads, kFp8TurnBarrier>();
    }
  }
};

// `operands.x` is not read: `x_map` says where x is.
template <typename Shape, typename Element>
__device__ __forceinline__ void awq_fp8_gemm_tiled(const AwqGemmOperands<Element>& operands, const TokenScales& scale,
                                                   float4* __restrict__ g_parts, const TensorMap* x_map,
                                                   const WideSchedule& schedule, int stages) {
  unsigned char* s_memory = dynamic_shared_for_boxes();
  const unsigned s_base = shared_address(s_memory);
  // What a warpgroup stores by way of, barriers, and stages: a box, behind it weights.
  const unsigned s_barriers = s_base + Shape::kTiles * kWideStoreBytes;
  const unsigned s_stages = s_base + kFp8FixedBytes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  WideWorks works(schedule);
  WideWork work;
  RingPlace stage;

  const bool computes = warp < Shape::kWarps;
  const bool copies = warp == Shape::kWarps && lane == 0;
  if (!computes) {
    if (copies) {
#pragma unroll 1
      for (int place = 0; place < stages; ++place) {
        mbarrier_init(s_barriers + place * kFp8StageBarrierBytes, 1);
        mbarrier_init(s_barriers + place * kFp8StageBarrierBytes + kBarrierBytes, Shape::kWarps);
      }
      mbarrier_fence_init();
    }
    grid_dependency_release();
  }
  __syncwarp();
  __syncthreads();  // the barriers can be used
  if (!computes) {
    lower_register_count<Shape::kCopyingRegisters>();
    if (!copies) return;
    const int last_tile = static_cast<int>((static_cast<long long>(operands.oc) + kTileChannels - 1) / kTileChannels - 1);
    grid_dependency_wait();  // x and the factors of its rows may be what the launch before writes
    int fresh = stages;      // places that have not been filled
    while (works.next(work)) {
      const WidePlace place = schedule.template place<Shape>(work.tile);
      const int token = static_cast<int>(place.token);
      const int first_tile = static_cast<int>(place.channel) / kTileChannels;
      const long long row = static_cast<long long>(schedule.blocks) * Shape::kTileBytes;
      const unsigned char* g_block = reinterpret_cast<const unsigned char*>(operands.weights) + first_tile * row +
                                     work.first * static_cast<long long>(Shape::kTileBytes);
      const long long second = first_tile < last_tile ? row : 0;  // beyond oc: any, nothing is stored
#pragma unroll 1
      for (int block = work.first; block < work.end; ++block, g_block += Shape::kTileBytes) {
        const unsigned s_barrier = s_barriers + stage.place * kFp8StageBarrierBytes;
        const unsigned s_stage = s_stages + stage.place * Shape::kStageBytes;
        if (fresh > 0) {
          --fresh;
        } else {
          mbarrier_wait(s_barrier + kBarrierBytes, stage.parity ^ 1);
        }
        mbarrier_arrive_expecting(s_barrier, schedule.tokens * Shape::kRowBytes + Shape::kWeightBytes);
        bulk_copy(s_stage + Shape::kBoxBytes, g_block, Shape::kTileBytes, s_barrier);
        bulk_copy(s_stage + Shape::kBoxBytes + Shape::kTileBytes, g_block + second, Shape::kTileBytes, s_barrier);
        box_copy(s_stage, x_map, block * kBlockDepth, token, 0, s_barrier);
        stage.advance(stages);
      }
    }
    return;
  }

  raise_register_count<Shape::kComputingRegisters>();
  const int tile = warp / Shape::kTileWarps;
  const int strip = warp % Shape::kTileWarps;  // of 16 channels
  const unsigned char* s_blocks = s_memory + kFp8FixedBytes + Shape::kBoxBytes + tile * Shape::kTileBytes +
                                  strip / 2 * block_bytes(Shape::kGroups);
  float group_sums[Shape::kPartSums];
#pragma unroll
  for (int i = 0; i < Shape::kPartSums; ++i) group_sums[i] = 0.0f;
  const Fp8Turns<Shape> turns{tile};
  if (tile == 1) {
    turns.pass();  // the first is the other's
  }
#pragma unroll 1
  while (works.next(work)) {
    float sums[Shape::kSums];
#pragma unroll
    for (int i = 0; i < Shape::kSums; ++i) sums[i] = 0.0f;
#pragma unroll 1
    for (int block = work.first; block < work.end; ++block) {
      const unsigned s_barrier = s_barriers + stage.place * kFp8StageBarrierBytes;
      const unsigned char* s_block = s_blocks + stage.place * Shape::kStageBytes;
      const unsigned long long box = wgmma_rows(warp_uniform(s_stages + stage.place * Shape::kStageBytes));
      mbarrier_wait(s_barrier, stage.parity);
      Fp8Weights<Shape> r_weights;
#pragma unroll
      for (int group = 0; group < Shape::kGroups; ++group) {
        r_weights.make(s_block, group, lane, strip % 2);
        const unsigned scales = SharedBlocks<Shape>{s_block, lane}.scales(group, strip % 2);
#pragma unroll
        for (int part = 0; part < Shape::kParts; ++part) {
          const unsigned long long rows = wgmma_step(box, part * Shape::kPartTokens * Shape::kRowBytes / 32);
          wgmma_fence();  // ahead of the turn: behind it, weights would be made in it
          turns.begin();
#pragma unroll
          for (int i = 0; i < Shape::kGroupSteps; ++i) {
            const int step = group * Shape::kGroupSteps + i;
            wgmma_m64k32_e4m3(group_sums, r_weights.r_fragments[i], wgmma_step(rows, step), i > 0);
          }
          wgmma_commit();
          turns.pass();
          const float2 factor = scale_pair_to_f32(scales, operands.scales_bf16);
          wgmma_wait<0>();
          wgmma_settle(group_sums);
#pragma unroll
          for (int i = 0; i < Shape::kPartSums; ++i) {
            float& sum = sums[part * Shape::kPartSums + i];
            sum = fmaf(group_sums[i], i % 4 < 2 ? factor.x : factor.y, sum);
          }
        }
      }
      __syncwarp();  // all lanes have read the block
      if (lane == 0) {
        mbarrier_arrive(s_barrier + kBarrierBytes);
      }
      stage.advance(stages);
    }

    const WidePlace place = schedule.template place<Shape>(work.tile);
    const int thread = (Shape::kTakesTurns ? thread_read_here() : static_cast<int>(threadIdx.x)) % kWarpgroupThreads;
    if (work.part == kFinished) {
      scale(sums, place.token);
      store_warpgroup_sums<Shape::kTokens, Shape::kStoreTokens>(operands, sums, s_memory + tile * kWideStoreBytes,
                                                               place.token, schedule.template end<Shape>(place),
                                                               place.channel + tile * kTileChannels, thread, 1 + tile);
    } else {
      store_part<Shape>(sums, g_parts, work.part, tile, thread);
    }
  }
  if (tile == 0) {
    turns.begin();  // takes back what the other has passed last
  }
}

}  // namespace baracuda
