// The kernel of awq_fp8_gemm for TILED weights (awq_tiles.cuh) on sm_90a: y^T = W x^T by warpgroup instructions on fp8,
// weights as operand A, which is in registers, x as operand B, which they read from shared memory.
//
//   y[m, oc] = epilogue(scale[m] * sum over k of x[m, k] * (q[k, oc] - z[k / group, oc]) * s[k / group, oc])
//
// A CTA computes tiles of 128 output channels of kTokens tokens, one after the other (WideSchedule). One warp copies, into a
// ring, boxes of x of 128 input channels and the blocks of packed weights that belong to them, ahead of two warpgroups,
// which take 64 output channels each, a warp 16 of them. While one makes weights, or adds what a group gave to its sums, the
// tensor cores work for the other.
//
// In e4m3 the code of n, 0 to 15, is n * 2^-9: up to 7 a subnormal, beyond one of the eight least normal values. So |q - z|
// with a sign bit is a weight without a conversion. Products of a group are summed by the tensor cores, which keep fewer
// bits than f32 has while they do; then they are scaled and added to f32 sums.
//
// Sums of the tensor cores that are added to f32 ones: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2.
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/awq_gemm_wide_parts.cuh"
#include "baracuda/awq_gemm_wide_schedule.cuh"
#include "baracuda/awq_gemm_wide_store.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/elect.cuh"
#include "baracuda/global_load.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/register_count.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/warp_uniform.cuh"
#include "baracuda/wgmma_fp8.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kFp8Threads, 384);  // two warpgroups that compute, and one that copies and gives up registers
BARACUDA_CONSTANT(kFp8MaxStages, 8);
BARACUDA_CONSTANT(kFp8FewTokens, 64);  // of a tile: beyond, a box has some of both halves
BARACUDA_CONSTANT(kFp8FixedBytes, 11264);  // of shared memory ahead of the ring: of the stores, x's factors and barriers

constexpr int kFp8Steps = kBlockDepth / 32;  // k32 steps of a block
constexpr float kFp8Unit = 512.0f;           // a weight is its code's value times this
// That a stage is full, behind it that it is empty, and where its tile begins: its first token, and its first tile of weights.
constexpr unsigned kFp8StageBarrierBytes = 3 * kBarrierBytes;

// Shapes of one entry point.
template <int kTokenCount, int kGroupCount>
struct Fp8Shape {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kGroups = kGroupCount;  // of a block
  static constexpr bool kEven = false;         // WideSchedule
  static constexpr int kSums = kTokens / 2;    // of a thread
  // Tokens that are multiplied at a time: what a group gives them is held beside the sums of all tokens.
  static constexpr int kPartTokens = kTokens / 2;
  static constexpr int kParts = kTokens / kPartTokens;
  static constexpr int kPartSums = kPartTokens / 2;
  static constexpr int kProducts = kGroups * kParts;  // of a block
  static constexpr int kGroupSteps = kFp8Steps / kGroups;
  static constexpr int kTiles = kWideChannels / kTileChannels;  // a warpgroup each
  static constexpr int kTileWarps = kWarpgroupThreads / kWarpLanes;
  static constexpr int kWarps = kTiles * kTileWarps;                           // that compute
  static constexpr unsigned kTileBytes = kBlockHalves * block_bytes(kGroups);  // of a tile, in one column of blocks
  static constexpr unsigned kWeightBytes = kTiles * kTileBytes;
  static constexpr unsigned kRowBytes = kBlockDepth;  // of x
  static constexpr unsigned kBoxBytes = kTokens * kRowBytes;
  static constexpr unsigned kStageBytes = kBoxBytes + (kWeightBytes + 1023) / 1024 * 1024;
  // Of a thread: what the threads that copy give up, those that compute take.
  static constexpr int kCopyingRegisters = 24;
  static constexpr int kComputingRegisters = 240;
  static_assert(kFp8Threads == (kWarps + kTileWarps) * kWarpLanes, "a warpgroup copies");
  static_assert(kPartTokens * kRowBytes % 1024 == 0 && kFp8FixedBytes % 1024 == 0,
                "operand B begins at multiples of 1024 bytes");
  static_assert(kTiles == 2 && kTileWarps * kCopyingRegisters + kWarps * kComputingRegisters <= 2048, "of 65536 registers");
  static constexpr unsigned kScaleBytes = 1024;  // of a warpgroup: a float a token
  static_assert(kTokens * 4 <= kScaleBytes);
  static_assert(kTiles * (kWideStoreBytes + kScaleBytes) + kFp8MaxStages * kFp8StageBarrierBytes <= kFp8FixedBytes,
                "that is their size");
  static_assert(kFp8Steps % kGroups == 0, "a group has whole steps");
  static_assert(kProducts >= 2, "the next block is asked for one product ahead of the last");
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

