// AWQ repacking to and from TILED (awq_tiles.cuh): a warp takes a block of 32 output by 128 input channels.
//
// Beside TILED there is a plain layout, whose weights, zero points and scales lie apart:
//   oc_major: row n, column k, natural order.      hf_gemm: row k, column n, AutoAWQ's interleave (int4.cuh).
// Nothing passes through shared memory: a lane reads the words that hold what it writes. In oc_major it takes 64
// channels of two rows, in hf_gemm 16 rows of two words.
//
#include "baracuda/awq_tiles.cuh"
#include "baracuda/constant.cuh"
#include "baracuda/global_memory.cuh"
#include "baracuda/int4.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWarps, 8);  // of a thread block

constexpr unsigned kEven = 0x0f0f0f0fu;

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

// What a layout has to say: the place of an element in its word, and in which order the blocks are walked, so that the
// warps of a thread block read neighbouring memory.
struct OcMajor {
  static __device__ __forceinline__ constexpr int position(int element) { return element; }
  static __device__ __forceinline__ Place place(long long block, long long tiles, long long columns) {
    return {block / columns * kBlockChannels, block % columns * kBlockDepth};
  }
};
struct HfGemm {
  static __device__ __forceinline__ constexpr int position(int element) { return hf_gemm_position(element); }
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

// A lane's place in a block: oc_major.
struct OcMajorLane {
  int m, c, r;
  __device__ __forceinline__ explicit OcMajorLane(int lane) : m(lane / 16), c(lane / 8 % 2), r(lane % 8) {}
};

__device__ __forceinline__ uint4* fragments_of(unsigned char* g_block, int m, int c, int r) {
  return reinterpret_cast<uint4*>(g_block + ((m * 2 + c) * 32 + 4 * r) * 16);
}

__device__ __forceinline__ void make_nibbles(const PlainWeights& plain, const Place& place, unsigned char* g_block,
                                             int lane_index, OcMajor) {
  const OcMajorLane lane(lane_index);
  unsigned low[4][2], high[4][2];  // [j][d]: bytes t, the nibbles of both h for e = 0 and for e = 1
  unsigned row[2][8];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const long long channel = place.channel + 16 * lane.m + 8 * h + lane.r;
    const unsigned pad = zero_point<OcMajor>(plain, (plain.ic - 1) / plain.group, channel) * 0x11111111u;
    const long long first = (place.depth + 64 * lane.c) / kNibblesPerWord;
    const unsigned* g_row = plain.words + channel * plain.words_stride + first;
#pragma unroll
    for (int word = 0; word < 8; ++word) {
      row[h][word] = pad;
      load_streaming_4(row[h][word], g_row + word,
                       channel < plain.oc && first + word < plain.ic / kNibblesPerWord);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int d = 0; d < 2; ++d) {
      const unsigned first = row[0][2 * j + d], second = row[1][2 * j + d];
      low[j][d] = (first & kEven) | (second & kEven) << kNibbleBits;
      high[j][d] = (first >> kNibbleBits & kEven) | (second & ~kEven);
    }
  }
  uint4* g_fragments = fragments_of(g_block, lane.m, lane.c, lane.r);
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    unsigned words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned selector = t | (4 + t) << 4;
      words[j] = __byte_perm(__byte_perm(low[j][0], low[j][1], selector),
                             __byte_perm(high[j][0], high[j][1], selector), 0x5410);
    }
    g_fragments[t] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__device__ __forceinline__ void take_nibbles(const PlainWeights& plain, const Place& place,
                                             const unsigned char* g_block, int lane_index, OcMajor) {
  const OcMajorLane lane(lane_index);
  const uint4* g_fragments = fragments_of(const_cast<unsigned char*>(g_block), lane.m, lane.c, lane.r);
  unsigned words[4][4];  // [j][t]
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const uint4 fragment = g_fragments[t];
    words[0][t] = fragment.x;
    words[1][t] = fragment.y;
    words[2][t] = fragment.z;
    words[3][t] = fragment.w;
  }
  const long long first = (place.depth + 64 * lane.c) / kNibblesPerWord;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (first + 2 * j >= plain.ic / kNibblesPerWord) break;
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
        const long long channel = place.channel + 16 * lane.m + 8 * h + lane.r;
        const unsigned word = h == 0 ? (pairs[0] & kEven) | (pairs[1] & kEven) << kNibbleBits
                                     : (pairs[0] >> kNibbleBits & kEven) | (pairs[1] & ~kEven);
        if (channel < plain.oc) plain.words[channel * plain.words_stride + first + 2 * j + d] = word;
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

