// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight, along each row.
//
// blockDim.x neighbouring threads, a power of two, take a row; blockDim.y rows share a block. Thread t of a
// row takes its 16-byte pieces t, t + blockDim.x, ...: the first kHeldPieces stay in registers from the sum
// to the product, the rest is read twice. Which elements a thread adds, and in which order, depends on the
// columns and the block's shape alone, never on alignment, strides or the number of rows. All arithmetic is
// f32, and a result is rounded once.

#include "baracuda/constant.cuh"
#include "baracuda/element.cuh"
#include "baracuda/global_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWarp, 32);
BARACUDA_CONSTANT(kPieceBytes, 16);
BARACUDA_CONSTANT(kHeldPieces, 4);
// Threads a row at most.
BARACUDA_CONSTANT(kRowThreads, 512);
// Threads of a block whose rows take fewer.
BARACUDA_CONSTANT(kBlockThreads, 128);

constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kBlockThreads % kWarp == 0, "a shuffle needs full warps, also where a row takes part of one");

// Elements stay packed in words: unpacked, those of 16 bits would take twice the registers.
constexpr int kWords = kPieceBytes / 4;
struct alignas(kPieceBytes) Piece {
  unsigned word[kWords];
};
template <typename Element>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Element));

template <int kBytes>
struct Bits {
  using Type = unsigned;
};
template <>
struct Bits<2> {
  using Type = unsigned short;
};
template <typename Element>
using BitsOf = typename Bits<sizeof(Element)>::Type;

template <typename Element>
__device__ __forceinline__ void unpack(const Piece& r_piece, float (&r_value)[kPiece<Element>]) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      r_value[w] = __uint_as_float(r_piece.word[w]);
    } else {
      const float2 pair = pair_to_f32<Element>(r_piece.word[w]);
      r_value[2 * w] = pair.x;
      r_value[2 * w + 1] = pair.y;
    }
  }
}

template <typename Element>
__device__ __forceinline__ Piece pack(const float (&r_value)[kPiece<Element>]) {
  Piece r_piece;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if constexpr (sizeof(Element) == sizeof(float)) {
      r_piece.word[w] = reinterpret_cast<const unsigned&>(r_value[w]);
    } else {
      r_piece.word[w] = pair_from_f32<Element>(r_value[2 * w], r_value[2 * w + 1]);
    }
  }
  return r_piece;
}