  // To sums of n8 tiles as wgmma leaves them, of a warpgroup with a barrier of its own, by way of `s_scales`: a float a token.
  template <int kSums>
  __device__ __forceinline__ void operator()(float (&sums)[kSums], long long first_token, unsigned char* s_scales, int thread,
                                             int barrier) const {
    float* s_own = reinterpret_cast<float*>(s_scales);
#pragma unroll
    for (int first = 0; first < 2 * kSums; first += kWarpgroupThreads) {
      const long long token = first_token + first + thread;
      if (2 * kSums >= kWarpgroupThreads || thread < 2 * kSums) {
        s_own[first + thread] = token < m ? load_coherent(g_scales + token) : 0.0f;
      }
    }
    partial_barrier<kWarpgroupThreads>(barrier);
    const float2* s_pairs = reinterpret_cast<const float2*>(s_scales) + thread % 4;
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      const float2 scales = s_pairs[4 * i];
      // The small factor first: a product that f32 can hold does not overflow on the way.
      sums[4 * i] = sums[4 * i] * scales.x * kFp8Unit;
      sums[4 * i + 1] = sums[4 * i + 1] * scales.y * kFp8Unit;
      sums[4 * i + 2] = sums[4 * i + 2] * scales.x * kFp8Unit;
      sums[4 * i + 3] = sums[4 * i + 3] * scales.y * kFp8Unit;
    }
  }
};

// A warp's weights of a block as operand A, and what half of them is made of.
template <typename Shape>
struct Fp8Weights {
  static constexpr int kHalfSteps = kFp8Steps / kBlockHalves;

  unsigned r_bytes[kHalfSteps][2];  // of k16 steps: of rows r in the low halves of bytes, of rows r + 8 in the high
  unsigned r_zeros[kHalfSteps];     // of those rows
  unsigned r_fragments[kFp8Steps][4];

  // A word of TILED weights has pairs of input channels, operand A four in a row: those of two lanes' words, of which each
  // has the eight of a k16 step.
  __device__ __forceinline__ void load(const unsigned char* s_block, int half, int lane, int tile) {
    const SharedBlocks<Shape> first{s_block, lane / 4 * 4 + lane % 2 * 2}, second{s_block, first.lane + 1};
    const uint4 of_first = first.words(tile, half), of_second = second.words(tile, half);
    const unsigned selector = 0x6420u + 0x1111u * (lane % 4 / 2);
    r_bytes[0][0] = __byte_perm(of_first.x, of_second.x, selector);
    r_bytes[0][1] = __byte_perm(of_first.y, of_second.y, selector);
    r_bytes[1][0] = __byte_perm(of_first.z, of_second.z, selector);
    r_bytes[1][1] = __byte_perm(of_first.w, of_second.w, selector);
    if (half > 0 && Shape::kGroups == 1) return;  // with the first half's
#pragma unroll
    for (int i = 0; i < kHalfSteps; ++i) {
      r_zeros[i] = first.zeros((half * kHalfSteps + i) / Shape::kGroupSteps, tile);  // lane / 4 is what counts
    }
  }

