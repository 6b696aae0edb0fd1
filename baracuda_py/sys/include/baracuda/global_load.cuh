// Loads of global memory that the launch before may have written, one PTX load each, past L1: behind a wait for that launch
// (grid_dependency.cuh), of this thread or of one that it has met since. A plain load of what is not written here may become
// one through the read-only cache, which is not held back by a wait.
#pragma once

namespace baracuda {

__device__ __forceinline__ float load_coherent(const float* address) {
  float value;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
  return value;
}

// At a multiple of 16 bytes.
__device__ __forceinline__ float4 load_coherent(const float4* address) {
  float4 value;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

// Of f16 or bf16.
template <typename Element>
__device__ __forceinline__ Element load_coherent(const Element* address) {
  unsigned short bits;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(bits) : "l"(address) : "memory");
  return *reinterpret_cast<const Element*>(&bits);
}

// The same address, by plain loads that the compiler does not move to the read-only cache: for a kernel whose registers
// load_coherent() would spill.
template <typename Value>
__device__ __forceinline__ const Value* not_constant(const Value* address) {
  asm volatile("" : "+l"(address) : : "memory");
  return address;
}

}  // namespace baracuda
