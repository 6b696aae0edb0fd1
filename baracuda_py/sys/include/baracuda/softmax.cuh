// Softmax and log-softmax over one axis: y = exp(x - max) / sum(exp(x - max)), or x - max - log(sum).
//
// A "row" is one line along the axis; rows are counted over up to seven other dimensions, with any strides.
//   short, warp  a warp a row, the row in registers, read once: length <= kShortLength, kWarpLength
//   block        a block a row, read once for maximum and sum and once to write
//   strided      a thread a row and several threads along the axis: coalesced when rows are neighbours
// How elements map to threads, and so the order of every sum, depends on the variant, the block's shape and
// the length alone: never on alignment, strides or the number of rows. f16, bf16 and f32 compute in f32, f64
// in f64, with expf / exp and logf / log. A row with a NaN or +inf, or of -inf only, gives NaN throughout.
// A source that includes this states kWarpLength, a multiple of 512 that its elements' registers allow.
#pragma once

#include "baracuda/constant.cuh"
#include "baracuda/element.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kRowDims, 7);
BARACUDA_CONSTANT(kShortLength, 128);
// short, warp: threads a block, a warp a row.
BARACUDA_CONSTANT(kRowThreads, 256);
// block: threads a block at most, in multiples of 32.
BARACUDA_CONSTANT(kBlockThreads, 512);
// strided: threads a block at most.
BARACUDA_CONSTANT(kStridedThreads, 512);

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kPieceBytes = 16;
// Independent loads in flight a thread in block and strided.
constexpr int kUnroll = 4;

struct RowDims {
  long long size[kRowDims];  // unused dimensions are 1; the last is the fastest
  long long input_stride[kRowDims];
  long long output_stride[kRowDims];
};

template <typename Element>
struct Accumulator {
  using Type = float;
};
template <>
struct Accumulator<double> {
  using Type = double;
};
template <typename Element>
using AccumulatorOf = typename Accumulator<Element>::Type;

template <typename Element>
__device__ __forceinline__ AccumulatorOf<Element> widen(Element value) {
  if constexpr (sizeof(Element) == sizeof(double)) {
    return value;
  } else {
    return to_f32(value);
  }
}
template <typename Element>
__device__ __forceinline__ Element narrow(AccumulatorOf<Element> value) {
  if constexpr (sizeof(Element) == sizeof(double)) {
    return value;
  } else {
    return from_f32<Element>(value);
  }
}

template <typename Real>
__device__ __forceinline__ Real minus_infinity() {
  return -static_cast<Real>(__int_as_float(0x7f800000));
}
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

