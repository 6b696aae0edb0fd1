// The dynamic shared memory of a block, and loads from it.
#pragma once

namespace baracuda {

// Its first byte, aligned to 16; a launch says how many there are. Every kernel of a module gets the same array.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char s_dynamic[];
  return reinterpret_cast<T*>(s_dynamic);
}

// Loads that the compiler leaves where they are written, of 8 and 16 bytes, aligned to as many.
__device__ __forceinline__ void load_in_order(unsigned (&words)[2], const unsigned char* s_words) {
  asm volatile("ld.volatile.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(s_words)))
               : "memory");
}
__device__ __forceinline__ void load_in_order(unsigned (&words)[4], const unsigned char* s_words) {
  asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(s_words)))
               : "memory");
}

}  // namespace baracuda
