// Storage elements (f16, bf16, f32) and their conversions to and from the f32 that kernels compute in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace baracuda {

__device__ __forceinline__ float to_f32(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_f32(float value) { return value; }

// Rounds to nearest, ties to even; f16 overflows to infinity.
template <typename Element>
__device__ __forceinline__ Element from_f32(float value);
template <>
__device__ __forceinline__ __half from_f32<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ float from_f32<float>(float value) {
  return value;
}

// Two neighbouring 16-bit elements as one 32-bit register, the first in the low half.
template <typename Element>
__device__ __forceinline__ float2 pair_to_f32(unsigned pair);
template <>
__device__ __forceinline__ float2 pair_to_f32<__half>(unsigned pair) {
  return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu))),
                     __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16))));
}
template <>
__device__ __forceinline__ float2 pair_to_f32<__nv_bfloat16>(unsigned pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <typename Element>
__device__ __forceinline__ unsigned pair_from_f32(float low, float high);
template <>
__device__ __forceinline__ unsigned pair_from_f32<__half>(float low, float high) {
  return __half_as_ushort(__float2half_rn(low)) |
         static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
}
template <>
__device__ __forceinline__ unsigned pair_from_f32<__nv_bfloat16>(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// A quantisation scale's element is independent of the activation's, so it is a run-time choice.
__device__ __forceinline__ float2 scale_pair_to_f32(unsigned pair, bool scales_bf16) {
  return scales_bf16 ? pair_to_f32<__nv_bfloat16>(pair) : pair_to_f32<__half>(pair);
}

}  // namespace baracuda
