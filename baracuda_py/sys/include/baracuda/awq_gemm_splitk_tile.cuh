// The tile of the split-K kernel of awq_gemm: its shapes, the part of the problem that a CTA computes, and
// the copies of one stage from global to shared memory.
#pragma once

#include "baracuda/awq_gemm.cuh"
#include "baracuda/cp_async.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kTileN, 128);  // output channels of a CTA
BARACUDA_CONSTANT(kStepK, 32);   // input channels by which ranges of k are cut
BARACUDA_CONSTANT(kTileM16Threads, 128);
BARACUDA_CONSTANT(kTileM64Threads, 128);
BARACUDA_CONSTANT(kTileM128Threads, 256);
BARACUDA_CONSTANT(kRasterTiles, 16);  // row tiles that are walked before the next column tile, to reuse L2

constexpr int kWarpN = 32;
constexpr int kTilesN = kWarpN / 8;  // n8 tiles of a warp
constexpr int kChunkBytes = 16;
constexpr int kChunkElements = 8;  // 16-bit elements of a chunk
constexpr int kWordsN = kTileN / kNibblesPerWord;
static_assert(kStepK == kIcGrain, "a step is the largest piece that every group and every ic is made of");

// Shapes of one entry point, and where a stage keeps what.
template <WeightLayout kLayout, int kRows, int kDepth, int kRing>
struct SplitKTile {
  static constexpr int kTileM = kRows;
  static constexpr int kTileK = kDepth;
  static constexpr int kStages = kRing;
  static constexpr int kWarpM = kTileM < 64 ? kTileM : 64;
  static constexpr int kTilesM = kWarpM / 16;  // m16 tiles of a warp
  static constexpr int kWarpsN = kTileN / kWarpN;
  static constexpr int kThreads = kTileM / kWarpM * kWarpsN * kWarpLanes;
  static constexpr int kSteps = kTileK / kStepK;

  static constexpr int kXBytes = kTileM * kTileK * 2;
  // kHfGemm rows are one k each. 20 words instead of 16 put the rows k = 2t of a warp's four t into distinct
  // banks.
  static constexpr int kHfPitchWords = kWordsN + 4;
  static constexpr int kWeightBytes =
      kLayout == WeightLayout::kOcMajor ? kTileN * kTileK / kNibblesPerWord * 4 : kTileK * kHfPitchWords * 4;
  static constexpr int kScaleBytes = kTileN * 2;
  static constexpr int kZeroBytes = kWordsN * 4;
  static constexpr int kWeightOffset = kXBytes;
  static constexpr int kGroupOffset = kWeightOffset + kWeightBytes;
  static constexpr int kGroupBytes = kScaleBytes + kZeroBytes;  // one step's scales, then zeros
  static constexpr int kStageBytes = kGroupOffset + kSteps * kGroupBytes;
  // Finished sums pass through shared memory as f32; four more columns a row spread a warp's stores over the
  // banks.
  static constexpr int kSumPitch = kTileN + 4;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = kTileM * kSumPitch * 4;
  static constexpr int kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;

  static_assert(kStages >= 3, "one stage is read while at least two are in flight");
  static_assert(kSharedBytes <= 99 * 1024,
                "sm_86, sm_89 and sm_120 give a CTA at most 99 KiB of shared memory");
  static_assert(kSteps * kWarpLanes <= kThreads,
                "half a warp copies a step's scales, the other half its zeros");
  static_assert(kStageBytes % kChunkBytes == 0, "stages start at multiples of 16 bytes");
};

// The part of the problem that one CTA computes.
struct SplitKRange {
  long long first_row;
  long long first_column;
  int k_begin;  // [k_begin, k_end), multiples of kStepK; may be empty
  int k_end;
};

template <typename Tile>
__device__ __forceinline__ SplitKRange splitk_range(int m, int ic, int oc) {
  const unsigned row_tiles = (static_cast<unsigned>(m) + Tile::kTileM - 1) / Tile::kTileM;
  const unsigned column_tiles = (static_cast<unsigned>(oc) + kTileN - 1) / kTileN;
  const unsigned band_tiles = kRasterTiles * column_tiles;
  const unsigned band = blockIdx.x / band_tiles;
  const unsigned in_band = blockIdx.x - band * band_tiles;
  const unsigned rows_left = row_tiles - band * kRasterTiles;
  const unsigned band_rows = rows_left < kRasterTiles ? rows_left : kRasterTiles;

  const int steps = ic / kStepK;
  const int splits = static_cast<int>(gridDim.z);
  const int split = static_cast<int>(blockIdx.z);
  const int even = steps / splits;
  const int longer = steps - even * splits;  // the first `longer` ranges have one step more
  const int first_step = split * even + (split < longer ? split : longer);

  SplitKRange range;
  range.first_row = static_cast<long long>(band * kRasterTiles + in_band % band_rows) * Tile::kTileM;
  range.first_column = static_cast<long long>(in_band / band_rows) * kTileN;
  range.k_begin = first_step * kStepK;
  range.k_end = range.k_begin + (even + (split < longer ? 1 : 0)) * kStepK;
  return range;
}

