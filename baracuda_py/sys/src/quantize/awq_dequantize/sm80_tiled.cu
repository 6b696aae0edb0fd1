// AWQ dequantisation of TILED weights (awq_tiles.cuh): w = (q - z) * s, computed in f32, rounded once.
//
// A thread block takes what 64 output channels have of 128 input channels, two blocks of the layout that lie side by
// side: a lane reads 16 bytes, and all of a warp's 512 are one chunk [m][c] of a block. Through shared memory every
// lane then gets the words that its 16-byte piece of an output row is made of:
//
//   oc_ic   a piece is 8 input channels 64 c + 16 j + 8 d .. of one output channel: word j of the lanes t = 0 .. 3
//   ic_oc   a piece is 8 output channels 32 f + 16 m + 8 h .. of one input channel: word j of the lanes r = 0 .. 7
//
// A warp stores two whole rows of 128 channels, or four of 64, at a time.
//
#include "baracuda/awq_tiles.cuh"
#include "baracuda/constant.cuh"
#include "baracuda/element.cuh"
#include "baracuda/global_memory.cuh"
#include "baracuda/global_store.cuh"
#include "baracuda/int4.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kTiledThreads, 256);

constexpr int kWarp = 32;
constexpr int kChunks = kBlockHalves * 4;  // [f][m][c], 512 bytes each: f the half of the tile
constexpr int kChunkBytes = kBlockWeightBytes / 4;
static_assert(kChunks * kWarp == kTiledThreads, "a warp reads one chunk, 16 bytes a lane");

// Whether the words at a * stride_a + b * stride_b + c * stride_c, for all a, b and c below the counts, lie in
// different banks of shared memory.
__host__ __device__ constexpr bool in_different_banks(int count_a, int stride_a, int count_b, int stride_b,
                                                      int count_c, int stride_c) {
  unsigned met = 0;
  for (int a = 0; a < count_a; ++a) {
    for (int b = 0; b < count_b; ++b) {
      for (int c = 0; c < count_c; ++c) {
        const unsigned bank = 1u << ((a * stride_a + b * stride_b + c * stride_c) % 32);
        if (met & bank) return false;
        met |= bank;
      }
    }
  }
  return true;
}

// Words of a chunk, and four that are left out so that a warp reads from different banks.
constexpr int kPitch = kChunkBytes / 4 + 4;
static_assert(in_different_banks(2, kPitch, 2, 16, 4, 1), "oc_ic reads, at a time, the words of all c, two r, all j");
static_assert(in_different_banks(4, 2 * kPitch, 4, 1, 1, 0), "ic_oc reads, at a time, the words of all f and m, all j");

// Scales and zero points as f32, [group][m][h][f][r]: octets of r, at pitches that do the same.
constexpr int kMostGroups = 4;
constexpr int kOctetPitch = 12;
constexpr int kGroupPitch = 8 * kOctetPitch + 4;
static_assert(in_different_banks(4, 2 * kOctetPitch, 8, 1, 1, 0), "a warp writes those of all m, h and r of an f");
static_assert(in_different_banks(4, kGroupPitch, 2, 1, 1, 0), "oc_ic reads, at a time, those of all groups, two r");
static_assert(in_different_banks(8, kOctetPitch, 4, 1, 1, 0), "ic_oc reads 16 bytes, by eight lanes: all m, h and f");

// 2^23 + q as a float: the low mantissa bits of 2^23 count units, so no conversion instruction is needed.
__device__ __forceinline__ float magic(unsigned small) { return __uint_as_float(0x4b000000u | small); }

// A 16-bit scale, as f32.
__device__ __forceinline__ float scale_to_f32(unsigned bits, bool scales_bf16) {
  return scale_pair_to_f32(bits, scales_bf16).x;
}

struct Stage {
  alignas(16) unsigned words[kChunks * kPitch];
  alignas(16) float scales[kMostGroups * kGroupPitch];
  alignas(16) float zeros[kMostGroups * kGroupPitch];  // 2^23 + z

  static __device__ __forceinline__ int word(int f, int m, int c, int r, int t, int j) {
    return (4 * f + 2 * m + c) * kPitch + (4 * r + t) * 4 + j;
  }
  static __device__ __forceinline__ int octet(int group, int f, int m, int h) {
    return group * kGroupPitch + (4 * m + 2 * h + f) * kOctetPitch;
  }
};

