// What the kernels of awq_gemm share: operands, weight layouts, and the store of finished outputs.
//
//   y[m, oc] = epilogue(sum over k of x[m, k] * (q[k, oc] - z[k / group, oc]) * s[k / group, oc])
#pragma once

#include "baracuda/constant.cuh"
#include "baracuda/element.cuh"
#include "baracuda/epilogue.cuh"
#include "baracuda/global_load.cuh"
#include "baracuda/int4.cuh"

namespace baracuda {

enum class WeightLayout {
  kOcMajor,  // weights int32 [oc, ic / 8], zeros int32 [groups, oc / 8], natural nibbles
  kHfGemm,   // weights int32 [ic, oc / 8], zeros int32 [groups, oc / 8], nibbles [7|5|3|1|6|4|2|0]
};

constexpr int kWarpLanes = 32;
constexpr int kOcGrain = 8;   // oc is a multiple of this, and so is every row of scales and zeros
constexpr int kIcGrain = 32;  // ic and group are multiples of this

template <typename Element>
struct AwqGemmOperands {
  const Element* x;         // (m, ic), row stride ldx
  const unsigned* weights;  // as its WeightLayout says
  const unsigned* zeros;    // (ic / group, oc / 8)
  const void* scales;       // (ic / group, oc), f16 or bf16
  const Element* bias;      // (oc,) or null
  Element* y;               // (m, oc), row stride ldy
  int m;
  int ic;
  int oc;
  int group;      // input channels that share a scale; ic when there is one group
  long long ldx;  // elements
  long long ldy;  // elements
  bool scales_bf16;
  int epilogue;
};

// Names and order of every GEMM entry point's leading parameters.
#define BARACUDA_AWQ_GEMM_PARAMETERS(Element)                                                              \
  const Element *__restrict__ x, const unsigned *__restrict__ weights, const unsigned *__restrict__ zeros, \
      const void *__restrict__ scales, const Element *__restrict__ bias, Element *__restrict__ y, int m,   \
      int ic, int oc, int group, long long ldx, long long ldy, int scales_bf16, int epilogue
#define BARACUDA_AWQ_GEMM_OPERANDS \
  {x, weights, zeros, scales, bias, y, m, ic, oc, group, ldx, ldy, scales_bf16 != 0, epilogue}

// Finishes and stores y[row][column] and its right neighbour; column is even. kOverlaps: the launch before this one may be
// writing until this thread, or one that it has met since, has waited for it.
template <bool kOverlaps = false, typename Element>
__device__ __forceinline__ void store_output_pair(const AwqGemmOperands<Element>& operands, long long row,
                                                  long long column, float2 sums) {
  if (operands.epilogue != kIdentity && operands.bias != nullptr) {
    const Element* g_bias = kOverlaps ? not_constant(operands.bias) : operands.bias;
    sums.x += to_f32(g_bias[column]);
    sums.y += to_f32(g_bias[column + 1]);
  }
  if (operands.epilogue > kBias) {  // one branch past the code of all: instructions come from memory (H100, 0.1 to 0.3 us)
    sums.x = apply_activation(sums.x, operands.epilogue);
    sums.y = apply_activation(sums.y, operands.epilogue);
  }
  const unsigned pair = pair_from_f32<Element>(sums.x, sums.y);
  Element* destination = operands.y + row * operands.ldy + column;
  if (reinterpret_cast<unsigned long long>(destination) % sizeof(unsigned) == 0) {
    *reinterpret_cast<unsigned*>(destination) = pair;
  } else {  // an odd ldy puts every other row here
    unsigned short* halves = reinterpret_cast<unsigned short*>(destination);
    halves[0] = static_cast<unsigned short>(pair);
    halves[1] = static_cast<unsigned short>(pair >> 16);
  }
}

}  // namespace baracuda
