// AWQ repacking to and from TILED (awq_tiles.cuh): a warp takes a block of 32 output by 128 input channels.
//
// Beside TILED there is a plain layout, whose weights, zero points and scales lie apart:
//   oc_major: row n, column k, natural order.      hf_gemm: row k, column n, AutoAWQ's interleave (int4.cuh).
// A block's nibbles go through shared memory, so that the warp reads and writes memory in rows of a block. From there a
// lane takes the words that hold what it makes: in oc_major 64 channels of two rows, in hf_gemm 16 rows of two words.
#include "baracuda/awq_tiles.cuh"
#include "baracuda/constant.cuh"
#include "baracuda/int4.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWarps, 8);  // of a thread block

constexpr unsigned kEven = 0x0f0f0f0fu;

constexpr int kBlockWords = kBlockWeightBytes / 4;
constexpr int kStagedWords = kBlockWords + kBlockWords / 16;  // the plain layouts' rows are padded

struct PlainWeights {
  unsigned* words;         // (oc, ic / 8) oc_major, (ic, oc / 8) hf_gemm
  unsigned* zeros;         // (groups, oc / 8), nibbles in the weights' order
  unsigned short* scales;  // (groups, oc), of any 16-bit type
  long long ic;            // multiple of 32
  long long oc;            // multiple of 8
  long long group;         // input channels that share a scale
  int groups;              // of a block
  long long words_stride;  // from row to row, here and below
  long long zeros_stride;
  long long scales_stride;
};

// One block: where it lies in the plain tensors.
struct Place {
  long long channel;  // first output channel
  long long depth;    // first input channel
};

// What a layout has to say: the place of an element in its word; the rows and words of a block, and where shared memory
// has them, so that lanes read distinct banks; and in which order the blocks are walked, so that the warps of a thread
// block read neighbouring memory.
struct OcMajor {
  static constexpr int kRowWords = kBlockDepth / kNibblesPerWord;
  static __device__ __forceinline__ constexpr int position(int element) { return element; }
  static __device__ __forceinline__ constexpr int staged(int row, int word) { return row * (kRowWords + 1) + word; }
  static __device__ __forceinline__ long long row(const Place& place) { return place.channel; }
  static __device__ __forceinline__ long long word(const Place& place) { return place.depth / kNibblesPerWord; }
  static __device__ __forceinline__ long long rows(const PlainWeights& plain) { return plain.oc; }
  static __device__ __forceinline__ long long words(const PlainWeights& plain) { return plain.ic / kNibblesPerWord; }
  static __device__ __forceinline__ Place place(long long block, long long tiles, long long columns) {
    return {block / columns * kBlockChannels, block % columns * kBlockDepth};
  }
};
struct HfGemm {
  static constexpr int kRowWords = kBlockChannels / kNibblesPerWord;
  static __device__ __forceinline__ constexpr int position(int element) { return hf_gemm_position(element); }
  static __device__ __forceinline__ constexpr int staged(int row, int word) {
    return row * kRowWords + row / 16 * kRowWords + word;
  }
  static __device__ __forceinline__ long long row(const Place& place) { return place.depth; }
  static __device__ __forceinline__ long long word(const Place& place) { return place.channel / kNibblesPerWord; }
  static __device__ __forceinline__ long long rows(const PlainWeights& plain) { return plain.ic; }
  static __device__ __forceinline__ long long words(const PlainWeights& plain) { return plain.oc / kNibblesPerWord; }
  static __device__ __forceinline__ Place place(long long block, long long tiles, long long columns) {
    const long long halves = tiles * kBlockHalves;
    return {block % halves * kBlockChannels, block / halves * kBlockDepth};
  }
};

// The zero point of an output channel, in all eight nibbles of a word; 0 for channels that are padding.
template <typename Layout>
__device__ __forceinline__ unsigned zero_point(const PlainWeights& plain, long long group, long long channel) {
  if (channel >= plain.oc) return 0;
  const unsigned word = plain.zeros[group * plain.zeros_stride + channel / kNibblesPerWord];
  return nibble(word, Layout::position(static_cast<int>(channel % kNibblesPerWord)));
}

// -- nibbles -----------------------------------------------------------------------------------------------------