// Fills the stage from the two blocks at g_blocks. `groups` is 1, 2 or 4.
__device__ __forceinline__ void load(Stage& stage, const unsigned char* __restrict__ g_blocks, int groups,
                                     bool scales_bf16) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned r_words[4];
  load_streaming_16(r_words,
                    g_blocks + warp / 4 * block_bytes(groups) + warp % 4 * kChunkBytes + lane * 16, true);
  if (warp < kBlockHalves * groups) {  // a warp's 32 output channels are those of one f and group: [r][m][h]
    const int f = warp / groups, group = warp % groups;
    const unsigned char* g_block = g_blocks + f * block_bytes(groups);
    const unsigned scale = reinterpret_cast<const unsigned short*>(g_block + scale_offset(group))[lane];
    const unsigned zeros = g_block[zero_offset(groups, group) + lane / 2];
    const int r = lane / 4, m = lane / 2 % 2, h = lane % 2;
    stage.scales[Stage::octet(group, f, m, h) + r] = scale_to_f32(scale, scales_bf16);
    stage.zeros[Stage::octet(group, f, m, h) + r] = magic(nibble(zeros, h));
  }
  *reinterpret_cast<uint4*>(&stage.words[warp * kPitch + lane * 4]) =
      make_uint4(r_words[0], r_words[1], r_words[2], r_words[3]);
  __syncthreads();
}

// The group, of `groups` in a block, of input channels 64 c + 16 j and the next 15.
__device__ __forceinline__ int group_of(int c, int j, int groups) { return (4 * c + j) * groups / 8; }

// Whether 16-byte stores are aligned in every row.
template <typename Output>
__device__ __forceinline__ bool aligned_rows(const Output* g_out, long long stride) {
  const unsigned long long row = static_cast<unsigned long long>(stride) * sizeof(Output);
  return ((reinterpret_cast<unsigned long long>(g_out) | row) & 15) == 0;
}

// Eight neighbouring elements of a row, in stores of 16 bytes where those are aligned.
template <typename Output>
__device__ __forceinline__ void store_eight(Output* g_out, const float (&r_value)[8], bool aligned) {
  if (!aligned) {
#pragma unroll
    for (int i = 0; i < 8; ++i) g_out[i] = from_f32<Output>(r_value[i]);
  } else if constexpr (sizeof(Output) == 2) {
    const unsigned words[4] = {
        pair_from_f32<Output>(r_value[0], r_value[1]), pair_from_f32<Output>(r_value[2], r_value[3]),
        pair_from_f32<Output>(r_value[4], r_value[5]), pair_from_f32<Output>(r_value[6], r_value[7])};
    store_16(g_out, words);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const unsigned words[4] = {__float_as_uint(r_value[i]), __float_as_uint(r_value[i + 1]),
                                 __float_as_uint(r_value[i + 2]), __float_as_uint(r_value[i + 3])};
      store_16(g_out + i, words);
    }
  }
}

// Rows are output channels.
struct OcIc {
  // Neighbouring thread blocks write on in the same rows.
  static __device__ __forceinline__ int tile(int block, int tiles, int columns) { return block / columns; }
  static __device__ __forceinline__ int column(int block, int tiles, int columns) { return block % columns; }

  template <typename Output>
  static __device__ __forceinline__ void store(const Stage& stage, Output* __restrict__ g_out,
                                               long long out_stride, long long channel, long long depth, int oc,
                                               int ic, int groups) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int c = lane / 8 % 2, j = lane / 2 % 4, d = lane % 2;
    const int f = warp / 4, m = warp / 2 % 2;
    const int group = group_of(c, j, groups);
    const long long k = depth + 64 * c + 16 * j + 8 * d;
    const bool aligned = aligned_rows(g_out, out_stride);
    if (k >= ic) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = 4 * (warp % 2) + 2 * i + lane / 16;
      unsigned r_words[4];  // [t]
#pragma unroll
      for (int t = 0; t < 4; ++t) r_words[t] = stage.words[Stage::word(f, m, c, r, t, j)] >> (8 * d);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const long long n = channel + 32 * f + 16 * m + 8 * h + r;
        const float scale = stage.scales[Stage::octet(group, f, m, h) + r];
        const float zero = stage.zeros[Stage::octet(group, f, m, h) + r];
        float r_value[8];  // [t][e]
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          r_value[2 * t] = (magic(nibble(r_words[t], h)) - zero) * scale;
          r_value[2 * t + 1] = (magic(nibble(r_words[t], h + 4)) - zero) * scale;
        }
        if (n < oc) store_eight(g_out + n * out_stride + k, r_value, aligned);
      }
    }
  }
};

// Rows are input channels.
struct IcOc {
  static __device__ __forceinline__ int tile(int block, int tiles, int columns) { return block % tiles; }
  static __device__ __forceinline__ int column(int block, int tiles, int columns) { return block / tiles; }

