// AWQ repacking: weights and zero points of one layout in the order of another, bit for bit, in one launch.
//
// Seen by its storage, a packed weight is a matrix of nibbles, eight columns to a word:
//   oc_major: row n, column k, natural order.      hf_gemm: row k, column n, AutoAWQ's interleave (int4.cuh).
// So one is the transpose of the other. A block takes kTile rows of kTile columns. A thread transposes blocks
// of 8 x 8 nibbles, eight words, in registers; shared memory then turns the matrix of words, so that what is
// read and what is written are pieces of rows, kTileWords words long. An order of nibbles is a numbering of
// registers and costs no instruction.
//
// Source of the idea of the transposition: H. S. Warren, Hacker's Delight, section 7-3, for bits.
#include "baracuda/constant.cuh"
#include "baracuda/global_memory.cuh"
#include "baracuda/int4.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kThreads, 256);
// Rows and columns of a tile. A block of zero points takes kThreads words of one group.
BARACUDA_CONSTANT(kTile, 256);

constexpr int kOctet = kNibblesPerWord;
constexpr int kTileWords = kTile / kNibblesPerWord;
constexpr int kQuad = 4;                    // words of a 16-byte access
constexpr int kLanes = kTileWords / kQuad;  // threads that share a row
constexpr int kLines = kThreads / kLanes;   // rows, or octets of rows, that the block takes at a time
constexpr unsigned kQuadMask = kQuad * sizeof(unsigned) - 1;
static_assert(kLines * kOctet == kTile, "a thread takes an octet of rows when it reads and when it writes");
static_assert(kLanes == 8 && kTileWords == 32, "slot_of spreads 8 lanes and 4 lines over 32 banks");

// A layout: where in its word it puts one of the word's eight elements.
struct OcMajor {
  static __device__ __forceinline__ constexpr int position(int element) { return element; }
};
struct HfGemm {
  static __device__ __forceinline__ constexpr int position(int element) { return hf_gemm_position(element); }
};

// Nibble j of r_word[i] becomes nibble i of r_word[j].
__device__ __forceinline__ void transpose_octet(unsigned (&r_word)[kOctet]) {
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    if (i & 4) continue;
    const unsigned first = r_word[i], second = r_word[i + 4];
    r_word[i] = __byte_perm(first, second, 0x5410);
    r_word[i + 4] = __byte_perm(first, second, 0x7632);
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    if (i & 2) continue;
    const unsigned first = r_word[i], second = r_word[i + 2];
    r_word[i] = __byte_perm(first, second, 0x6240);
    r_word[i + 2] = __byte_perm(first, second, 0x7351);
  }
  constexpr unsigned kLow = 0x0f0f0f0fu;
#pragma unroll
  for (int i = 0; i < kOctet; i += 2) {
    const unsigned first = r_word[i], second = r_word[i + 1];
    r_word[i] = (first & kLow) | (second & kLow) << kNibbleBits;
    r_word[i + 1] = (first >> kNibbleBits & kLow) | (second & ~kLow);
  }
}

// Whether rows of `words` words are whole 16-byte pieces that lie at multiples of 16 bytes.
__device__ __forceinline__ bool in_quads(const unsigned* g_rows, long long stride, long long words) {
  return ((reinterpret_cast<unsigned long long>(g_rows) & kQuadMask) | ((stride | words) & (kQuad - 1))) == 0;
}

// Four words of a row of a tile: neighbours where they make one access, else kLanes apart, so that the lanes
// of a row touch neighbouring words at each of four.
struct Share {
  int first;
  int step;
  __device__ __forceinline__ Share(int lane, bool quads)
      : first(quads ? kQuad * lane : lane), step(quads ? 1 : kLanes) {}
  __device__ __forceinline__ int operator[](int i) const { return first + i * step; }
};

// Where the turned tile keeps word `word` of row `row` of an octet of rows. Quads stay together; they are
// exchanged so that the lanes of a warp meet different banks, whichever way a row is shared: they write words
// of one row of their octets, and read whole quads or, of four rows at a time, words that are neighbours.
__device__ __forceinline__ int slot_of(int octet, int row, int word) {
  return (octet * kOctet + row) * kTileWords + (word ^ (((octet ^ octet / kQuad) % kLanes) * kQuad));
}

