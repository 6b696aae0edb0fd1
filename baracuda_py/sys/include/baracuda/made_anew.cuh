// What the compiler is not to compute ahead of time.
#pragma once

namespace baracuda {

// The value itself; what follows from it takes no registers before this.
__device__ __forceinline__ unsigned made_anew(unsigned value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace baracuda
