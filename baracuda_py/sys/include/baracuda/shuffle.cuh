// Values of other lanes of a warp, one PTX instruction.
#pragma once

namespace baracuda {

// The value that `lane` has. All 32 lanes call it together. Not volatile, so that the compiler may take it out of both sides of
// a branch, as it does mma.
__device__ __forceinline__ float value_of_lane(float value, int lane) {
  float result;
  asm("shfl.sync.idx.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(result) : "f"(value), "r"(lane));
  return result;
}

}  // namespace baracuda
