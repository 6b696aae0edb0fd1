// AWQ dequantisation: w[k, n] = (q[k, n] - z[k / group, n]) * s[k / group, n], computed in f32, rounded once.
//
// Seen by its storage, a packed weight is a matrix of `rows` x `columns` nibbles, eight columns to a word:
//   oc_major: row n, column k, natural order.      hf_gemm: row k, column n, AutoAWQ's interleave (int4.cuh).
// The output has either the same orientation (one word becomes consecutive elements) or the other (a tile of
// words goes through shared memory). Groups are multiples of 32, so a tile's 32 rows lie in one, and so do a
// word's 8 columns.
#include "baracuda/constant.cuh"
#include "baracuda/element.cuh"
#include "baracuda/int4.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kThreads, 256);
// Same orientation: a block takes kDirectRows rows and kDirectLanes 16-byte pieces of output a row.
BARACUDA_CONSTANT(kDirectLanes, 32);
BARACUDA_CONSTANT(kDirectRows, 32);
// Other orientation: a block takes kTransposeWords words of 32 rows for each element of a 16-byte piece.
BARACUDA_CONSTANT(kTransposeWords, 16);

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPieceBytes = 16;
constexpr int kDirectStep = kThreads / kDirectLanes;
constexpr int kDirectRowsAThread = kDirectRows / kDirectStep;
static_assert(kDirectRows == 32, "an hf_gemm tile loads its scales once: its rows must lie in one group");
static_assert(kTransposeWords % kWarps == 0, "every warp expands the same number of words");

// How many output elements fill one 16-byte store.
template <typename Output>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Output));

enum class Layout { kOcMajor, kHfGemm };

// Where in its word the layout puts one of the word's eight elements.
template <Layout layout>
__device__ __forceinline__ constexpr int position_of(int element) {
  return layout == Layout::kOcMajor ? element : hf_gemm_position(element);
}

// 2^23 + q as a float: the low mantissa bits of 2^23 count units, so no conversion instruction is needed.
constexpr unsigned kMagicBits = 0x4b000000u;
__device__ __forceinline__ float magic(unsigned small) { return __uint_as_float(kMagicBits | small); }

struct Quantization {
  const unsigned short* __restrict__ g_scales;  // (ic / group, oc), f16 or bf16
  const unsigned* __restrict__ g_zeros;         // (ic / group, oc / 8)
  long long scales_stride;
  long long zeros_stride;
  int group;
  bool scales_bf16;

  // Scale of column n of group index g.
  __device__ __forceinline__ float scale(int g, int n) const {
    return scale_pair_to_f32(g_scales[g * scales_stride + n], scales_bf16).x;
  }
  // Scales of kCount columns from n, a multiple of kCount.
  template <int kCount>
  __device__ __forceinline__ void scales(int g, int n, float (&r_scale)[kCount]) const {
    static_assert(kCount % 4 == 0, "scales are read 8 bytes at a time");
    const unsigned short* g_row = g_scales + g * scales_stride + n;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint2 pairs = *reinterpret_cast<const uint2*>(g_row + i);
      const float2 low = scale_pair_to_f32(pairs.x, scales_bf16);
      const float2 high = scale_pair_to_f32(pairs.y, scales_bf16);
      r_scale[i] = low.x, r_scale[i + 1] = low.y, r_scale[i + 2] = high.x, r_scale[i + 3] = high.y;
    }
  }
  // The word with the zero points of columns n / 8 * 8 up to 7 more.
  __device__ __forceinline__ unsigned zero_word(int g, int n) const {
    return g_zeros[g * zeros_stride + n / kNibblesPerWord];
  }
};

template <typename Output>
struct alignas(kPieceBytes) Piece {
  Output element[kPiece<Output>];
};

template <typename Output>
__device__ __forceinline__ void store_piece(Output* g_out, const float (&r_value)[kPiece<Output>],
                                            bool whole) {
  Piece<Output> piece;
#pragma unroll
  for (int i = 0; i < kPiece<Output>; ++i) piece.element[i] = from_f32<Output>(r_value[i]);
  if (whole) {
    *reinterpret_cast<Piece<Output>*>(g_out) = piece;
  } else {
#pragma unroll
    for (int i = 0; i < kPiece<Output>; ++i) g_out[i] = piece.element[i];
  }
}

// Whether 16-byte stores are aligned in every row.
template <typename Output>
__device__ __forceinline__ bool aligned_rows(const Output* g_out, long long stride) {
  const unsigned long long row = static_cast<unsigned long long>(stride) * sizeof(Output);
  return ((reinterpret_cast<unsigned long long>(g_out) | row) & (kPieceBytes - 1)) == 0;
}