template <typename Real>
__device__ __forceinline__ Real warp_largest(Real value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = larger(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}
template <typename Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// A row: where it begins, and how far apart its elements are.
template <typename Element>
struct Row {
  const Element* __restrict__ g_in;
  Element* __restrict__ g_out;
  long long input_stride;
  long long output_stride;
  long long length;
  bool vector_in;   // 16-byte loads are possible
  bool vector_out;  // 16-byte stores are possible

  __device__ __forceinline__ AccumulatorOf<Element> load(long long i) const {
    return widen(g_in[i * input_stride]);
  }
  __device__ __forceinline__ void store(long long i, AccumulatorOf<Element> value) const {
    g_out[i * output_stride] = narrow<Element>(value);
  }
};

// The same pointer, of unknown origin: else the addresses of all elements of a row are computed at once and
// kept, in more registers than the row itself.
template <typename Pointer>
__device__ __forceinline__ Pointer opaque(Pointer pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

template <typename Pointer>
__device__ __forceinline__ bool aligned_piece(Pointer pointer) {
  return (reinterpret_cast<unsigned long long>(pointer) & (kPieceBytes - 1)) == 0;
}

template <typename Element>
__device__ __forceinline__ Row<Element> row_at(const Element* g_in, Element* g_out, const RowDims& dims,
                                               long long index, long long length, long long input_stride,
                                               long long output_stride) {
#pragma unroll 1
  for (int d = kRowDims - 1; d >= 0; --d) {
    const long long size = dims.size[d];
    if (size == 1) continue;
    // A 32-bit division is several times cheaper, and nearly always enough.
    const bool narrow_division = ((index | size) >> 32) == 0;
    const long long quotient =
        narrow_division ? static_cast<unsigned>(index) / static_cast<unsigned>(size) : index / size;
    const long long coordinate = index - quotient * size;
    g_in += coordinate * dims.input_stride[d];
    g_out += coordinate * dims.output_stride[d];
    index = quotient;
  }
  return {g_in,
          g_out,
          input_stride,
          output_stride,
          length,
          input_stride == 1 && aligned_piece(g_in),
          output_stride == 1 && aligned_piece(g_out)};
}

template <typename Element, int kCount>
struct alignas(kPieceBytes) Piece {
  Element element[kCount];
};

// kCount neighbouring elements of a row from `begin`, a multiple of kCount; -inf past its end.
template <int kCount, typename Element>
__device__ __forceinline__ void load_piece(const Row<Element>& row, long long begin,
                                           AccumulatorOf<Element> (&r_value)[kCount]) {
  if (kCount * sizeof(Element) == kPieceBytes && row.vector_in && begin + kCount <= row.length) {
    const auto piece = *reinterpret_cast<const Piece<Element, kCount>*>(row.g_in + begin);
#pragma unroll
    for (int i = 0; i < kCount; ++i) r_value[i] = widen(piece.element[i]);
  } else {
    const Element* g_element = opaque(row.g_in + begin * row.input_stride);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      r_value[i] = begin + i < row.length ? widen(*g_element) : minus_infinity<AccumulatorOf<Element>>();
      g_element += row.input_stride;
    }
  }
}

template <int kCount, typename Element>
__device__ __forceinline__ void store_piece(const Row<Element>& row, long long begin,
                                            const AccumulatorOf<Element> (&r_value)[kCount]) {
  if (kCount * sizeof(Element) == kPieceBytes && row.vector_out && begin + kCount <= row.length) {
    Piece<Element, kCount> piece;
#pragma unroll
    for (int i = 0; i < kCount; ++i) piece.element[i] = narrow<Element>(r_value[i]);
    *reinterpret_cast<Piece<Element, kCount>*>(row.g_out + begin) = piece;
  } else {
    Element* g_element = opaque(row.g_out + begin * row.output_stride);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (begin + i < row.length) *g_element = narrow<Element>(r_value[i]);
      g_element += row.output_stride;
    }
  }
}

// What a row's outputs need once its maximum and its sum of exp(x - maximum) are known.
template <typename Element>
struct Normalizer {
  using Real = AccumulatorOf<Element>;
  Real maximum;
  Real term;  // softmax: the sum, or for 16-bit elements its inverse; log-softmax: its logarithm
  bool log_softmax;

  __device__ __forceinline__ Normalizer(Real row_maximum, Real sum, bool log_softmax)
      : maximum(row_maximum), log_softmax(log_softmax) {
    term = log_softmax ? logarithm(sum) : (sizeof(Element) == 2 ? 1 / sum : sum);
  }
  // From exp(x - maximum). A division an element is not affordable at 16 bits, and its rounding not visible.
  __device__ __forceinline__ Real softmax(Real exponential_x) const {
    return sizeof(Element) == 2 ? exponential_x * term : exponential_x / term;
  }
  __device__ __forceinline__ Real operator()(Real x) const {
    return log_softmax ? x - maximum - term : softmax(exponential(x - maximum));
  }
};

// Sum of exp(x - reference) over the elements seen by one thread, and their maximum, in one pass.
//
// The reference follows the maximum only when it has grown by more than 1: rescaling errors then shrink
// geometrically, however often the maximum grows. The sum is compensated (Kahan), for rows of 2^31 elements.
template <typename Real>
struct OnlineSum {
  Real reference = minus_infinity<Real>();
  Real maximum = minus_infinity<Real>();
  Real sum = 0;
  Real excess = 0;  // what `sum` has too much

