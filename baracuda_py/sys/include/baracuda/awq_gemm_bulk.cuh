// The kernel of awq_gemm that decodes on sm_90: y^T = W x^T, weights as mma operand A, tokens as operand B's columns. One
// launch, no workspace. What it reads of packed weights is a struct for each layout: awq_gemm_bulk_tiled.cuh,
// awq_gemm_bulk_hf_gemm.cuh, awq_gemm_bulk_oc_major.cuh.
//
// A CTA computes kTokens tokens of one or more tiles of kChannels output channels, one after another. Its warps share out
// a tile: kRowWarps take 32 or 64 channels each, kDepthWarps share out the blocks of 128 input channels (warp w takes w,
// w + kDepthWarps, ...). Each streams its own blocks through a ring of its own, by bulk copies that one lane issues, so
// that no barrier of the CTA lies between the first block of a tile and the last, and copies go on from tile to tile. Of the
// other warps one copies x, for all, in chunks of kDepthWarps blocks; where the slots take all of x, it is copied once. Up to
// 16 tokens the others add the sums of a tile while the next is multiplied; those of the last tile the warps that multiply add.
//
// A block is some 250 instructions, and a scheduler has two warps to take them from: every one that is not of the product
// tells. So what a warp decides is the same in all lanes, in uniform registers, and the lane that copies is an elected one.
//
// The copy engine begins late, behind barriers and what leads to them: instructions and parameters come from memory at first
// (H100, 0.2 to 0.4 us of a launch). So the lanes of a warp ask for its first unit themselves, before anything else.
//
// Where there are few tiles, two CTAs of a cluster (kParts), which take one tile, share out its chunks: each sends the sums of
// half of the channels to the other, and stores the other half.
//
// Operand A is q as it lies (int4_pair.cuh), an instruction less for each register than q - z. From the sums of a group zero
// points times the sum of x are then subtracted: one more mma for a slice and 8 tokens, whose 6.5 cycles overlap with nothing
// (H200), and a multiply-add for each sum. With groups of 32 that is more than it saves, and operand A is q - z.
//
// A row's bits do not depend on m: tokens do not meet, and the order of k depends on ic, the groups, kDepthWarps and kParts
// only.
//
// Streaming weights by bulk copies into rings of single warps, and x by boxes, is our prototype's design; splitting k over
// the warps of a CTA is Marlin's (Frantar et al., arXiv 2408.11743).
#pragma once

#include "baracuda/awq_gemm_tiled_block.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/cluster.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/elect.cuh"
#include "baracuda/grid_dependency.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/register_count.cuh"
#include "baracuda/ring_place.cuh"
#include "baracuda/shuffle.cuh"
#include "baracuda/warp_uniform.cuh"