  template <typename Output>
  static __device__ __forceinline__ void store(const Stage& stage, Output* __restrict__ g_out,
                                               long long out_stride, long long channel, long long depth, int oc,
                                               int ic, int groups) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int j = lane / 8, f = lane / 4 % 2, m = lane / 2 % 2, h = lane % 2;
    const int c = warp / 4, t = warp % 4;
    const int octet = Stage::octet(group_of(c, j, groups), f, m, h);
    const long long n = channel + 32 * f + 16 * m + 8 * h;
    const long long k = depth + 64 * c + 16 * j + 2 * t;
    const bool aligned = aligned_rows(g_out, out_stride);
    if (n >= oc || k >= ic) return;  // ic is a multiple of 32, and all of a lane's k lie in 16
    unsigned r_words[8];             // [r]
#pragma unroll
    for (int r = 0; r < 8; ++r) r_words[r] = stage.words[Stage::word(f, m, c, r, t, j)] >> (kNibbleBits * h);
    float r_scale[8], r_zero[8];  // [r]
#pragma unroll
    for (int r = 0; r < 8; r += 4) {
      const float4 scales = *reinterpret_cast<const float4*>(&stage.scales[octet + r]);
      const float4 zeros = *reinterpret_cast<const float4*>(&stage.zeros[octet + r]);
      r_scale[r] = scales.x, r_scale[r + 1] = scales.y, r_scale[r + 2] = scales.z, r_scale[r + 3] = scales.w;
      r_zero[r] = zeros.x, r_zero[r + 1] = zeros.y, r_zero[r + 2] = zeros.z, r_zero[r + 3] = zeros.w;
    }
#pragma unroll
    for (int d = 0; d < 2; ++d) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float r_value[8];  // [r]
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          r_value[r] = (magic(nibble(r_words[r], 2 * d + 4 * e)) - r_zero[r]) * r_scale[r];
        }
        store_eight(g_out + (k + 8 * d + e) * out_stride + n, r_value, aligned);
      }
    }
  }
};

template <typename Order, typename Output>
__device__ __forceinline__ void dequantize_tiled(const unsigned char* __restrict__ g_tiles,
                                                 Output* __restrict__ g_out, int ic, int oc, int groups,
                                                 bool scales_bf16, long long out_stride) {
  __shared__ Stage stage;
  const int tiles = (oc + kTileChannels - 1) / kTileChannels, columns = (ic + kBlockDepth - 1) / kBlockDepth;
  const int block = static_cast<int>(blockIdx.x);
  const int tile = Order::tile(block, tiles, columns), column = Order::column(block, tiles, columns);
  const long long first = (static_cast<long long>(tile) * columns + column) * kBlockHalves;
  load(stage, g_tiles + first * block_bytes(groups), groups, scales_bf16);
  Order::store(stage, g_out, out_stride, static_cast<long long>(tile) * kTileChannels,
               static_cast<long long>(column) * kBlockDepth, oc, ic, groups);
}

}  // namespace baracuda

// grid: a thread block for each 64 output by 128 input channels.
#define BARACUDA_DEQUANTIZE_TILED(symbol, Order, Output)                                              \
  extern "C" __global__ void __launch_bounds__(baracuda::kTiledThreads) symbol(                       \
      const unsigned char* __restrict__ g_tiles, /* TILED, at a multiple of 16 bytes */               \
      Output* __restrict__ g_out,                /* (ic, oc) or (oc, ic), as the symbol ends */       \
      int ic,                                    /* multiple of 32, at most 2^31 - 128 */             \
      int oc,                                    /* multiple of 8, at most 2^31 - 64 */               \
      int groups,                                /* of 128 input channels, as they are stored */      \
      int scales_bf16,                           /* 0: scales are f16 */                              \
      long long out_stride) {                    /* elements from row to row */                       \
    baracuda::dequantize_tiled<baracuda::Order>(g_tiles, g_out, ic, oc, groups, scales_bf16 != 0,     \
                                                out_stride);                                          \
  }

#define BARACUDA_DEQUANTIZE_TILED_ALL(dtype, Output)                                    \
  BARACUDA_DEQUANTIZE_TILED(awq_dequantize_sm80_##dtype##_tiled_oc_ic, OcIc, Output) \
  BARACUDA_DEQUANTIZE_TILED(awq_dequantize_sm80_##dtype##_tiled_ic_oc, IcOc, Output)

BARACUDA_DEQUANTIZE_TILED_ALL(f16, __half)
BARACUDA_DEQUANTIZE_TILED_ALL(bf16, __nv_bfloat16)
BARACUDA_DEQUANTIZE_TILED_ALL(f32, float)