// The words of a block that lie in the weight, one lane each: `each(staged, address)`.
template <typename Layout, typename Each>
__device__ __forceinline__ void for_plain_words(const PlainWeights& plain, const Place& place, int lane, Each each) {
#pragma unroll
  for (int index = lane; index < kBlockWords; index += 32) {
    const int row = index / Layout::kRowWords, word = index % Layout::kRowWords;
    const long long g_row = Layout::row(place) + row, g_word = Layout::word(place) + word;
    if (g_row < Layout::rows(plain) && g_word < Layout::words(plain)) {
      each(Layout::staged(row, word), plain.words + g_row * plain.words_stride + g_word);
    }
  }
}

// Where shared memory has the 16 bytes of TILED [m][c][4 r + t]: lanes of other r write to distinct banks.
__device__ __forceinline__ uint4* staged_fragment(unsigned* s_words, int index) {
  return reinterpret_cast<uint4*>(s_words) + (index ^ index / 8 % 8);
}
__device__ __forceinline__ int fragment_index(int m, int c, int r, int t) { return (m * 2 + c) * 32 + 4 * r + t; }

// A lane's place in a block: oc_major.
struct OcMajorLane {
  int m, c, r;
  __device__ __forceinline__ explicit OcMajorLane(int lane) : m(lane / 16), c(lane / 8 % 2), r(lane % 8) {}
};

__device__ __forceinline__ void make_nibbles(const PlainWeights& plain, const Place& place, unsigned* s_words,
                                             int lane_index, OcMajor) {
  const OcMajorLane lane(lane_index);
  unsigned row[2][8];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int channel = 16 * lane.m + 8 * h + lane.r;
    const bool present = place.channel + channel < plain.oc;
    const unsigned zero = zero_point<OcMajor>(plain, (plain.ic - 1) / plain.group, place.channel + channel);
    const unsigned pad = zero * 0x11111111u;
    const long long first = OcMajor::word(place) + 8 * lane.c;
#pragma unroll
    for (int word = 0; word < 8; ++word) {
      row[h][word] = present && first + word < OcMajor::words(plain)
                         ? s_words[OcMajor::staged(channel, 8 * lane.c + word)]
                         : pad;
    }
  }
  __syncwarp();  // the words are read, and may be overwritten
  unsigned low[4][2], high[4][2];  // [j][d]: bytes t, the nibbles of both h for e = 0 and for e = 1
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int d = 0; d < 2; ++d) {
      const unsigned first = row[0][2 * j + d], second = row[1][2 * j + d];
      low[j][d] = (first & kEven) | (second & kEven) << kNibbleBits;
      high[j][d] = (first >> kNibbleBits & kEven) | (second & ~kEven);
    }
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    unsigned words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned selector = t | (4 + t) << 4;
      words[j] = __byte_perm(__byte_perm(low[j][0], low[j][1], selector),
                             __byte_perm(high[j][0], high[j][1], selector), 0x5410);
    }
    *staged_fragment(s_words, fragment_index(lane.m, lane.c, lane.r, t)) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__device__ __forceinline__ void take_nibbles(unsigned* s_words, int lane_index, OcMajor) {
  const OcMajorLane lane(lane_index);
  unsigned words[4][4];  // [j][t]
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const uint4 fragment = *staged_fragment(s_words, fragment_index(lane.m, lane.c, lane.r, t));
    words[0][t] = fragment.x;
    words[1][t] = fragment.y;
    words[2][t] = fragment.z;
    words[3][t] = fragment.w;
  }
  __syncwarp();  // the fragments are read, and may be overwritten
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int d = 0; d < 2; ++d) {
      unsigned pairs[2];  // of e: bytes t
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const unsigned selector = (d + 2 * e) | (4 + d + 2 * e) << 4;
        pairs[e] = __byte_perm(__byte_perm(words[j][0], words[j][1], selector),
                               __byte_perm(words[j][2], words[j][3], selector), 0x5410);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s_words[OcMajor::staged(16 * lane.m + 8 * h + lane.r, 8 * lane.c + 2 * j + d)] =
            h == 0 ? (pairs[0] & kEven) | (pairs[1] & kEven) << kNibbleBits
                   : (pairs[0] >> kNibbleBits & kEven) | (pairs[1] & ~kEven);
      }
    }
  }
}

