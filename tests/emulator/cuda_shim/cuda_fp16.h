// Stand-in for the toolkit's header: what the sources use of it.
#pragma once

#include "cuda_shim.h"
#include "numbers.h"

struct __half {
  unsigned short bits;
};
inline float __half2float(__half value) { return static_cast<float>(emulator::F16::value(value.bits)); }
inline __half __float2half_rn(float value) { return {emulator::F16::bits(value)}; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