  __device__ __forceinline__ void make(int half) {
#pragma unroll
    for (int i = 0; i < kHalfSteps; ++i) {
      const Fp8Zero upper(nibble(r_zeros[i], 0)), lower(nibble(r_zeros[i], 1));
      unsigned(&a)[4] = r_fragments[half * kHalfSteps + i];
#pragma unroll
      for (int k16 = 0; k16 < 2; ++k16) {
        a[2 * k16] = upper.codes(r_bytes[i][k16]);
        a[2 * k16 + 1] = lower.codes(r_bytes[i][k16] >> kNibbleBits);
      }
    }
  }
};

// `operands.x` is not read: `x_map` says where x is.
template <typename Shape, typename Element>
__device__ __forceinline__ void awq_fp8_gemm_tiled(const AwqGemmOperands<Element>& operands, const TokenScales& scale,
                                                   float4* __restrict__ g_parts, const TensorMap* x_map,
                                                   const WideSchedule& schedule, int stages) {
  unsigned char* s_memory = dynamic_shared_for_boxes();
  const unsigned s_base = warp_uniform(shared_address(s_memory));
  // What a warpgroup stores by way of, factors of x, barriers, and stages: a box, behind it weights.
  const unsigned s_barriers = s_base + Shape::kTiles * (kWideStoreBytes + Shape::kScaleBytes);
  const unsigned s_stages = s_base + kFp8FixedBytes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(warp_uniform(threadIdx.x / kWarpLanes));
  WideWorks works(schedule);
  WideWork work;
  RingPlace ring;
  // Uniform, as in awq_gemm_tiled_wide.cuh.
  const auto next = [&] {
    if (!works.next(work)) return false;
    const auto uniform = [](int value) { return static_cast<int>(warp_uniform(static_cast<unsigned>(value))); };
    work = {uniform(work.tile), uniform(work.first), uniform(work.end), work.part};
    return true;
  };
  const auto full = [&] { return s_barriers + static_cast<unsigned>(ring.place) * kFp8StageBarrierBytes; };
  const auto tile_of_place = [&] { return reinterpret_cast<int2*>(s_memory + (full() + 2 * kBarrierBytes - s_base)); };

  const bool computes = warp < Shape::kWarps;
  if (!computes) {
    if (warp == Shape::kWarps && elect_one()) {
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
    if (warp > Shape::kWarps) return;
    const unsigned char* g_weights = reinterpret_cast<const unsigned char*>(operands.weights);
    const int last_tile = static_cast<int>((static_cast<long long>(operands.oc) + kTileChannels - 1) / kTileChannels - 1);
    const unsigned nbytes = schedule.tokens * Shape::kRowBytes + Shape::kWeightBytes;
    grid_dependency_wait();  // x and the factors of its rows may be what the launch before writes
    int fresh = stages;      // places that have not been filled
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
          mbarrier_wait_for_warp(full() + kBarrierBytes, ring.parity ^ 1);
        }
        if (elect_one()) {
          *tile_of_place() = make_int2(token, first_tile);  // the warp that copies has the time to divide
        }
        __syncwarp();  // ahead of the arrival, which shows it
        if (elect_one()) {
          const unsigned s_barrier = full();
          const unsigned s_stage = s_stages + static_cast<unsigned>(ring.place) * Shape::kStageBytes;
          mbarrier_arrive_expecting(s_barrier, nbytes);
#pragma unroll
          for (int tile = 0; tile < Shape::kTiles; ++tile) {
            const int wanted = first_tile + tile;
            const long long from = wanted < last_tile ? wanted : last_tile;  // beyond oc: any, nothing is stored
            bulk_copy(s_stage + Shape::kBoxBytes + tile * Shape::kTileBytes,
                      g_weights + (from * schedule.blocks + block) * Shape::kTileBytes, Shape::kTileBytes, s_barrier);
          }
          box_copy(s_stage, x_map, block * kBlockDepth, token, 0, s_barrier);
        }
        ring.advance(stages);
      }
    }
    return;
  }

  raise_register_count<Shape::kComputingRegisters>();
  const int tile = warp / Shape::kTileWarps;
  const int strip = warp % Shape::kTileWarps;  // of 16 channels
  const unsigned char* s_blocks = s_memory + kFp8FixedBytes + Shape::kBoxBytes + tile * Shape::kTileBytes +
                                  strip / 2 * block_bytes(Shape::kGroups);
  Fp8Weights<Shape> r_weights;
  const auto load = [&](const unsigned char* s_block, int half) { r_weights.load(s_block, half, lane, strip % 2); };
  const auto block_of_place = [&] { return s_blocks + static_cast<unsigned>(ring.place) * Shape::kStageBytes; };