// A lane's place in a block: hf_gemm. `half` is a half of r, or d.
struct HfGemmLane {
  int half, m, c, j;
  __device__ __forceinline__ explicit HfGemmLane(int lane)
      : half(lane / 16), m(lane / 8 % 2), c(lane / 4 % 2), j(lane % 4) {}
};

__device__ __forceinline__ void make_nibbles(const PlainWeights& plain, const Place& place, unsigned* s_words,
                                             int lane_index, HfGemm) {
  const HfGemmLane lane(lane_index);
  const int depth = 64 * lane.c + 16 * lane.j;
  const bool deep = place.depth + depth < plain.ic;  // ic is a multiple of 32
  unsigned made[4][4] = {};                          // [r of the half][t]
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const long long channel = place.channel + 16 * lane.m + 8 * h;
    const bool present = channel < plain.oc;
    const unsigned pad = present ? plain.zeros[(plain.ic - 1) / plain.group * plain.zeros_stride +
                                               channel / kNibblesPerWord]
                                 : 0;
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const int d = k / 8, t = k / 2 % 4, e = k % 2;
      const unsigned word = present && deep ? s_words[HfGemm::staged(depth + k, 2 * lane.m + h)] : pad;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int position = lane.half == 0 ? HfGemm::position(r) : HfGemm::position(4 + r);
        made[r][t] |= nibble(word, position) << (kNibbleBits * (h + 2 * d + 4 * e));
      }
    }
  }
  __syncwarp();  // the words are read, and may be overwritten
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int index = fragment_index(lane.m, lane.c, 4 * lane.half + r, t);
      reinterpret_cast<unsigned*>(staged_fragment(s_words, index))[lane.j] = made[r][t];
    }
  }
}

__device__ __forceinline__ void take_nibbles(unsigned* s_words, int lane_index, HfGemm) {
  const HfGemmLane lane(lane_index);
  unsigned taken[2][8] = {};  // [h][2 t + e]
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const uint4* s_fragment = staged_fragment(s_words, fragment_index(lane.m, lane.c, r, t));
      const unsigned word = reinterpret_cast<const unsigned*>(s_fragment)[lane.j] >> (2 * kNibbleBits * lane.half);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          taken[h][2 * t + e] |= nibble(word, h + 4 * e) << (kNibbleBits * HfGemm::position(r));
        }
      }
    }
  }
  __syncwarp();  // the fragments are read, and may be overwritten
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      s_words[HfGemm::staged(64 * lane.c + 16 * lane.j + 8 * lane.half + k, 2 * lane.m + h)] = taken[h][k];
    }
  }
}

// -- scales and zero points --------------------------------------------------------------------------------------

// Lane 4 r + 2 m + h writes the scale of its output channel, and with h = 0 the zero points of both.
template <typename Layout>
__device__ __forceinline__ void make_groups(const PlainWeights& plain, const Place& place, unsigned char* g_block,
                                            int lane) {
  const int r = lane / 4, m = lane / 2 % 2, h = lane % 2;
  const int groups = plain.groups;
  const long long channel = place.channel + 16 * m + 8 * h + r;
  const long long last = plain.ic / plain.group - 1;
#pragma unroll 1
  for (int part = 0; part < groups; ++part) {
    const long long found = (place.depth + part * (kBlockDepth / groups)) / plain.group;
    const long long group = found < last ? found : last;
    reinterpret_cast<unsigned short*>(g_block + scale_offset(part))[lane] =
        channel < plain.oc ? plain.scales[group * plain.scales_stride + channel] : static_cast<unsigned short>(0);
    if (h == 0) {
      const unsigned pair = zero_point<Layout>(plain, group, channel) |
                            zero_point<Layout>(plain, group, channel + 8) << kNibbleBits;
      g_block[zero_offset(groups, part) + lane / 2] = static_cast<unsigned char>(pair);
    }
  }
}