namespace baracuda {

// Warps beside those that multiply: one copies x, the others add sums. For one tile entries for 8 tokens need the first alone.
BARACUDA_CONSTANT(kOtherWarps, 4);
BARACUDA_CONSTANT(kT8OtherWarps, 1);
BARACUDA_CONSTANT(kMostSumTokens, 16);
BARACUDA_CONSTANT(kBoxChannels, 64);  // input channels of a box of x: rows of 128 bytes
constexpr int kBoxRowBytes = kBoxChannels * 2;
constexpr int kBlockBoxes = kBlockDepth / kBoxChannels;

// Shapes of one entry point.
template <template <typename> class WeightsOf, int kWarpBlocks, int kRows, int kDepths, int kTokenTiles, int kGroupCount,
          int kClusterParts = 1>
struct BulkShape {
  static constexpr int kBlocks = kWarpBlocks;  // of 32 output channels, of a warp: 1, or 2, a whole tile
  static constexpr int kTilesM = 2 * kBlocks;  // m16 tiles
  static constexpr int kTilesN = kTokenTiles;  // n8 tiles
  static constexpr int kGroups = kGroupCount;  // of a block
  // Whether operand A is q - z. The same for all token tiles: a row's bits would else depend on m.
  static constexpr bool kSubtractsFirst = kGroups > 2;
  static constexpr int kRowWarps = kRows;
  static constexpr int kDepthWarps = kDepths;
  static constexpr int kParts = kClusterParts;  // CTAs that share out k: 1 or 2
  static constexpr int kWarps = kRowWarps * kDepthWarps;
  // Beyond 8 tokens a warp wants more than its share of the registers: the others, a warpgroup, give up most of their own.
  static constexpr bool kMovesRegisters = kTilesN > 1;
  static constexpr int kThreads = (kWarps + kOtherWarps) * kWarpLanes;
  static constexpr int kWarpChannels = kBlockChannels * kBlocks;
  static constexpr int kChannels = kWarpChannels * kRowWarps;
  static constexpr int kTokens = 8 * kTilesN;
  static constexpr bool kHoldsTokens = kTilesN <= 2;  // registers suffice for a block's x before its weights come
  static constexpr int kOwnChannels = kChannels / kParts;  // that a CTA stores
  static constexpr int kSumTokens = kTokens < kMostSumTokens ? kTokens : kMostSumTokens;  // whose sums are added at a time
  // The other warps add sums, of all tiles of a CTA but the last.
  static constexpr bool kAddsApart = kParts == 1 && kTokens == kSumTokens;
  static constexpr int kAddingThreads = (kOtherWarps - 1) * kWarpLanes;
  static constexpr int kLowRegisters = kAddsApart ? 56 : 24;  // of threads that do not multiply, and of those that do then
  static constexpr int kHighRegisters = kAddsApart ? 224 : 240;
  static_assert(!kMovesRegisters || (kWarps == 8 && kOtherWarps == 4 && 4 * kLowRegisters + 8 * kHighRegisters <= 12 * 168),
                "warpgroups share out what a CTA is launched with");
  static constexpr unsigned kTokenSums = kSumTokens * kChannels;
  static constexpr unsigned kReceived = kDepthWarps * kTokenSums;  // where the sums of the other part begin
  static constexpr unsigned kSumBytes = (kReceived + (kParts - 1) * kSumTokens * kOwnChannels) * 4;
  using Weights = WeightsOf<BulkShape>;
  static_assert(kRowWarps == 1 || kBlocks == 2, "the warps of a column take whole tiles");
};

// x lies as boxes of `tokens` rows of 128 bytes, swizzled: where, from the offset `boxes` on, a quarter of a slice of a token
// is, 16 bytes. Tokens beyond them are given the last one's address.
__device__ __forceinline__ unsigned token_address(unsigned boxes, int tokens, int token, int slice, int quarter) {
  constexpr int kBoxSlices = kBoxChannels / kSliceChannels;
  const int row = slice / kBoxSlices * tokens + (token < tokens ? token : tokens - 1);
  const unsigned s_row = boxes + static_cast<unsigned>(row * kBoxRowBytes);
  const unsigned chunk = static_cast<unsigned>((slice % kBoxSlices * kSliceChunks + quarter) * kLaneBytes);
  return s_row + (chunk ^ (s_row >> 3 & 0x70u));
}

// Where a lane's quarters of x lie in a slot, which begins at a multiple of 1024: of its token of each n8 tile, in both boxes
// of a block. A box's second slice lies 64 bytes from the first, swizzled.
template <typename Shape>
struct TokenOffsets {
  unsigned r_offsets[Shape::kTilesN][kBlockBoxes];

  // `token` of the first tile, of boxes of `tokens` rows.
  __device__ __forceinline__ TokenOffsets(unsigned boxes, int tokens, int token, int quarter) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
      for (int box = 0; box < kBlockBoxes; ++box) {
        r_offsets[n][box] = token_address(boxes, tokens, 8 * n + token, box * (kSlices / kBlockBoxes), quarter);
      }
    }
  }
  __device__ __forceinline__ unsigned of(int n, int slice) const {
    constexpr int kBoxSlices = kSlices / kBlockBoxes;
    return r_offsets[n][slice / kBoxSlices] ^ static_cast<unsigned>(slice % kBoxSlices * kSliceChunks * kLaneBytes);
  }
};

// The B operand of a slice of a block. A lane's pairs are two neighbouring input channels of each quarter.
template <typename Shape>
struct TokenBoxes {
  // Of n8 tiles: tokens from a quad's first column to the next quad's, and to the quad's second.
  static constexpr int kQuadStep = 2;
  static constexpr int kSecond = 1;