// Output in the weight's own orientation: (rows, columns).
template <Layout layout, typename Output>
__device__ __forceinline__ void dequantize_direct(
    const unsigned* __restrict__ g_weight,  // (rows, columns / 8)
    long long weight_stride,
    Quantization quantization,
    Output* __restrict__ g_out,  // (rows, columns)
    long long out_stride,
    int rows,
    int columns) {
  constexpr int kCount = kPiece<Output>;
  const int tiles = (columns + kDirectLanes * kCount - 1) / (kDirectLanes * kCount);
  const int row_begin = static_cast<int>(blockIdx.x / tiles) * kDirectRows;
  const int piece_begin = static_cast<int>(blockIdx.x % tiles) * kDirectLanes;
  const int column = (piece_begin + threadIdx.x % kDirectLanes) * kCount;
  if (column >= columns) return;
  const int row_first = row_begin + threadIdx.x / kDirectLanes;
  const int lowest = column % kNibblesPerWord;  // half a word makes a piece when the output is f32
  const bool whole = aligned_rows(g_out, out_stride);

  unsigned r_word[kDirectRowsAThread];
#pragma unroll
  for (int i = 0; i < kDirectRowsAThread; ++i) {
    const int row = row_first + i * kDirectStep;
    r_word[i] = row < rows ? g_weight[row * weight_stride + column / kNibblesPerWord] : 0;
  }

  float r_scale[kCount], r_zero[kCount];
  if constexpr (layout == Layout::kHfGemm) {
    const int g = row_begin / quantization.group;
    const unsigned zeros = quantization.zero_word(g, column);
    quantization.scales(g, column, r_scale);
#pragma unroll
    for (int i = 0; i < kCount; ++i) r_zero[i] = magic(nibble(zeros, position_of<layout>(lowest + i)));
  }
#pragma unroll
  for (int i = 0; i < kDirectRowsAThread; ++i) {
    const int row = row_first + i * kDirectStep;
    if (row >= rows) break;
    if constexpr (layout == Layout::kOcMajor) {
      const int g = column / quantization.group;
      const float scale = quantization.scale(g, row);
      const float zero = magic(nibble(quantization.zero_word(g, row), row % kNibblesPerWord));
#pragma unroll
      for (int c = 0; c < kCount; ++c) r_scale[c] = scale, r_zero[c] = zero;
    }
    float r_value[kCount];
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      r_value[c] = (magic(nibble(r_word[i], position_of<layout>(lowest + c))) - r_zero[c]) * r_scale[c];
    }
    store_piece(g_out + row * out_stride + column, r_value, whole);
  }
}

// Output in the other orientation: (columns, rows). A lane owns a piece of rows, a word's columns at a time.
template <Layout layout, typename Output>
__device__ __forceinline__ void dequantize_transposed(
    const unsigned* __restrict__ g_weight,  // (rows, columns / 8)
    long long weight_stride,
    Quantization quantization,
    Output* __restrict__ g_out,  // (columns, rows)
    long long out_stride,
    int rows,
    int columns) {
  constexpr int kCount = kPiece<Output>;
  constexpr int kTileRows = kWarp * kCount;
  constexpr int kWordsAThread = kTileRows * kTransposeWords / kThreads;
  // Row r of the tile lies in slab r % kCount at r / kCount: a warp then reads words kPitch apart,
  // and an odd pitch meets 32 different banks. The extra word a slab spreads the writes.
  constexpr int kPitch = kTransposeWords + 1;
  constexpr int kSlab = kWarp * kPitch + 1;
  __shared__ unsigned s_word[kCount * kSlab];

  const int tile_columns = kTransposeWords * kNibblesPerWord;
  const int tiles = (columns + tile_columns - 1) / tile_columns;
  const int row_begin = static_cast<int>(blockIdx.x / tiles) * kTileRows;
  const int word_begin = static_cast<int>(blockIdx.x % tiles) * kTransposeWords;
  const int words = columns / kNibblesPerWord;

  unsigned r_load[kWordsAThread];
#pragma unroll
  for (int i = 0; i < kWordsAThread; ++i) {
    const int index = i * kThreads + threadIdx.x;
    const int row = row_begin + index / kTransposeWords, word = word_begin + index % kTransposeWords;
    r_load[i] = row < rows && word < words ? g_weight[row * weight_stride + word] : 0;
  }
#pragma unroll
  for (int i = 0; i < kWordsAThread; ++i) {
    const int index = i * kThreads + threadIdx.x;
    const int row = index / kTransposeWords;
    s_word[row % kCount * kSlab + row / kCount * kPitch + index % kTransposeWords] = r_load[i];
  }
  __syncthreads();

  const int lane = threadIdx.x % kWarp;
  const int row = row_begin + lane * kCount;
  const bool whole = aligned_rows(g_out, out_stride);
#pragma unroll 1
  for (int w = threadIdx.x / kWarp; w < kTransposeWords; w += kWarps) {
    const int column = (word_begin + w) * kNibblesPerWord;
    if (row >= rows || column >= columns) continue;
    unsigned r_word[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) r_word[i] = s_word[i * kSlab + lane * kPitch + w];

    // oc_major: one scale and zero point for each row; hf_gemm: for each column.
    constexpr int kScales = layout == Layout::kOcMajor ? kCount : kNibblesPerWord;
    const int g = (layout == Layout::kOcMajor ? column : row) / quantization.group;
    const int n = layout == Layout::kOcMajor ? row : column;
    float r_scale[kScales], r_zero[kScales];
    quantization.scales(g, n, r_scale);
    const unsigned zeros = quantization.zero_word(g, n);
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      r_zero[i] = magic(nibble(zeros, position_of<layout>(n % kNibblesPerWord + i)));
    }

#pragma unroll
    for (int c = 0; c < kNibblesPerWord; ++c) {
      float r_value[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int s = layout == Layout::kOcMajor ? i : c;
        r_value[i] = (magic(nibble(r_word[i], position_of<layout>(c))) - r_zero[s]) * r_scale[s];
      }
      store_piece(g_out + (column + c) * out_stride + row, r_value, whole);
    }
  }
}

}  // namespace baracuda

