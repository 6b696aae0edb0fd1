// What a warp decides as a whole.
#pragma once

namespace baracuda {

// Whether this lane is the one, always the same, that a whole warp has chosen. It shows the compiler that one lane takes
// the branch: operands that all lanes have the same stay in uniform registers, and what takes such operands needs no loop
// over lanes.
__device__ __forceinline__ bool elect_one() {
  unsigned chosen;
  asm volatile("{ .reg .pred chosen; elect.sync _|chosen, 0xffffffff; selp.u32 %0, 1, 0, chosen; }" : "=r"(chosen));
  return chosen != 0;
}

// True, once all lanes of a warp have their `loaded`. It is not 0, which the compiler must not know.
__device__ __forceinline__ bool warp_has_loaded(unsigned loaded) {
  unsigned all;
  asm volatile(
      "{ .reg .pred all; setp.ne.u32 all, %1, 0; vote.sync.all.pred all, all, 0xffffffff; selp.u32 %0, 1, 0, all; }"
      : "=r"(all)
      : "r"(loaded)
      : "memory");
  return all != 0;
}

}  // namespace baracuda
