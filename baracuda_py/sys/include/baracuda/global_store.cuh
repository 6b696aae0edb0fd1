// Wide stores to global memory, one PTX store each: of an assignment the compiler may make several.
#pragma once

namespace baracuda {

// `address` is a multiple of 16.
__device__ __forceinline__ void store_16(void* address, const unsigned (&words)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

}  // namespace baracuda