  TokenOffsets<Shape> offsets;

  __device__ __forceinline__ TokenBoxes(unsigned boxes, int tokens, int lane) : offsets(boxes, tokens, lane % 8, lane / 8) {}

  __device__ __forceinline__ void read(const unsigned char* s_slot, unsigned (&b)[Shape::kTilesN][4], int slice) const {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) ldmatrix_x4(b[n], shared_address(s_slot) + offsets.of(n, slice));
  }
};

// The same of weights whose words are eight input channels: lane t's pairs are channels i and i + 4 of quarter t, as nibbles
// of a word pair up. Column c is token c / 2 + c % 2 * 4, so that, of eight tokens, the lanes that load at a time read
// distinct banks.
template <typename Shape>
struct WordTokenBoxes {
  static constexpr int kQuadStep = 1;
  static constexpr int kSecond = 4;

  TokenOffsets<Shape> offsets;

  __device__ __forceinline__ WordTokenBoxes(unsigned boxes, int tokens, int lane)
      : offsets(boxes, tokens, lane / 8 * kQuadStep + lane / 4 % 2 * kSecond, lane % 4) {}

  __device__ __forceinline__ void read(const unsigned char* s_slot, unsigned (&b)[Shape::kTilesN][4], int slice) const {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
      const uint4 x = *reinterpret_cast<const uint4*>(s_slot + offsets.of(n, slice));
      b[n][0] = join_low_halves(x.x, x.z);
      b[n][1] = join_high_halves(x.x, x.z);
      b[n][2] = join_low_halves(x.y, x.w);
      b[n][3] = join_high_halves(x.y, x.w);
    }
  }
};

// The B operand of a block, in registers.
template <typename Shape>
struct HeldTokens {
  unsigned r_b[kSlices][Shape::kTilesN][4];

  __device__ __forceinline__ HeldTokens(const typename Shape::Weights::Tokens& boxes, const unsigned char* s_slot) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) boxes.read(s_slot, r_b[slice], slice);
  }
  __device__ __forceinline__ void read(unsigned (&b)[Shape::kTilesN][4], int slice) const {
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[n][i] = r_b[slice][n][i];
    }
  }
};

// The same in shared memory.
template <typename Shape>
struct SharedTokens {
  const typename Shape::Weights::Tokens& boxes;
  const unsigned char* s_slot;

  __device__ __forceinline__ void read(unsigned (&b)[Shape::kTilesN][4], int slice) const { boxes.read(s_slot, b, slice); }
};

// Sums of x over a group, by one mma for a slice of an n8 tile. Its operand A is what B is for weights, as it lies, and its B
// is all ones, so that it does not matter which columns a register is: half of a token's sum is row g, half is row g + 8.
template <typename Shape, typename Element>
struct TokenSums {
  float r_halves[Shape::kTilesN][4] = {};

  __device__ __forceinline__ void add(const unsigned (&b)[Shape::kTilesN][4]) {
    const unsigned ones = Int4Pair<Element>::ones();
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) mma_m16n8k16<Element>(r_halves[n], b[n], ones, ones);
  }
  // Of a lane's columns of operand B, 2t and 2t + 1: from lanes whose g they are.
  __device__ __forceinline__ float2 of(int n) const {
    const float sum = r_halves[n][0] + r_halves[n][2];
    const int t = static_cast<int>(threadIdx.x) % 4;
    return make_float2(value_of_lane(sum, 8 * t), value_of_lane(sum, 8 * t + 4));
  }
};

// Zero points of rows g and g + 8 of an m16 tile, where those of two tiles are the nibbles of 16 bits; and for less_zero.
template <typename Element>
__device__ __forceinline__ float2 row_zeros(unsigned zeros, int tile) {
  const unsigned spread = __byte_perm(zeros, 0, 0x4140);  // a byte in the low bits of each half
  const int upper = tile % 2 * 4;
  return make_float2(Int4Pair<Element>::raw_zero(spread, upper), Int4Pair<Element>::raw_zero(spread, upper + 1));
}
template <typename Element>
__device__ __forceinline__ uint2 row_zero_terms(unsigned zeros, int tile) {
  const unsigned both = join_low_halves(zeros, zeros);
  const int upper = tile % 2 * 2;
  return make_uint2(Int4Pair<Element>::raw_zero_term(both, upper), Int4Pair<Element>::raw_zero_term(both, upper + 1));
}