__device__ __forceinline__ void make_nibbles(const PlainWeights& plain, const Place& place, unsigned char* g_block,
                                             int lane_index, HfGemm) {
  const HfGemmLane lane(lane_index);
  const long long depth = place.depth + 64 * lane.c + 16 * lane.j;
  const bool deep = depth < plain.ic;  // ic is a multiple of 32
  unsigned made[4][4] = {};            // [r of the half][t]
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const long long channel = place.channel + 16 * lane.m + 8 * h;
    const bool present = channel < plain.oc;
    const unsigned pad = present ? plain.zeros[(plain.ic - 1) / plain.group * plain.zeros_stride +
                                               channel / kNibblesPerWord]
                                 : 0;
    const unsigned* g_column = plain.words + depth * plain.words_stride + channel / kNibblesPerWord;
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const int d = k / 8, t = k / 2 % 4, e = k % 2;
      unsigned word = pad;
      load_streaming_4(word, g_column + k * plain.words_stride, present && deep);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int position = lane.half == 0 ? HfGemm::position(r) : HfGemm::position(4 + r);
        made[r][t] |= nibble(word, position) << (kNibbleBits * (h + 2 * d + 4 * e));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    unsigned* g_word =
        reinterpret_cast<unsigned*>(fragments_of(g_block, lane.m, lane.c, 4 * lane.half + r)) + lane.j;
#pragma unroll
    for (int t = 0; t < 4; ++t) g_word[4 * t] = made[r][t];
  }
}

__device__ __forceinline__ void take_nibbles(const PlainWeights& plain, const Place& place,
                                             const unsigned char* g_block, int lane_index, HfGemm) {
  const HfGemmLane lane(lane_index);
  const long long depth = place.depth + 64 * lane.c + 16 * lane.j + 8 * lane.half;
  if (depth >= plain.ic) return;
  unsigned taken[2][8] = {};  // [h][2 t + e]
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const unsigned* g_word = reinterpret_cast<const unsigned*>(
                                 fragments_of(const_cast<unsigned char*>(g_block), lane.m, lane.c, r)) +
                             lane.j;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const unsigned word = g_word[4 * t] >> (2 * kNibbleBits * lane.half);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          taken[h][2 * t + e] |= nibble(word, h + 4 * e) << (kNibbleBits * HfGemm::position(r));
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const long long channel = place.channel + 16 * lane.m + 8 * h;
    if (channel >= plain.oc) continue;
    unsigned* g_column = plain.words + depth * plain.words_stride + channel / kNibblesPerWord;
#pragma unroll
    for (int k = 0; k < 8; ++k) g_column[k * plain.words_stride] = taken[h][k];
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
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const long long block = static_cast<long long>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (block >= tiles * kBlockHalves * columns) return;
  const Place place = Layout::place(block, tiles, columns);
  const long long column = place.depth / kBlockDepth;
  const long long half = place.channel % kTileChannels / kBlockChannels;
  unsigned char* g_block = g_tiles + place.channel / kTileChannels * tile_bytes +
                           (column * kBlockHalves + half) * block_bytes(plain.groups);
  if constexpr (kMake) {
    make_nibbles(plain, place, g_block, lane, Layout{});
    make_groups<Layout>(plain, place, g_block, lane);
  } else {
    take_nibbles(plain, place, g_block, lane, Layout{});
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
