// Stand-in: arithmetic on two packed 16-bit elements, each rounded once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace baracuda {

template <unsigned kMask, unsigned kBits>
inline unsigned mask_or(unsigned word) {
  return (word & kMask) | kBits;
}

template <typename Element>
inline unsigned fma_pair(unsigned a, unsigned b, unsigned c);

template <>
inline unsigned fma_pair<__half>(unsigned a, unsigned b, unsigned c) {
  return emulator::fma_pair_f16(a, b, c);
}

template <>
inline unsigned fma_pair<__nv_bfloat16>(unsigned a, unsigned b, unsigned c) {
  return emulator::fma_pair_bf16(a, b, c);
}

template <typename Element>
inline unsigned mul_pair(unsigned a, unsigned b);

template <>
inline unsigned mul_pair<__half>(unsigned a, unsigned b) {
  return emulator::fma_pair_f16(a, b, 0x80008000u);
}

template <>
inline unsigned mul_pair<__nv_bfloat16>(unsigned a, unsigned b) {
  return emulator::fma_pair_bf16(a, b, 0x80008000u);
}

}  // namespace baracuda