// Adds the product of a unit and tokens to `sums`, in the units of raw pairs. What a group's scales multiply is f32.
template <typename Shape, typename Element, typename Tokens>
__device__ __forceinline__ void multiply_groups(const typename Shape::Weights::Held& held, const Tokens& tokens,
                                                bool scales_bf16,
                                                float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
  using Weights = typename Shape::Weights;
  constexpr int kGroupSlices = kSlices / Shape::kGroups;
#pragma unroll
  for (int group = 0; group < Shape::kGroups; ++group) {
    float partial[Shape::kTilesM][Shape::kTilesN][4] = {};
    TokenSums<Shape, Element> token_sums;
    uint2 zero_terms[Shape::kTilesM];
    if constexpr (Shape::kSubtractsFirst) {
#pragma unroll
      for (int tile = 0; tile < Shape::kTilesM; ++tile) {
        zero_terms[tile] = Weights::template zero_terms<Element>(held, group, tile);
      }
    }
#pragma unroll
    for (int slice = group * kGroupSlices; slice < (group + 1) * kGroupSlices; ++slice) {
      unsigned b[Shape::kTilesN][4];
      tokens.read(b, slice);
      if constexpr (!Shape::kSubtractsFirst) token_sums.add(b);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int tile = 0; tile < Shape::kTilesM; ++tile) {
          unsigned a[4];
          Weights::template fragment<Element>(held, slice, step, tile, a);
          if constexpr (Shape::kSubtractsFirst) Weights::template subtract<Element>(a, zero_terms[tile]);
#pragma unroll
          for (int n = 0; n < Shape::kTilesN; ++n) {
            mma_m16n8k16<Element>(partial[tile][n], a, b[n][2 * step], b[n][2 * step + 1]);
          }
        }
      }
    }
    if constexpr (!Shape::kSubtractsFirst) {  // ahead of the branch on the scales' element, so as to be there once
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
        const float2 x = token_sums.of(n);
#pragma unroll
        for (int tile = 0; tile < Shape::kTilesM; ++tile) {
          const float2 zero = Weights::template zeros<Element>(held, group, tile);
          partial[tile][n][0] = fmaf(-zero.x, x.x, partial[tile][n][0]);
          partial[tile][n][1] = fmaf(-zero.x, x.y, partial[tile][n][1]);
          partial[tile][n][2] = fmaf(-zero.y, x.x, partial[tile][n][2]);
          partial[tile][n][3] = fmaf(-zero.y, x.y, partial[tile][n][3]);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < Shape::kTilesM; ++tile) {
      const float2 scale = scale_pair_to_f32(held.r_scales[group][tile], scales_bf16);
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
        sums[tile][n][0] = fmaf(partial[tile][n][0], scale.x, sums[tile][n][0]);
        sums[tile][n][1] = fmaf(partial[tile][n][1], scale.x, sums[tile][n][1]);
        sums[tile][n][2] = fmaf(partial[tile][n][2], scale.y, sums[tile][n][2]);
        sums[tile][n][3] = fmaf(partial[tile][n][3], scale.y, sums[tile][n][3]);
      }
    }
  }
}

// The same, with one branch on the scales' element a unit, rather than one a group: ahead of each the products would have to
// end. Where that takes too many registers, with one a group.
template <typename Shape, typename Element, typename Tokens>
__device__ __forceinline__ void multiply_unit(const typename Shape::Weights::Held& held, const Tokens& tokens, bool scales_bf16,
                                              float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
  if (Shape::kTilesN > 2 || !Shape::Weights::kOneBranch) {
    multiply_groups<Shape, Element>(held, tokens, scales_bf16, sums);
  } else if (scales_bf16) {
    multiply_groups<Shape, Element>(held, tokens, true, sums);
  } else {
    multiply_groups<Shape, Element>(held, tokens, false, sums);
  }
}

// How a launch lays out its shared memory: x in slots of a chunk each, rings of units, sums, and barriers.
template <typename Shape>
struct BulkLayout {
  int tokens;  // rows of a box
  int stages;  // units of a ring
  int slots;   // chunks of x

