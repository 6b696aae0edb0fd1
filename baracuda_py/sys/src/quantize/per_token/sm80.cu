// Quantisation of each row to fp8 e4m3: scale = max |x| / 448, q = x * (1 / scale). A thread block takes a row.
//
// Thread t takes the 16-byte pieces t, t + blockDim.x, ... of the row: the first kHeldPieces stay in registers from the
// search for the largest to the conversion, the rest is read twice. All arithmetic is f32; a maximum has one value in
// every order.
//
#include "baracuda/constant.cuh"
#include "baracuda/element.cuh"
#include "baracuda/fp8.cuh"
#include "baracuda/global_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kPieceBytes, 16);
BARACUDA_CONSTANT(kHeldPieces, 4);
BARACUDA_CONSTANT(kWarp, 32);
BARACUDA_CONSTANT(kMostThreads, 256);

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLargest = 448.0f;
constexpr float kLeastScale = 1.17549435e-38f;  // 2^-126: the reciprocal of a subnormal scale may be infinite

template <typename Element>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Element));

// Elements begin .. begin + kPiece - 1 of a row of `length`; zeros beyond its end.
template <typename Element>
__device__ __forceinline__ void load(const Element* g_row, long long begin, long long length, bool pieces,
                                     float (&r_value)[kPiece<Element>]) {
  if (!pieces) {
#pragma unroll
    for (int i = 0; i < kPiece<Element>; ++i) r_value[i] = begin + i < length ? to_f32(g_row[begin + i]) : 0.0f;
    return;
  }
  unsigned words[4] = {};
  load_streaming_16(words, g_row + begin, begin < length);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(Element) == 4) {
      r_value[w] = __uint_as_float(words[w]);
    } else {
      const float2 pair = pair_to_f32<Element>(words[w]);
      r_value[2 * w] = pair.x;
      r_value[2 * w + 1] = pair.y;
    }
  }
}

// fmaxf passes over a NaN.
template <int kCount>
__device__ __forceinline__ float largest_of(float largest, const float (&r_value)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(r_value[i]));
  return largest;
}

// Over the threads of the block.
__device__ __forceinline__ float block_largest(float value) {
  __shared__ float s_largest[kMostThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return value;
  __syncthreads();  // those of the row before have been read
  if (threadIdx.x % kWarp == 0) s_largest[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int warp = 0; warp < warps; ++warp) value = fmaxf(value, s_largest[warp]);
  return value;
}

// As many bytes as there are values, `begin` a multiple of that; words where the row's pieces are aligned.
template <int kCount>
__device__ __forceinline__ void store(unsigned char* g_row, long long begin, long long length, bool pieces,
                                      float factor, const float (&r_value)[kCount]) {
  unsigned words[kCount / 4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i / 4] |= e4m3_from_f32(r_value[i] * factor) << (i % 4 * 8);
  if (!pieces) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (begin + i < length) g_row[begin + i] = static_cast<unsigned char>(words[i / 4] >> (i % 4 * 8));
    }
  } else if (begin < length) {
    if constexpr (kCount == 8) {
      *reinterpret_cast<uint2*>(g_row + begin) = make_uint2(words[0], words[1]);
    } else {
      *reinterpret_cast<unsigned*>(g_row + begin) = words[0];
    }
  }
}

template <typename Element>
__device__ __forceinline__ void quantize(const Element* g_input, unsigned char* g_output, float* g_scales,
                                         long long rows, long long columns, long long input_stride,
                                         long long output_stride) {
  constexpr int kCount = kPiece<Element>;
  const bool pieces = ((reinterpret_cast<unsigned long long>(g_input) % kPieceBytes) |
                       (reinterpret_cast<unsigned long long>(g_output) % kCount)) == 0 &&
                      (columns | input_stride | output_stride) % kCount == 0;
  const long long own = static_cast<long long>(threadIdx.x) * kCount;
  const long long step = static_cast<long long>(blockDim.x) * kCount;
#pragma unroll 1
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    const Element* g_x = g_input + row * input_stride;
    unsigned char* g_q = g_output + row * output_stride;
    float r_held[kHeldPieces][kCount];
    float largest = 0.0f;
#pragma unroll
    for (int p = 0; p < kHeldPieces; ++p) {
      load(g_x, own + p * step, columns, pieces, r_held[p]);
      largest = largest_of(largest, r_held[p]);
    }
#pragma unroll 1
    for (long long begin = own + kHeldPieces * step; begin < columns; begin += step) {
      float r_value[kCount];
      load(g_x, begin, columns, pieces, r_value);
      largest = largest_of(largest, r_value);
    }
    float scale = block_largest(largest) / kLargest;
    if (scale < kLeastScale) scale = 1.0f;
    if (threadIdx.x == 0) g_scales[row] = scale;
    const float factor = 1.0f / scale;
#pragma unroll
    for (int p = 0; p < kHeldPieces; ++p) store(g_q, own + p * step, columns, pieces, factor, r_held[p]);
#pragma unroll 1
    for (long long begin = own + kHeldPieces * step; begin < columns; begin += step) {
      float r_value[kCount];
      load(g_x, begin, columns, pieces, r_value);
      store(g_q, begin, columns, pieces, factor, r_value);
    }
  }
}

}  // namespace baracuda

// grid: a thread block a row, looping over rows beyond; whole warps.
#define BARACUDA_QUANTIZE_PER_TOKEN(dtype, Element)                                                      \
  extern "C" __global__ void __launch_bounds__(baracuda::kMostThreads) quantize_per_token_sm80_##dtype(  \
      const Element* __restrict__ g_input,    /* (rows, columns) */                                      \
      unsigned char* __restrict__ g_output,   /* (rows, columns), e4m3 */                                \
      float* __restrict__ g_scales,           /* (rows) */                                               \
      long long rows,                                                                                    \
      long long columns,                      /* at least 1 */                                           \
      long long input_stride,                 /* elements between rows */                                \
      long long output_stride) {              /* bytes between rows */                                   \
    baracuda::quantize(g_input, g_output, g_scales, rows, columns, input_stride, output_stride);         \
  }

BARACUDA_QUANTIZE_PER_TOKEN(f16, __half)
BARACUDA_QUANTIZE_PER_TOKEN(bf16, __nv_bfloat16)
BARACUDA_QUANTIZE_PER_TOKEN(f32, float)
