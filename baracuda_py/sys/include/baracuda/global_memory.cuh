// Predicated loads of global memory, one PTX load each.
//
// The data is read-only and read once, so it does not displace what the L1 cache holds. Where not `present`,
// nothing is read and the destination keeps its value: cheaper than a branch, and than clearing it first.
#pragma once

namespace baracuda {

__device__ __forceinline__ void load_streaming_16(unsigned (&words)[4], const void* address, bool present) {
  asm volatile(
      "{ .reg .pred present; setp.ne.s32 present, %5, 0; "
      "@present ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
      : "l"(address), "r"(static_cast<int>(present)));
}

__device__ __forceinline__ void load_streaming_8(unsigned& low, unsigned& high, const void* address,
                                                 bool present) {
  asm volatile(
      "{ .reg .pred present; setp.ne.s32 present, %3, 0; "
      "@present ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2]; }"
      : "+r"(low), "+r"(high)
      : "l"(address), "r"(static_cast<int>(present)));
}

__device__ __forceinline__ void load_streaming_4(unsigned& word, const void* address, bool present) {
  asm volatile(
      "{ .reg .pred present; setp.ne.s32 present, %2, 0; "
      "@present ld.global.nc.L1::no_allocate.u32 %0, [%1]; }"
      : "+r"(word)
      : "l"(address), "r"(static_cast<int>(present)));
}

}  // namespace baracuda