  __device__ __forceinline__ unsigned chunk_bytes() const {
    return static_cast<unsigned>(Shape::kDepthWarps * kBlockBoxes * kBoxRowBytes * tokens);
  }
  __device__ __forceinline__ unsigned slot_bytes() const { return (chunk_bytes() + 1023u) & ~1023u; }
  __device__ __forceinline__ unsigned rings() const { return slots * slot_bytes(); }
  __device__ __forceinline__ unsigned ring_bytes() const { return stages * Shape::Weights::kUnitBytes; }
  __device__ __forceinline__ unsigned sums() const { return rings() + Shape::kWarps * ring_bytes(); }
  __device__ __forceinline__ unsigned unit_barriers() const { return sums() + Shape::kSumBytes; }  // (warps, stages)
  __device__ __forceinline__ unsigned full_barriers() const {                                      // (slots,)
    return unit_barriers() + Shape::kWarps * stages * kBarrierBytes;
  }
  __device__ __forceinline__ unsigned empty_barriers() const { return full_barriers() + slots * kBarrierBytes; }
};

// `weights` are those of the layout, at no unit yet.
template <typename Shape, typename Element>
__device__ __forceinline__ void awq_gemm_bulk(const AwqGemmOperands<Element>& operands, const TensorMap* x_map,
                                              typename Shape::Weights weights, const BulkLayout<Shape> layout, int tiles,
                                              bool overlaps) {
  using Weights = typename Shape::Weights;
  using Tokens = typename Weights::Tokens;
  unsigned char* s_memory = dynamic_shared_for_boxes();
  const unsigned s_base = shared_address(s_memory);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(warp_uniform(threadIdx.x / kWarpLanes));
  const int all_columns = (operands.ic + kBlockDepth - 1) / kBlockDepth;
  const int all_chunks = (all_columns + Shape::kDepthWarps - 1) / Shape::kDepthWarps;
  int part = 0;
  int first_chunk = 0;
  int chunks = all_chunks;
  int columns = all_columns;  // blocks of this part
  if constexpr (Shape::kParts == 2) {
    part = static_cast<int>(cluster_rank());
    const int share = (all_chunks + 1) / 2;
    first_chunk = part * share;
    chunks = part == 0 ? share : all_chunks - share;
    columns = part == 0 ? chunks * Shape::kDepthWarps : all_columns - first_chunk * Shape::kDepthWarps;
  }
  const int all_tiles = (operands.oc + Shape::kChannels - 1) / Shape::kChannels;
  const int tile_step = Weights::kNeighboursTogether ? static_cast<int>(gridDim.x) / Shape::kParts : 1;
  const int first_tile = static_cast<int>(blockIdx.x) / Shape::kParts * (Weights::kNeighboursTogether ? 1 : tiles);
  const int end_tile = Weights::kNeighboursTogether || first_tile + tiles > all_tiles ? all_tiles : first_tile + tiles;
  const int first_token = static_cast<int>(blockIdx.y) * layout.tokens;
  const bool resident = layout.slots >= chunks;  // chunk c stays in slot c
  // Copies queue: x comes sooner when few units lie before it. So one is asked for before x, and a place's next one when x
  // has come. Not where rings hold all units, nor behind a launch that writes x, which comes long after units then; nor for
  // several tiles, for each of which x comes again.
  const bool tokens_first = tiles == 1 && chunks > layout.stages && !overlaps;
  const int early_stages = overlaps ? layout.stages : 1;
  const unsigned s_full = s_base + layout.full_barriers();
  const unsigned s_empty = s_base + layout.empty_barriers();

  const bool copies_x = warp == Shape::kWarps;

  int copied = 0;
  int chunk = 0;
  RingPlace next_slot;
  const auto copy_chunk = [&] {
    if (copied >= layout.slots) {
      mbarrier_wait(s_empty + next_slot.place * kBarrierBytes, next_slot.parity ^ 1);
    }
    const unsigned s_barrier = s_full + next_slot.place * kBarrierBytes;
    if (elect_one()) {
      mbarrier_arrive_expecting(s_barrier, layout.chunk_bytes());  // what lies beyond x counts too
      box_copy(s_base + next_slot.place * layout.slot_bytes(), x_map, 0, first_token,
               (first_chunk + chunk) * (Shape::kDepthWarps * kBlockBoxes), s_barrier);
    }
    chunk = chunk + 1 == chunks ? 0 : chunk + 1;
    next_slot.advance(layout.slots);
    ++copied;
  };

  const int depth_warp = warp / Shape::kRowWarps;
  const unsigned ring = layout.rings() + warp * layout.ring_bytes();
  const unsigned s_units = s_base + layout.unit_barriers() + warp * layout.stages * kBarrierBytes;
  constexpr int kTileHalves = Shape::kChannels / kBlockChannels;
  const int first_half = warp % Shape::kRowWarps * Shape::kBlocks;  // of this warp in a tile
  const int all_halves = Weights::halves(operands.oc);

  // The next unit to copy. A tile may have none for this warp: what it takes beyond oc, and blocks beyond ic.
  int next_tile = depth_warp < columns ? first_tile : end_tile;
  int next_block = depth_warp;
  const auto start_tile = [&] {
    const int half = next_tile * kTileHalves + first_half;
    if (half >= all_halves) next_tile = end_tile;
    weights.start(all_columns, half, first_chunk * Shape::kDepthWarps + depth_warp);
  };
  const auto advance_unit = [&] {
    weights.advance();
    next_block += Shape::kDepthWarps;
    if (next_block >= columns) {
      next_block = depth_warp;
      next_tile += tile_step;
      start_tile();
    }
  };
  const auto copy_unit = [&](unsigned s_unit, unsigned s_barrier) {
    if (elect_one()) {
      mbarrier_arrive_expecting(s_barrier, Weights::kCopiedBytes);
      weights.copy(s_unit, s_barrier);
    }
    advance_unit();
  };
  const auto copy_units = [&](int stage, int end) {
#pragma unroll 1
    for (; stage < end && next_tile < end_tile; ++stage) {
      copy_unit(s_base + ring + stage * Weights::kUnitBytes, s_units + stage * kBarrierBytes);
    }
  };

  bool first_by_threads = false;
  if (copies_x) {
    if (elect_one()) {
      mbarrier_init(s_full, 1);
      mbarrier_fence_init();
    }
    grid_dependency_wait();  // x may be what the launch before writes
    copy_chunk();
  } else if (warp < Shape::kWarps) {
    start_tile();
    first_by_threads = next_tile < end_tile;
    if (first_by_threads) {
      weights.copy_by_threads(s_base + ring, lane);
      advance_unit();
    }
    if (elect_one()) {  // loops are not unrolled, because code that runs once is read from memory
#pragma unroll 1
      for (int stage = 0; stage < layout.stages; ++stage) mbarrier_init(s_units + stage * kBarrierBytes, 1);
#pragma unroll 1
      for (int place = warp; place < layout.slots; place += Shape::kWarps) {
        mbarrier_init(s_empty + place * kBarrierBytes, Shape::kWarps);
      }
#pragma unroll 1
      for (int place = warp + 1; place < layout.slots; place += Shape::kWarps) {  // the first is the copying warp's
        mbarrier_init(s_full + place * kBarrierBytes, 1);
      }
      mbarrier_fence_init();
    }
    copy_units(first_by_threads, early_stages);
    grid_dependency_release();
  }

  float* s_sums = reinterpret_cast<float*>(s_memory + layout.sums());  // (kDepthWarps, kSumTokens, kChannels)
  constexpr int kPairs = Shape::kOwnChannels / 2;
  constexpr int kMultiplyingThreads = Shape::kWarps * kWarpLanes;
  constexpr int kSumThreads = kMultiplyingThreads + Shape::kAddingThreads;
  constexpr int kSumsWritten = 2, kSumsRead = 3;  // barriers
  // Pairs of sums of the tokens from `first` on.
  const auto pairs = [&](int first) {
    const int left = layout.tokens - first;
    return (left < Shape::kSumTokens ? left : Shape::kSumTokens) * kPairs;
  };
  // Of a warp, of the tokens from `first` on.
  const auto write_sums = [&](const float(&sums)[Shape::kTilesM][Shape::kTilesN][4], int first) {
    constexpr int kSumTiles = Shape::kSumTokens / 8;
    float* s_warp = s_sums + depth_warp * Shape::kTokenSums + first_half * kBlockChannels;
    const int quad = lane % 4;  // lanes of other tokens exchange channels, so that they write to distinct banks
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
      if (n / kSumTiles != first / Shape::kSumTokens) continue;
#pragma unroll
      for (int m = 0; m < Shape::kTilesM; ++m) {
        float* s_token = s_warp + (n % kSumTiles * 8 + quad * Tokens::kQuadStep) * Shape::kChannels;
        const int upper = Weights::channel(lane, m, 0) ^ quad * Weights::kExchanged;
        const int lower = Weights::channel(lane, m, 1) ^ quad * Weights::kExchanged;
        s_token[upper] = sums[m][n][0];
        s_token[Tokens::kSecond * Shape::kChannels + upper] = sums[m][n][1];
        s_token[lower] = sums[m][n][2];
        s_token[Tokens::kSecond * Shape::kChannels + lower] = sums[m][n][3];
      }
    }
  };
  // Of the warps along k, of a token and a pair of channels.
  const auto total = [&](int token, int channel) {
    const float* s_pair =
        s_sums + token * Shape::kChannels + (channel ^ token / Tokens::kQuadStep % 4 * Weights::kExchanged);
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int warps = 0; warps < Shape::kDepthWarps; ++warps) {
      const float2 partial = *reinterpret_cast<const float2*>(s_pair + warps * Shape::kTokenSums);
      sum.x += partial.x;
      sum.y += partial.y;
    }
    sum.x *= Weights::template units<Element>(channel);
    sum.y *= Weights::template units<Element>(channel);
    return sum;
  };
  // By some threads, of the tokens from `first` on.
  const auto store_sums = [&](int tile, int first, int thread, int threads) {
#pragma unroll 1
    for (int index = thread; index < pairs(first); index += threads) {
      const int token = index / kPairs;
      const int own = part * Shape::kOwnChannels + index % kPairs * 2;
      const int row = first_token + first + token;
      const long long channel = static_cast<long long>(tile) * Shape::kChannels + own;
      if (row >= operands.m || channel >= operands.oc) continue;
      float2 sum = total(token, own);
      if constexpr (Shape::kParts == 2) {
        const float2 received = reinterpret_cast<const float2*>(s_sums + Shape::kReceived)[index];
        sum.x += received.x;
        sum.y += received.y;
      }
      store_output_pair<true>(operands, row, channel, sum);
    }
  };

  __syncwarp();
  __syncthreads();  // the barriers can be used
  if constexpr (Shape::kParts == 2) cluster_arrive_relaxed();
  if (warp >= Shape::kWarps) {
    if constexpr (Shape::kMovesRegisters) lower_register_count<Shape::kLowRegisters>();
    if (copies_x) {
      const int wanted = resident ? chunks : chunks * ((end_tile - first_tile + tile_step - 1) / tile_step);
#pragma unroll 1
      while (copied < wanted) copy_chunk();
    } else if constexpr (Shape::kAddsApart) {
#pragma unroll 1
      for (int tile = first_tile; tile + tile_step < end_tile; tile += tile_step) {
        partial_barrier<kSumThreads, kSumsWritten>();
        store_sums(tile, 0, static_cast<int>(threadIdx.x) - kMultiplyingThreads - kWarpLanes, Shape::kAddingThreads);
        __syncwarp();  // all lanes have read
        partial_barrier_arrive<kSumThreads, kSumsRead>();
      }
    }
    if constexpr (Shape::kParts == 2) {
      // A warp that ends without it counts as arrived, but the others then wait a microsecond longer (H100).
      __syncwarp();
      cluster_wait();
    }
    return;
  }
  if constexpr (Shape::kMovesRegisters) raise_register_count<Shape::kHighRegisters>();
  copy_units(early_stages, layout.stages);
  if (first_by_threads) {
    cp_async_wait<0>();
    fence_before_bulk_copy();  // into the same place
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(s_units);
    }
  }

  const int places = resident ? chunks : layout.slots;
  const Tokens boxes(static_cast<unsigned>(depth_warp * kBlockBoxes * layout.tokens * kBoxRowBytes), layout.tokens, lane);
  RingAddress unit{s_memory + ring, s_units, layout.stages};
  RingAddress slot{s_memory, s_full, places};
