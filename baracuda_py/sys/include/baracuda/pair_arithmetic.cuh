// Arithmetic on two 16-bit elements packed in a register, one PTX instruction each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace baracuda {

// (word & kMask) | kBits. In C++ the compiler makes two instructions of it, since only one constant fits in
// either.
template <unsigned kMask, unsigned kBits>
__device__ __forceinline__ unsigned mask_or(unsigned word) {
  constexpr int kAndThenOr = 0xea;  // lop3 truth table of (a & b) | c
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(word), "n"(kMask), "n"(kBits), "n"(kAndThenOr));
  return result;
}

// a * b + c in both halves, rounded once each.
template <typename Element>
__device__ __forceinline__ unsigned fma_pair(unsigned a, unsigned b, unsigned c);

template <>
__device__ __forceinline__ unsigned fma_pair<__half>(unsigned a, unsigned b, unsigned c) {
  unsigned result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

template <>
__device__ __forceinline__ unsigned fma_pair<__nv_bfloat16>(unsigned a, unsigned b, unsigned c) {
  unsigned result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// a * b in both halves.
template <typename Element>
__device__ __forceinline__ unsigned mul_pair(unsigned a, unsigned b);

template <>
__device__ __forceinline__ unsigned mul_pair<__half>(unsigned a, unsigned b) {
  unsigned result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

template <>
__device__ __forceinline__ unsigned mul_pair<__nv_bfloat16>(unsigned a, unsigned b) {
  unsigned result;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

}  // namespace baracuda