#pragma unroll 1
  while (next()) {
    float sums[Shape::kSums];
    float group_sums[Shape::kPartSums];
#pragma unroll
    for (int i = 0; i < Shape::kSums; ++i) sums[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < Shape::kPartSums; ++i) group_sums[i] = 0.0f;
    mbarrier_wait_for_warp(full(), ring.parity);
    const int2 begin = *tile_of_place();
    load(block_of_place(), 0);
#pragma unroll 1
    for (int block = work.first; block < work.end; ++block) {
      const bool more = block + 1 < work.end;
      const unsigned char* s_block = block_of_place();
      const unsigned s_empty = full() + kBarrierBytes;
      const unsigned long long box = wgmma_rows(s_stages + static_cast<unsigned>(ring.place) * Shape::kStageBytes);
      ring.advance(stages);
      r_weights.make(0);
      load(s_block, 1);
      r_weights.make(1);
      bool ready = false;
      float2 factor;
#pragma unroll
      for (int product = 0; product < Shape::kProducts; ++product) {
        const int group = product / Shape::kParts, first_token = product % Shape::kParts * Shape::kPartTokens;
        // Of the smallest boxes, a part may have nothing. Then it reads other tokens', rather than what no copy has written;
        // nothing of it is stored.
        const bool copied = Shape::kTokens > kFp8FewTokens || first_token < schedule.tokens;
        const unsigned long long rows = wgmma_step(box, copied ? first_token * static_cast<int>(Shape::kRowBytes / 32) : 0);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < Shape::kGroupSteps; ++i) {
          const int step = group * Shape::kGroupSteps + i;
          wgmma_m64k32_e4m3(group_sums, r_weights.r_fragments[step], wgmma_step(rows, step), i > 0);
        }
        wgmma_commit();
        // While the tensor cores work: an answer takes as long as a product does, and so do weights to be read.
        if (product == Shape::kProducts - 2) ready = mbarrier_ended_for_warp(full(), ring.parity);
        if (product == Shape::kProducts - 1) {
          if (__builtin_expect(more && !ready, 0)) {
            mbarrier_wait_for_warp(full(), ring.parity);
          }
          load(more ? block_of_place() : s_block, 0);  // of the next block, if there is one
        }
        if (product % Shape::kParts == 0) {
          factor = scale_pair_to_f32(SharedBlocks<Shape>{s_block, lane}.scales(group, strip % 2), operands.scales_bf16);
        }
        wgmma_wait<0>();
        wgmma_settle(group_sums);
#pragma unroll
        for (int i = 0; i < Shape::kPartSums; ++i) {
          float& sum = sums[product % Shape::kParts * Shape::kPartSums + i];
          sum = fmaf(group_sums[i], i % 4 < 2 ? factor.x : factor.y, sum);
        }
      }
      __syncwarp();  // all lanes are done with the place
      if (lane == 0) {
        mbarrier_arrive(s_empty);
      }
    }

    const WidePlace place = {static_cast<long long>(begin.y) * kTileChannels, begin.x};
    const int thread = thread_read_here() % kWarpgroupThreads;
    if (work.part == kFinished) {
      scale(sums, place.token, s_memory + Shape::kTiles * kWideStoreBytes + tile * Shape::kScaleBytes, thread, 1 + tile);
      store_warpgroup_sums<Shape::kTokens>(operands, sums, s_memory + tile * kWideStoreBytes, place.token,
                                           schedule.template end<Shape>(place), place.channel + tile * kTileChannels, thread,
                                           1 + tile);
    } else {
      store_part<Shape>(sums, g_parts, work.part, tile, thread);
    }
    __syncwarp();  // or the compiler takes the lanes to be apart in what follows
  }
}

}  // namespace baracuda
