// What g++ needs to read the CUDA sources: qualifiers, vector types, built-in variables and intrinsics.
//
// Included ahead of every source. Only what the sources use is here, so that a use of anything else fails to
// compile and is then modelled on purpose.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __device__
#define __host__
#define __global__ inline  // so that no code is made for a kernel that a unit does not list
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
// Blocks run one after another, each on one thread of the operating system, and the threads of a block are
// fibres on it: what is local to that thread is shared by the block. At block scope this implies static. Blocks of a
// cluster would share it too, and a launch of one is refused where there is any.
#define __shared__ thread_local

struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using emulator::blockDim;
using emulator::blockIdx;
using emulator::gridDim;
using emulator::threadIdx;

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_collective(emulator::warp_barrier, nullptr); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(sizeof(T) <= sizeof(unsigned long long), "a shuffle moves 4 or 8 bytes");
  emulator::Shuffle shuffle{mask, lane_mask, 0, 0};
  std::memcpy(&shuffle.sent, &value, sizeof value);
  emulator::warp_collective(emulator::shuffle_xor, &shuffle);
  std::memcpy(&value, &shuffle.received, sizeof value);
  return value;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

template <typename To, typename From>
To emulated_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the bits must fit");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) { return emulated_bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulated_bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return emulated_bit_cast<float>(bits); }

// Byte i of the result is byte `selector` nibble i (bits 0 to 2) of the eight in a and b; bit 3 asks for that
// byte's sign bit in all eight places.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned chosen = selector >> (4 * i);
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (chosen & 7))) & 0xff;
    if (chosen & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// |a - b| of each byte.
inline unsigned __vabsdiffu4(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const unsigned of_a = a >> shift & 0xff, of_b = b >> shift & 0xff;
    result |= (of_a > of_b ? of_a - of_b : of_b - of_a) << shift;
  }
  return result;
}