// The compiler forgets where these come from. Else it unpacks a held piece once and keeps it so, computes the
// addresses of all elements of a group at once and keeps them, and stores a piece word by word.
__device__ __forceinline__ void forget(Piece& r_piece) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) asm volatile("" : "+r"(r_piece.word[w]));
}
template <typename Pointer>
__device__ __forceinline__ Pointer forget_origin(Pointer pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// How rows are read and written: in pieces, where all rows begin and end on one, or in elements. `begin` is a
// multiple of kPiece; past `length`, zeros are loaded and nothing is stored.
template <typename Element>
struct InPieces {
  static __device__ __forceinline__ Piece load(const Element* g_row, long long begin, long long length) {
    Piece r_piece = {};
    load_streaming_16(r_piece.word, g_row + begin, begin < length);
    return r_piece;
  }
  static __device__ __forceinline__ void store(Element* g_row, long long begin, long long length,
                                               const Piece& r_piece) {
    if (begin < length) *forget_origin(reinterpret_cast<Piece*>(g_row + begin)) = r_piece;
  }
};

template <typename Element>
struct InElements {
  static constexpr int kBits = 8 * static_cast<int>(sizeof(Element));

  static __device__ __forceinline__ Piece load(const Element* g_row, long long begin, long long length) {
    Piece r_piece = {};
    const auto* g_bits = forget_origin(reinterpret_cast<const BitsOf<Element>*>(g_row + begin));
#pragma unroll
    for (int i = 0; i < kPiece<Element>; ++i) {
      const int bit = i * kBits;
      if (begin + i < length) r_piece.word[bit / 32] |= static_cast<unsigned>(g_bits[i]) << (bit % 32);
    }
    return r_piece;
  }
  static __device__ __forceinline__ void store(Element* g_row, long long begin, long long length,
                                               const Piece& r_piece) {
    auto* g_bits = forget_origin(reinterpret_cast<BitsOf<Element>*>(g_row + begin));
#pragma unroll
    for (int i = 0; i < kPiece<Element>; ++i) {
      const int bit = i * kBits;
      if (begin + i < length) g_bits[i] = static_cast<BitsOf<Element>>(r_piece.word[bit / 32] >> (bit % 32));
    }
  }
};

template <typename Element>
__device__ __forceinline__ float sum_of_squares(const Piece (&r_piece)[kHeldPieces]) {
  float sum = 0.0f;
#pragma unroll
  for (int p = 0; p < kHeldPieces; ++p) {
    float r_value[kPiece<Element>];
    unpack<Element>(r_piece[p], r_value);
#pragma unroll
    for (int i = 0; i < kPiece<Element>; ++i) sum = fmaf(r_value[i], r_value[i], sum);
  }
  return sum;
}

// The sum over the threads of a row. Every thread of the block calls it.
__device__ __forceinline__ float row_sum(float value) {
  __shared__ float s_sum[kRowThreads / kWarp];
  const int threads = blockDim.x;
  for (int offset = (threads < kWarp ? threads : kWarp) / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  if (threads <= kWarp) return value;
  const int warps = threads / kWarp, first = threadIdx.y * warps;
  __syncthreads();  // the sums of the rows before have been read
  if (threadIdx.x % kWarp == 0) s_sum[first + threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < warps; ++i) sum += s_sum[first + i];
  return sum;
}

template <typename Access, typename Element>
__device__ __forceinline__ void store_normalized(Element* g_row, const Element* g_weight, long long begin,
                                                 long long length, const Piece& r_input, float factor) {
  float r_value[kPiece<Element>];
  unpack<Element>(r_input, r_value);
#pragma unroll
  for (int i = 0; i < kPiece<Element>; ++i) r_value[i] *= factor;
  if (g_weight != nullptr) {
    float r_weight[kPiece<Element>];
    unpack<Element>(Access::load(g_weight, begin, length), r_weight);
#pragma unroll
    for (int i = 0; i < kPiece<Element>; ++i) r_value[i] *= r_weight[i];
  }
  Access::store(g_row, begin, length, pack<Element>(r_value));
}

template <typename Access, typename Element>
__device__ __forceinline__ void normalize_rows(const Element* g_input, const Element* g_weight,
                                               Element* g_output, long long rows, long long columns,
                                               long long input_stride, long long output_stride, float eps) {
  const long long piece_step = static_cast<long long>(blockDim.x) * kPiece<Element>;
  const long long held = kHeldPieces * piece_step;
  const long long own = static_cast<long long>(threadIdx.x) * kPiece<Element>;

#pragma unroll 1
  for (long long first = static_cast<long long>(blockIdx.x) * blockDim.y; first < rows;
       first += static_cast<long long>(gridDim.x) * blockDim.y) {
    // Every thread takes part in the sum; those past the last row see an empty one.
    const bool present = first + threadIdx.y < rows;
    const long long index = present ? first + threadIdx.y : first;
    const long long length = present ? columns : 0;
    const Element* g_x = g_input + index * input_stride;
    Element* g_y = g_output + index * output_stride;

    Piece r_held[kHeldPieces];
#pragma unroll
    for (int p = 0; p < kHeldPieces; ++p) r_held[p] = Access::load(g_x, own + p * piece_step, length);
    float sum = sum_of_squares<Element>(r_held);
#pragma unroll 1
    for (long long begin = own + held; begin < length; begin += held) {
      Piece r_piece[kHeldPieces];
#pragma unroll
      for (int p = 0; p < kHeldPieces; ++p) r_piece[p] = Access::load(g_x, begin + p * piece_step, length);
      sum += sum_of_squares<Element>(r_piece);
    }

    const float factor = 1.0f / sqrtf(row_sum(sum) / static_cast<float>(columns) + eps);
#pragma unroll
    for (int p = 0; p < kHeldPieces; ++p) {
      forget(r_held[p]);
      store_normalized<Access>(g_y, g_weight, own + p * piece_step, length, r_held[p], factor);
    }
#pragma unroll 1
    for (long long begin = own + held; begin < length; begin += piece_step) {
      store_normalized<Access>(g_y, g_weight, begin, length, Access::load(g_x, begin, length), factor);
    }
  }
}

__device__ __forceinline__ bool on_a_piece(const void* address) {
  return (reinterpret_cast<unsigned long long>(address) & (kPieceBytes - 1)) == 0;
}

template <typename Element>
__device__ __forceinline__ void rms_norm(const Element* g_input, const Element* g_weight, Element* g_output,
                                         long long rows, long long columns, long long input_stride,
                                         long long output_stride, float eps) {
  const bool pieces = on_a_piece(g_input) && on_a_piece(g_weight) && on_a_piece(g_output) &&
                      (columns | input_stride | output_stride) % kPiece<Element> == 0;
  if (pieces) {
    normalize_rows<InPieces<Element>>(g_input, g_weight, g_output, rows, columns, input_stride, output_stride,
                                      eps);
  } else {
    normalize_rows<InElements<Element>>(g_input, g_weight, g_output, rows, columns, input_stride,
                                        output_stride, eps);
  }
}

}  // namespace baracuda

// The second launch bound lets a thread have more than 64 registers.
#define RMS_NORM(dtype, Element)                                                                          \
  extern "C" __global__ void __launch_bounds__(baracuda::kRowThreads, 1) rms_norm_sm80_##dtype(           \
      const Element* __restrict__ g_input,  /* (rows, columns) */                                         \
      const Element* __restrict__ g_weight, /* (columns), or null for ones */                             \
      Element* __restrict__ g_output,       /* (rows, columns) */                                         \
      long long rows,                                                                                     \
      long long columns,                    /* at least 1 */                                              \
      long long input_stride,               /* elements between rows */                                   \
      long long output_stride,              /* elements between rows */                                   \
      float eps) {                                                                                        \
    baracuda::rms_norm(g_input, g_weight, g_output, rows, columns, input_stride, output_stride, eps);     \
  }

RMS_NORM(f16, __half)
RMS_NORM(bf16, __nv_bfloat16)
RMS_NORM(f32, float)