  template <int kCount>
  __device__ __forceinline__ void absorb(const Real (&r_value)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) maximum = larger(maximum, r_value[i]);
    if (maximum > reference + 1) {
      const Real scale = exponential(reference - maximum);
      sum *= scale;
      excess *= scale;
      reference = maximum;
    }
    // Only -inf so far: any finite reference gives exp(-inf) = 0, where -inf itself would give NaN.
    const Real base = reference == minus_infinity<Real>() ? 0 : reference;
    Real part = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) part += exponential(r_value[i] - base);
    const Real corrected = part - excess;
    const Real total = sum + corrected;
    excess = (total - sum) - corrected;
    sum = total;
  }

  // The sum relative to another maximum, at least this one's.
  __device__ __forceinline__ Real relative_to(Real other) const {
    return (sum - excess) * exponential(reference - other);
  }
};

// A warp a row, the row in registers: kPieces pieces of kCount elements a lane.
template <int kCount, int kPieces, typename Element>
__device__ __forceinline__ void softmax_in_registers(const Element* g_in, Element* g_out,
                                                     const RowDims& dims, long long rows, long long length,
                                                     long long input_stride, long long output_stride,
                                                     bool log_softmax) {
  using Real = AccumulatorOf<Element>;
  const int lane = threadIdx.x % kWarp;
  const long long row_step = static_cast<long long>(gridDim.x) * (kRowThreads / kWarp);
  long long index = static_cast<long long>(blockIdx.x) * (kRowThreads / kWarp) + threadIdx.x / kWarp;
#pragma unroll 1
  for (; index < rows; index += row_step) {
    const Row<Element> row = row_at(g_in, g_out, dims, index, length, input_stride, output_stride);
    Real r_value[kPieces][kCount];
    Real maximum = minus_infinity<Real>();
#pragma unroll
    for (int p = 0; p < kPieces; ++p) load_piece(row, (p * kWarp + lane) * kCount, r_value[p]);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) maximum = larger(maximum, r_value[p][i]);
    }
    maximum = warp_largest(maximum);

    Real sum = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      if (p * kWarp * kCount >= length) break;
      Real part = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Real exponential_x = exponential(r_value[p][i] - maximum);
        part += exponential_x;
        if (!log_softmax) r_value[p][i] = exponential_x;
      }
      sum += part;
    }
    const Normalizer<Element> normalize(maximum, warp_sum(sum), log_softmax);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      if (p * kWarp * kCount >= length) break;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        r_value[p][i] = log_softmax ? normalize(r_value[p][i]) : normalize.softmax(r_value[p][i]);
      }
      store_piece(row, (p * kWarp + lane) * kCount, r_value[p]);
    }
  }
}

// Single elements, so that all lanes have work, and 16-byte pieces.
template <typename Element>
constexpr auto softmax_short = softmax_in_registers<1, kShortLength / kWarp, Element>;
template <typename Element>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Element));
template <typename Element>
constexpr auto softmax_warp =
    softmax_in_registers<kPiece<Element>, kWarpLength / (kWarp * kPiece<Element>), Element>;

// A block a row.
template <typename Element>
__device__ __forceinline__ void softmax_block(const Element* g_in, Element* g_out, const RowDims& dims,
                                              long long rows, long long length, long long input_stride,
                                              long long output_stride, bool log_softmax) {
  using Real = AccumulatorOf<Element>;
  constexpr int kCount = kPiece<Element>;
  __shared__ Real s_maximum[kBlockThreads / kWarp];
  __shared__ Real s_sum[kBlockThreads / kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const long long piece_step = static_cast<long long>(blockDim.x) * kCount;

#pragma unroll 1
  for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
    const Row<Element> row = row_at(g_in, g_out, dims, index, length, input_stride, output_stride);
    OnlineSum<Real> online;
#pragma unroll 1
    for (long long begin = threadIdx.x * kCount; begin < length; begin += kUnroll * piece_step) {
      Real r_value[kUnroll][kCount];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) load_piece(row, begin + u * piece_step, r_value[u]);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) online.absorb(r_value[u]);
    }

    const Real warp_maximum = warp_largest(online.maximum);
    if (lane == 0) s_maximum[warp] = warp_maximum;
    __syncthreads();
    const Real maximum = warp_largest(lane < warps ? s_maximum[lane] : minus_infinity<Real>());
    const Real of_warp = warp_sum(online.relative_to(maximum));
    if (lane == 0) s_sum[warp] = of_warp;
    __syncthreads();
    const Real sum = warp_sum(lane < warps ? s_sum[lane] : static_cast<Real>(0));
    const Normalizer<Element> normalize(maximum, sum, log_softmax);

