// awq_gemm, second pass of split-K: y = epilogue(partials[0] + partials[1] + ...), in that order.
//
// grid ceil(m * oc / 2 / kReduceThreads) or fewer, kReduceThreads threads, no shared memory.
#include "baracuda/awq_gemm.cuh"

using namespace baracuda;

BARACUDA_CONSTANT(kReduceThreads, 256);

template <typename Element>
__device__ __forceinline__ void awq_gemm_reduce(const AwqGemmOperands<Element>& operands,
                                                const float* partials, int split_k) {
  const long long pairs_per_row = operands.oc / 2;
  const long long pairs = pairs_per_row * operands.m;
  const long long stride = static_cast<long long>(gridDim.x) * kReduceThreads;
  const float2* g_pairs = reinterpret_cast<const float2*>(partials);  // (split_k, m, oc / 2)
  long long index = static_cast<long long>(blockIdx.x) * kReduceThreads + threadIdx.x;
#pragma unroll 1
  for (; index < pairs; index += stride) {
    float2 sum = g_pairs[index];
#pragma unroll 4
    for (int split = 1; split < split_k; ++split) {
      const float2 partial = g_pairs[split * pairs + index];
      sum.x += partial.x;
      sum.y += partial.y;
    }
    const long long row = index / pairs_per_row;
    store_output_pair(operands, row, (index - row * pairs_per_row) * 2, sum);
  }
}

#define BARACUDA_ENTRY(name, Element)                                                                     \
  extern "C" __global__ void __launch_bounds__(kReduceThreads)                                            \
      name(const float* __restrict__ partials, const Element* __restrict__ bias, Element* __restrict__ y, \
           int m, int oc, int split_k, long long ldy, int epilogue) {                                     \
    AwqGemmOperands<Element> operands = {};                                                               \
    operands.bias = bias;                                                                                 \
    operands.y = y;                                                                                       \
    operands.m = m;                                                                                       \
    operands.oc = oc;                                                                                     \
    operands.ldy = ldy;                                                                                   \
    operands.epilogue = epilogue;                                                                         \
    awq_gemm_reduce(operands, partials, split_k);                                                         \
  }

BARACUDA_ENTRY(awq_gemm_reduce_sm80_f16, __half)
BARACUDA_ENTRY(awq_gemm_reduce_sm80_bf16, __nv_bfloat16)