// Of those of the block's groups that start one of the weight's. Lanes 0 to 3, 2 m + h, write the words of zero points.
template <typename Layout>
__device__ __forceinline__ void take_groups(const PlainWeights& plain, const Place& place,
                                            const unsigned char* g_block, int lane) {
  const int r = lane / 4, m = lane / 2 % 2, h = lane % 2;
  const int groups = plain.groups;
#pragma unroll 1
  for (int part = 0; part < groups; ++part) {
    const long long depth = place.depth + part * (kBlockDepth / groups);
    if (depth >= plain.ic || depth % plain.group != 0) continue;
    const long long group = depth / plain.group;
    const long long channel = place.channel + 16 * m + 8 * h + r;
    if (channel < plain.oc) {
      plain.scales[group * plain.scales_stride + channel] =
          reinterpret_cast<const unsigned short*>(g_block + scale_offset(part))[lane];
    }
    if (r == 0 && channel < plain.oc) {
      unsigned word = 0;
#pragma unroll
      for (int i = 0; i < kNibblesPerWord; ++i) {
        const unsigned pair = g_block[zero_offset(groups, part) + 2 * i + m];
        word |= nibble(pair, h) << (kNibbleBits * Layout::position(i));
      }
      plain.zeros[group * plain.zeros_stride + channel / kNibblesPerWord] = word;
    }
  }
}

// A group longer than a block is stored as groups of a block.
template <typename Layout, bool kMake>
__device__ __forceinline__ void repack_block(const PlainWeights& plain, unsigned char* g_tiles,
                                             long long tile_bytes) {
  const long long tiles = (plain.oc + kTileChannels - 1) / kTileChannels;
  const long long columns = (plain.ic + kBlockDepth - 1) / kBlockDepth;
  __shared__ uint4 s_blocks[kWarps][kStagedWords / 4];
  unsigned* s_words = reinterpret_cast<unsigned*>(s_blocks[threadIdx.x / 32]);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const long long block = static_cast<long long>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (block >= tiles * kBlockHalves * columns) return;
  const Place place = Layout::place(block, tiles, columns);
  const long long column = place.depth / kBlockDepth;
  const long long half = place.channel % kTileChannels / kBlockChannels;
  unsigned char* g_block = g_tiles + place.channel / kTileChannels * tile_bytes +
                           (column * kBlockHalves + half) * block_bytes(plain.groups);
  if constexpr (kMake) {
    for_plain_words<Layout>(plain, place, lane, [&](int staged, const unsigned* g_word) { s_words[staged] = *g_word; });
    __syncwarp();
    make_nibbles(plain, place, s_words, lane, Layout{});
    __syncwarp();
#pragma unroll
    for (int index = lane; index < kBlockWeightBytes / 16; index += 32) {
      reinterpret_cast<uint4*>(g_block)[index] = *staged_fragment(s_words, index);
    }
    make_groups<Layout>(plain, place, g_block, lane);
  } else {
#pragma unroll
    for (int index = lane; index < kBlockWeightBytes / 16; index += 32) {
      *staged_fragment(s_words, index) = reinterpret_cast<const uint4*>(g_block)[index];
    }
    __syncwarp();
    take_nibbles(s_words, lane, Layout{});
    __syncwarp();
    for_plain_words<Layout>(plain, place, lane, [&](int staged, unsigned* g_word) { *g_word = s_words[staged]; });
    take_groups<Layout>(plain, place, g_block, lane);
  }
}

}  // namespace baracuda

// grid: a warp a block of the weight; 32 * kWarps threads. Strides are words, words, scales and words.
#define BARACUDA_REPACK_TILED(symbol, Layout, kMake)                                                          \
  extern "C" __global__ void __launch_bounds__(baracuda::kWarps * 32)                                         \
      symbol(unsigned* g_words, unsigned* g_zeros, unsigned short* g_scales, unsigned* g_tiles, long long ic, \
             long long oc, long long group, long long groups, long long words_stride, long long zeros_stride, \
             long long scales_stride, long long tile_stride) {                                                \
    baracuda::repack_block<baracuda::Layout, kMake>(                                                          \
        {g_words, g_zeros, g_scales, ic, oc, group, static_cast<int>(groups), words_stride, zeros_stride,     \
         scales_stride},                                                                                      \
        reinterpret_cast<unsigned char*>(g_tiles), tile_stride * 4);                                          \
  }

BARACUDA_REPACK_TILED(awq_repack_sm80_u4_oc_major_to_tiled, OcMajor, true)
BARACUDA_REPACK_TILED(awq_repack_sm80_u4_hf_gemm_to_tiled, HfGemm, true)
BARACUDA_REPACK_TILED(awq_repack_sm80_u4_tiled_to_oc_major, OcMajor, false)
BARACUDA_REPACK_TILED(awq_repack_sm80_u4_tiled_to_hf_gemm, HfGemm, false)