#pragma unroll 1
    for (long long begin = threadIdx.x * kCount; begin < length; begin += kUnroll * piece_step) {
      Real r_value[kUnroll][kCount];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) load_piece(row, begin + u * piece_step, r_value[u]);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) r_value[u][i] = normalize(r_value[u][i]);
        store_piece(row, begin + u * piece_step, r_value[u]);
      }
    }
  }
}

// blockDim.x neighbouring rows, a thread each, and blockDim.y threads along the axis.
template <typename Element>
__device__ __forceinline__ void softmax_strided(const Element* g_in, Element* g_out, const RowDims& dims,
                                                long long rows, long long length, long long input_stride,
                                                long long output_stride, bool log_softmax) {
  using Real = AccumulatorOf<Element>;
  __shared__ Real s_maximum[kStridedThreads];
  __shared__ Real s_sum[kStridedThreads];
  const int width = blockDim.x, depth = blockDim.y;
  const int own = threadIdx.y * width + threadIdx.x;

#pragma unroll 1
  for (long long first = static_cast<long long>(blockIdx.x) * width; first < rows;
       first += static_cast<long long>(gridDim.x) * width) {
    // Every thread takes part in the barriers; those past the last row see an empty one.
    const bool present = first + threadIdx.x < rows;
    const Row<Element> row = row_at(g_in, g_out, dims, present ? first + threadIdx.x : first,
                                    present ? length : 0, input_stride, output_stride);
    OnlineSum<Real> online;
#pragma unroll 1
    for (long long begin = threadIdx.y; begin < row.length; begin += kUnroll * depth) {
      Real r_value[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long i = begin + u * depth;
        r_value[u] = i < row.length ? row.load(i) : minus_infinity<Real>();
      }
      online.absorb(r_value);
    }

    s_maximum[own] = online.maximum;
    __syncthreads();
    Real maximum = minus_infinity<Real>();
    for (int y = 0; y < depth; ++y) maximum = larger(maximum, s_maximum[y * width + threadIdx.x]);
    s_sum[own] = online.relative_to(maximum);
    __syncthreads();
    Real sum = 0;
    for (int y = 0; y < depth; ++y) sum += s_sum[y * width + threadIdx.x];
    const Normalizer<Element> normalize(maximum, sum, log_softmax);

#pragma unroll kUnroll
    for (long long i = threadIdx.y; i < row.length; i += depth) row.store(i, normalize(row.load(i)));
  }
}

}  // namespace baracuda

#define BARACUDA_SOFTMAX(symbol, threads, min_blocks, body, Element)                                         \
  extern "C" __global__ void __launch_bounds__(baracuda::threads, min_blocks) symbol(                        \
      const Element* __restrict__ g_in,                                                                      \
      Element* __restrict__ g_out,                                                                           \
      const __grid_constant__ baracuda::RowDims dims, /* all dimensions but the axis */                      \
      long long rows,                                 /* product of dims.size */                             \
      long long length,                               /* of the axis, at least 1 */                          \
      long long input_stride,                         /* of the axis */                                      \
      long long output_stride,                        /* of the axis */                                      \
      int log_softmax) {                              /* 0: softmax */                                       \
    baracuda::body<Element>(g_in, g_out, dims, rows, length, input_stride, output_stride, log_softmax != 0); \
  }

// The four kernels of one element.
#define BARACUDA_SOFTMAX_ALL(dtype, Element)                                                                 \
  BARACUDA_SOFTMAX(softmax_short_sm80_##dtype, kRowThreads, 2, softmax_short, Element)                       \
  BARACUDA_SOFTMAX(softmax_warp_sm80_##dtype, kRowThreads, 2, softmax_warp, Element)                         \
  BARACUDA_SOFTMAX(softmax_block_sm80_##dtype, kBlockThreads, 1, softmax_block, Element)                     \
  BARACUDA_SOFTMAX(softmax_strided_sm80_##dtype, kStridedThreads, 1, softmax_strided, Element)