#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; tile += tile_step) {
    const bool padding = tile * kTileHalves + first_half >= all_halves;
    float sums[Shape::kTilesM][Shape::kTilesN][4] = {};
#pragma unroll 1
    for (int block = depth_warp; block < chunks * Shape::kDepthWarps; block += Shape::kDepthWarps) {
      const auto wait_for_tokens = [&] { mbarrier_wait(slot.s_barrier, resident ? 0 : slot.parity); };
      if (block < columns && !padding) {
        const auto take_unit = [&] {
          mbarrier_wait(unit.s_barrier, unit.parity);
          const typename Weights::Held held = Weights::hold(unit.s_item, lane);
          __syncwarp();  // all lanes have what they need of the unit
          // Loads queue, and a copy from L2 can overtake them: unless all have come, one launch of some hundred reads of a
          // unit what takes its place (OC_MAJOR, groups of 32, 64 rows, H100). The compiler does not know that oc is not 0.
          if (next_tile < end_tile && warp_has_loaded(held.loaded() | static_cast<unsigned>(operands.oc))) {
            copy_unit(shared_address(unit.s_item), unit.s_barrier);
          }
          unit.advance(Weights::kUnitBytes, layout.stages);
          return held;
        };
        if constexpr (Shape::kHoldsTokens) {
          wait_for_tokens();
          const HeldTokens<Shape> tokens(boxes, slot.s_item);
          const typename Weights::Held held = take_unit();
          multiply_unit<Shape, Element>(held, tokens, operands.scales_bf16, sums);
        } else {
          if (tokens_first) wait_for_tokens();
          const typename Weights::Held held = take_unit();
          if (!tokens_first) wait_for_tokens();
          multiply_unit<Shape, Element>(held, SharedTokens<Shape>{boxes, slot.s_item}, operands.scales_bf16, sums);
        }
      } else if (!resident) {
        // A warp that has nothing to do must not arrive for a chunk while others have not for the one before.
        wait_for_tokens();
      }
      if (!resident) {
        __syncwarp();  // all lanes have what they need of x
        if (lane == 0) {
          mbarrier_arrive(slot.s_barrier + layout.slots * kBarrierBytes);
        }
      }
      slot.advance(layout.slot_bytes(), places);
    }

    if constexpr (Shape::kAddsApart) {
      if (tile != first_tile) partial_barrier<kSumThreads, kSumsRead>();
      if (tile + tile_step < end_tile) {
        write_sums(sums, 0);
        __syncwarp();  // all lanes have written
        partial_barrier_arrive<kSumThreads, kSumsWritten>();
        continue;
      }
    }
