// The dynamic shared memory of a block.
#pragma once

namespace baracuda {

// Its first byte, aligned to 16; a launch says how many there are. Every kernel of a module gets the same array.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char s_dynamic[];
  return reinterpret_cast<T*>(s_dynamic);
}

}  // namespace baracuda
