// What a lane of the small-m kernel of awq_gemm holds, and its loads from global memory.
//
// Which lane holds which k and which channel is free as long as x and the scales follow, so a lane takes k
// that lie together, and channels whose scales lie together:
//
//   lane 4g + t; slot r (0 .. 2 * kTiles - 1): operand row g (even r) or g + 8 (odd r) of m16 tile r / 2
//   channel 2 * kTiles * g + r
//   k of lane t: in each part of a block (kParts parts; one, or one a group) its quarter t
#pragma once

#include "baracuda/awq_gemm.cuh"
#include "baracuda/global_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kMaxTokens, 8);
BARACUDA_CONSTANT(kBlockK, 128);         // input channels a warp takes at a time
BARACUDA_CONSTANT(kC64MaxThreads, 384);  // of 64 channels: 512 would leave 128 registers a thread, too few
BARACUDA_CONSTANT(kC32MaxThreads, 512);
BARACUDA_CONSTANT(kC16MaxThreads, 512);
BARACUDA_CONSTANT(kG32MaxThreads, 384);      // of the entries for groups of 32, for the same reason
BARACUDA_CONSTANT(kSumBytesPerChannel, 32);  // dynamic shared memory is warps * channels * this

static_assert(kSumBytesPerChannel == kMaxTokens * static_cast<int>(sizeof(float)),
              "one f32 a token and channel");

constexpr int kLaneK = kBlockK / 4;                   // k that a lane holds of a block
constexpr int kLaneWords = kLaneK / kNibblesPerWord;  // words of a channel
constexpr int kLaneChunks = kLaneK / 8;               // 16-byte chunks of x

// What a lane holds of one block: 32 k of 2 * kTiles channels.
template <int kTiles>
struct BlockWeights {
  unsigned words[2 * kTiles][kLaneWords];  // natural nibbles along k
};

// Scales and zeros of one part of a block; only as many as the lane has channels are used.
struct BlockGroups {
  uint4 scales;    // 2 * kTiles channels, packed from the low half of x
  unsigned zeros;  // slot r in nibble r
};

template <int tiles, int parts, typename ElementType>
struct SmallMLane {
  using Element = ElementType;
  static constexpr int kTiles = tiles;
  static constexpr int kParts = parts;
  static constexpr int kSlots = 2 * kTiles;
  static constexpr int kChannels = 16 * kTiles;
  static constexpr int kPartK = kBlockK / kParts;
  static constexpr int kLanePartK = kLaneK / kParts;

  static_assert(kTiles == 1 || kTiles == 2 || kTiles == 4, "a lane's channels must lie in one word of zeros");
  static_assert(kLanePartK >= 8, "a lane reads x in chunks of 8");

  const AwqGemmOperands<Element>& operands;
  int column;                 // g
  int quarter;                // t
  long long channel;          // its first, in the whole tensor
  bool valid;                 // the lane's channels exist
  const unsigned* g_weights;  // of `channel`, at k = 0

  // First k of the lane in part `part` of block `block`.
  __device__ __forceinline__ int lane_k(int block, int part) const {
    return block * kBlockK + part * kPartK + quarter * kLanePartK;
  }

  // Where the lane has no such weights the words stay as they are: their x is zero, or their channel is not
  // stored.
  __device__ __forceinline__ void load_weights_slot(int block, int slot,
                                                    unsigned (&words)[kLaneWords]) const {
    constexpr int kPartWords = kLaneWords / kParts;
    const int pitch = operands.ic / kNibblesPerWord;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int k = lane_k(block, part);
      const bool present = valid && k < operands.ic;
      const unsigned* g_words = g_weights + k / kNibblesPerWord + static_cast<long long>(slot) * pitch;
      if constexpr (kPartWords == 4) {
        load_streaming_16(words, g_words, present);
      } else if constexpr (kPartWords == 2) {
        load_streaming_8(words[2 * part], words[2 * part + 1], g_words, present);
      } else {
        load_streaming_4(words[part], g_words, present);
      }
    }
  }

  __device__ __forceinline__ void load_weights(int block, BlockWeights<kTiles>& weights) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) load_weights_slot(block, slot, weights.words[slot]);
  }

  // Token `column`'s elements at eight of the lane's k.
  __device__ __forceinline__ uint4 load_x(int block, int chunk) const {
    constexpr int kPartChunks = kLaneChunks / kParts;
    const int k = lane_k(block, chunk / kPartChunks) + chunk % kPartChunks * 8;
    const bool present = column < operands.m && k < operands.ic;
    return present ? __ldg(reinterpret_cast<const uint4*>(operands.x + column * operands.ldx + k))
                   : make_uint4(0, 0, 0, 0);
  }

  __device__ __forceinline__ void load_groups(int block, BlockGroups (&groups)[kParts]) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int k = block * kBlockK + part * kPartK;
      groups[part].scales = make_uint4(0, 0, 0, 0);
      groups[part].zeros = 0;
      if (!valid || k >= operands.ic) continue;
      const int group_index = kParts == 1 && operands.group != kBlockK ? 0 : k / kPartK;
      const long long first = static_cast<long long>(group_index) * operands.oc + channel;
      const unsigned short* g_scales = static_cast<const unsigned short*>(operands.scales) + first;
      const unsigned word = __ldg(operands.zeros + first / kNibblesPerWord);
      if constexpr (kTiles == 4) {
        groups[part].scales = __ldg(reinterpret_cast<const uint4*>(g_scales));
        groups[part].zeros = word;
      } else if constexpr (kTiles == 2) {
        const uint2 four = __ldg(reinterpret_cast<const uint2*>(g_scales));
        groups[part].scales.x = four.x;
        groups[part].scales.y = four.y;
        groups[part].zeros = word >> (kNibbleBits * (first % kNibblesPerWord));
      } else {
        groups[part].scales.x = __ldg(reinterpret_cast<const unsigned*>(g_scales));
        groups[part].zeros = word >> (kNibbleBits * (first % kNibblesPerWord));
      }
    }
  }

  __device__ __forceinline__ float slot_scale(const BlockGroups& group, int slot) const {
    const unsigned pairs[4] = {group.scales.x, group.scales.y, group.scales.z, group.scales.w};
    const float2 pair = scale_pair_to_f32(pairs[slot / 2], operands.scales_bf16);
    return slot % 2 == 0 ? pair.x : pair.y;
  }
};

}  // namespace baracuda
