// One lane of a warp, one PTX instruction.
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

}  // namespace baracuda
