// How L2 keeps lines, and loads of global memory that say so, a PTX instruction each.
#pragma once

namespace baracuda {

// For data that is read once: what else is in L2 stays.
__device__ __forceinline__ unsigned long long evict_first_policy() {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ unsigned long long evict_normal_policy() {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Where not `present`, nothing is read and the destination keeps its value.
__device__ __forceinline__ void load_evict_first_16(unsigned (&words)[4], const void* address, bool present,
                                                    unsigned long long policy) {
  asm volatile(
      "{ .reg .pred present; setp.ne.s32 present, %5, 0; "
      "@present ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %6; }"
      : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
      : "l"(address), "r"(static_cast<int>(present)), "l"(policy));
}

}  // namespace baracuda