template <typename Source, typename Target>
__device__ __forceinline__ void repack_tile(const unsigned* __restrict__ g_source,  // (rows, columns / 8)
                                            long long source_stride,
                                            unsigned* __restrict__ g_target,  // (columns, rows / 8)
                                            long long target_stride,
                                            long long rows,
                                            long long columns,
                                            unsigned tile) {
  alignas(16) __shared__ unsigned s_word[kTile * kTileWords];

  const unsigned across = static_cast<unsigned>((columns + kTile - 1) / kTile);
  const long long row_begin = static_cast<long long>(tile / across) * kTile;
  const long long column_begin = static_cast<long long>(tile % across) * kTile;
  const int lane = threadIdx.x % kLanes, line = threadIdx.x / kLanes;

  {  // Four words of each of eight rows.
    const long long words = columns / kNibblesPerWord;
    const long long word_begin = column_begin / kNibblesPerWord;
    const bool quads = in_quads(g_source, source_stride, words);
    const Share share(lane, quads);
    const long long row_first = row_begin + line * kOctet;
    const bool present = row_first < rows;  // rows are a multiple of eight
    const unsigned* g_row = g_source + row_first * source_stride + word_begin;
    unsigned r_word[kQuad][kOctet] = {};
    if (quads) {
#pragma unroll
      for (int row = 0; row < kOctet; ++row) {
        unsigned r_quad[kQuad] = {};
        load_streaming_16(r_quad, g_row + row * source_stride + share[0],
                          present && word_begin + share[0] < words);
#pragma unroll
        for (int w = 0; w < kQuad; ++w) r_word[w][Target::position(row)] = r_quad[w];
      }
    } else {
#pragma unroll
      for (int row = 0; row < kOctet; ++row) {
#pragma unroll
        for (int w = 0; w < kQuad; ++w) {
          load_streaming_4(r_word[w][Target::position(row)], g_row + row * source_stride + share[w],
                           present && word_begin + share[w] < words);
        }
      }
    }
#pragma unroll
    for (int w = 0; w < kQuad; ++w) {
      transpose_octet(r_word[w]);
#pragma unroll
      for (int column = 0; column < kOctet; ++column) {
        s_word[slot_of(share[w], column, line)] = r_word[w][Source::position(column)];
      }
    }
  }
  __syncthreads();

  {  // Four words of each of eight rows of the result. A warp's four lines are octets 2 apart: see slot_of.
    const long long words = rows / kNibblesPerWord;
    const long long word_begin = row_begin / kNibblesPerWord;
    const bool quads = in_quads(g_target, target_stride, words);
    const Share share(lane, quads);
    const int octet = line / 8 * 8 + line % 4 * 2 + line / 4 % 2;
    const long long row_first = column_begin + octet * kOctet;
    if (row_first >= columns) return;  // columns are a multiple of eight
    unsigned* g_row = g_target + row_first * target_stride + word_begin;
#pragma unroll
    for (int row = 0; row < kOctet; ++row, g_row += target_stride) {
      if (quads) {
        if (word_begin + share[0] >= words) break;
        *reinterpret_cast<uint4*>(g_row + share[0]) =
            *reinterpret_cast<const uint4*>(s_word + slot_of(octet, row, share[0]));
      } else {
#pragma unroll
        for (int w = 0; w < kQuad; ++w) {
          if (word_begin + share[w] < words) g_row[share[w]] = s_word[slot_of(octet, row, share[w])];
        }
      }
    }
  }
}

// kThreads words of zero points, of one group: the nibbles of a word change places.
template <typename Source, typename Target>
__device__ __forceinline__ void repack_zeros(const unsigned* __restrict__ g_source,  // (groups, words)
                                             long long source_stride,
                                             unsigned* __restrict__ g_target,  // (groups, words)
                                             long long target_stride,
                                             long long words,
                                             unsigned piece) {
  const unsigned across = static_cast<unsigned>((words + kThreads - 1) / kThreads);
  const long long group = piece / across;
  const long long word = static_cast<long long>(piece % across) * kThreads + threadIdx.x;
  if (word >= words) return;
  const unsigned given = g_source[group * source_stride + word];
  unsigned result = 0;
#pragma unroll
  for (int i = 0; i < kNibblesPerWord; ++i) {
    result |= nibble(given, Source::position(i)) << (kNibbleBits * Target::position(i));
  }
  g_target[group * target_stride + word] = result;
}

// Blocks 0 .. tiles - 1 take the weight, the others the zero points.
template <typename Source, typename Target>
__device__ __forceinline__ void repack(const unsigned* g_weight,
                                       const unsigned* g_zeros,
                                       unsigned* g_weight_repacked,
                                       unsigned* g_zeros_repacked,
                                       long long rows,
                                       long long columns,
                                       long long oc,
                                       long long weight_stride,
                                       long long zeros_stride,
                                       long long weight_repacked_stride,
                                       long long zeros_repacked_stride) {
  const unsigned tiles = static_cast<unsigned>((rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile));
  if (blockIdx.x < tiles) {
    repack_tile<Source, Target>(g_weight, weight_stride, g_weight_repacked, weight_repacked_stride, rows,
                                columns, blockIdx.x);
  } else {
    repack_zeros<Source, Target>(g_zeros, zeros_stride, g_zeros_repacked, zeros_repacked_stride,
                                 oc / kNibblesPerWord, blockIdx.x - tiles);
  }
}

}  // namespace baracuda

// rows, columns: of the source's matrix of nibbles, in terms of ic and oc.
#define BARACUDA_REPACK(symbol, Source, Target, rows, columns)                                              \
  extern "C" __global__ void __launch_bounds__(baracuda::kThreads) symbol(                                  \
      const unsigned* __restrict__ g_weight,    /* (oc, ic / 8) oc_major, (ic, oc / 8) hf_gemm */           \
      const unsigned* __restrict__ g_zeros,     /* (groups, oc / 8), nibbles in the weight's order */       \
      unsigned* __restrict__ g_weight_repacked, /* as the target has it */                                  \
      unsigned* __restrict__ g_zeros_repacked,  /* (groups, oc / 8), as the target has it */                \
      long long ic,                             /* multiple of 32 */                                        \
      long long oc,                             /* multiple of 8 */                                         \
      long long weight_stride,                  /* words from row to row, here and below */                 \
      long long zeros_stride,                                                                               \
      long long weight_repacked_stride,                                                                     \
      long long zeros_repacked_stride) {                                                                    \
    baracuda::repack<baracuda::Source, baracuda::Target>(g_weight, g_zeros, g_weight_repacked,              \
                                                         g_zeros_repacked, rows, columns, oc, weight_stride, \
                                                         zeros_stride, weight_repacked_stride,              \
                                                         zeros_repacked_stride);                            \
  }

BARACUDA_REPACK(awq_repack_sm80_u4_hf_gemm_to_oc_major, HfGemm, OcMajor, ic, oc)
BARACUDA_REPACK(awq_repack_sm80_u4_oc_major_to_hf_gemm, OcMajor, HfGemm, oc, ic)