#pragma unroll 1
    for (int first = 0; first < layout.tokens; first += Shape::kSumTokens) {
      if (first > 0 || (!Shape::kAddsApart && tile != first_tile)) {
        partial_barrier<kMultiplyingThreads>();  // the last sums have been read
      }
      write_sums(sums, first);
      partial_barrier<kMultiplyingThreads>();
      if constexpr (Shape::kParts == 2) {
        cluster_wait();  // the other part has begun, or has read what it received
        const unsigned s_other = cluster_address(shared_address(s_sums + Shape::kReceived), part ^ 1);
#pragma unroll 1
        for (int index = static_cast<int>(threadIdx.x); index < pairs(first); index += kMultiplyingThreads) {
          const int token = index / kPairs;
          store_cluster(s_other + index * 8, total(token, (part ^ 1) * Shape::kOwnChannels + index % kPairs * 2));
        }
        __syncwarp();  // the last lanes may have had nothing to send
        cluster_arrive();
        cluster_wait();
      }
      store_sums(tile, first, static_cast<int>(threadIdx.x), kMultiplyingThreads);
      if constexpr (Shape::kParts == 2 && Shape::kTokens > Shape::kSumTokens) {
        if (first + Shape::kSumTokens < layout.tokens) {
          __syncwarp();  // the last lanes may have had nothing to store
          cluster_arrive();
        }
      }
    }
  }
}

}  // namespace baracuda