#define BARACUDA_DEQUANTIZE(symbol, order, body, Output)                                                     \
  extern "C" __global__ void __launch_bounds__(baracuda::kThreads) symbol(                                   \
      const unsigned* __restrict__ g_weight,       /* (oc, ic / 8) oc_major, (ic, oc / 8) hf_gemm */         \
      const unsigned short* __restrict__ g_scales, /* (ic / group, oc), f16 or bf16 */                       \
      const unsigned* __restrict__ g_zeros,        /* (ic / group, oc / 8), nibbles in the weight's order */ \
      Output* __restrict__ g_out,                  /* (ic, oc) or (oc, ic), as the symbol ends */            \
      int ic,                                      /* multiple of 32 and of group */                         \
      int oc,                                      /* multiple of 8 */                                       \
      int group,                                   /* multiple of 32; ic when a column is one group */       \
      int scales_bf16,                             /* 0: scales are f16 */                                   \
      long long weight_stride,                     /* words from row to row */                               \
      long long scales_stride,                     /* elements from group to group, multiple of 4 */         \
      long long zeros_stride,                      /* words from group to group */                           \
      long long out_stride) {                      /* elements from row to row */                            \
    constexpr baracuda::Layout kLayout = baracuda::Layout::order;                                            \
    constexpr bool kOcMajor = kLayout == baracuda::Layout::kOcMajor;                                         \
    const baracuda::Quantization quantization{                                                               \
        g_scales, g_zeros, scales_stride, zeros_stride, group, scales_bf16 != 0};                            \
    baracuda::body<kLayout>(g_weight, weight_stride, quantization, g_out, out_stride,                        \
                            kOcMajor ? oc : ic, kOcMajor ? ic : oc);                                         \
  }

#define BARACUDA_DEQUANTIZE_ALL(dtype, Output)                                                               \
  BARACUDA_DEQUANTIZE(awq_dequantize_sm80_##dtype##_oc_major_oc_ic, kOcMajor, dequantize_direct, Output)     \
  BARACUDA_DEQUANTIZE(awq_dequantize_sm80_##dtype##_oc_major_ic_oc, kOcMajor, dequantize_transposed, Output) \
  BARACUDA_DEQUANTIZE(awq_dequantize_sm80_##dtype##_hf_gemm_ic_oc, kHfGemm, dequantize_direct, Output)       \
  BARACUDA_DEQUANTIZE(awq_dequantize_sm80_##dtype##_hf_gemm_oc_ic, kHfGemm, dequantize_transposed, Output)

BARACUDA_DEQUANTIZE_ALL(f16, __half)
BARACUDA_DEQUANTIZE_ALL(bf16, __nv_bfloat16)
BARACUDA_DEQUANTIZE_ALL(f32, float)
