// Values that all lanes of a warp have, one PTX instruction.
#pragma once

namespace baracuda {

// The value itself, which all lanes have the same; shows the compiler so, which then keeps it in a uniform register.
__device__ __forceinline__ unsigned warp_uniform(unsigned value) {
  unsigned result;
  asm volatile("shfl.sync.idx.b32 %0, %1, 0, 31, 0xffffffff;" : "=r"(result) : "r"(value));
  return result;
}

}  // namespace baracuda