// A row of x in a stage holds its 16-byte chunks in an order that lets 8 rows of a chunk lie in distinct
// banks.
template <typename Tile>
__device__ __forceinline__ unsigned x_offset(int row, int chunk) {
  return static_cast<unsigned>(row * Tile::kTileK * 2 + (chunk ^ row % 8) * kChunkBytes);
}

// s_x: (kTileM, kTileK), chunks ordered as x_offset says.
template <typename Tile, typename Element>
__device__ __forceinline__ void copy_x(const AwqGemmOperands<Element>& operands, const SplitKRange& range,
                                       int k, unsigned s_x) {
  constexpr int kChunks = Tile::kTileK / kChunkElements;
  static_assert(Tile::kThreads % kChunks == 0, "a thread copies the same chunk of several rows");
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int k_chunk = k + chunk * kChunkElements;
  if (k_chunk >= range.k_end) return;
#pragma unroll
  for (int pass = 0; pass < Tile::kTileM * kChunks / Tile::kThreads; ++pass) {
    const int row = pass * (Tile::kThreads / kChunks) + static_cast<int>(threadIdx.x) / kChunks;
    const bool valid = range.first_row + row < operands.m;
    const Element* g_x = operands.x + (valid ? (range.first_row + row) * operands.ldx + k_chunk : 0);
    cp_async_16(s_x + x_offset<Tile>(row, chunk), g_x, valid);
  }
}

// s_weights: kOcMajor (kTileN, kTileK / 8) words; kHfGemm (kTileK, kTileN / 8) words, row pitch kHfPitchWords.
template <WeightLayout kLayout, typename Tile, typename Element>
__device__ __forceinline__ void copy_weights(const AwqGemmOperands<Element>& operands,
                                             const SplitKRange& range, int k, unsigned s_weights) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kLayout == WeightLayout::kOcMajor) {
#pragma unroll
    for (int pass = 0; pass < kTileN * Tile::kSteps / Tile::kThreads; ++pass) {
      const int piece = pass * Tile::kThreads + thread;
      const int column = piece / Tile::kSteps;
      const int k_piece = k + piece % Tile::kSteps * kStepK;
      const bool valid = range.first_column + column < operands.oc;
      const long long offset =
          (range.first_column + column) * (operands.ic / kNibblesPerWord) + k_piece / kNibblesPerWord;
      if (k_piece < range.k_end) {
        cp_async_16(s_weights + piece * kChunkBytes, operands.weights + (valid ? offset : 0), valid);
      }
    }
  } else {
    const long long pitch = operands.oc / kNibblesPerWord;
    const long long first_word = range.first_column / kNibblesPerWord;
    if (pitch % 4 == 0) {
      constexpr int kPieces = kWordsN / 4;
#pragma unroll
      for (int pass = 0; pass < Tile::kTileK * kPieces / Tile::kThreads; ++pass) {
        const int piece = pass * Tile::kThreads + thread;
        const int row = piece / kPieces;
        const int word = piece % kPieces * 4;
        const bool valid = first_word + word < pitch;
        const long long offset = (k + row) * pitch + first_word + word;
        if (k + row < range.k_end) {
          cp_async_16(s_weights + (row * Tile::kHfPitchWords + word) * 4,
                      operands.weights + (valid ? offset : 0), valid);
        }
      }
    } else {  // rows of weights do not start at multiples of 16 bytes
#pragma unroll 1
      for (int piece = thread; piece < Tile::kTileK * kWordsN; piece += Tile::kThreads) {
        const int row = piece / kWordsN;
        const int word = piece % kWordsN;
        const bool valid = first_word + word < pitch;
        const long long offset = (k + row) * pitch + first_word + word;
        if (k + row < range.k_end) {
          cp_async_4(s_weights + (row * Tile::kHfPitchWords + word) * 4,
                     operands.weights + (valid ? offset : 0), valid);
        }
      }
    }
  }
}

// Scales and zeros of those steps of the stage that start a group or the range; others keep the last ones.
template <typename Tile, typename Element>
__device__ __forceinline__ void copy_groups(const AwqGemmOperands<Element>& operands,
                                            const SplitKRange& range, int k, unsigned s_groups) {
  const int step = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int k_step = k + step * kStepK;
  if (step >= Tile::kSteps || k_step >= range.k_end) return;
  const int group_index = k_step / operands.group;
  if (k_step != range.k_begin && k_step != group_index * operands.group) return;

  const int word = lane % kWordsN;
  const bool valid = range.first_column + word * kNibblesPerWord < operands.oc;
  const long long g_word = valid ? static_cast<long long>(group_index) * (operands.oc / kNibblesPerWord) +
                                       range.first_column / kNibblesPerWord + word
                                 : 0;
  const unsigned s_step = s_groups + step * Tile::kGroupBytes;
  if (lane < kWordsN) {
    const char* g_scales = static_cast<const char*>(operands.scales) + g_word * kChunkBytes;
    cp_async_16(s_step + word * kChunkBytes, g_scales, valid);
  } else {
    cp_async_4(s_step + Tile::kScaleBytes + word * 4, operands.zeros + g_word, valid);
  }
}

}  // namespace baracuda
