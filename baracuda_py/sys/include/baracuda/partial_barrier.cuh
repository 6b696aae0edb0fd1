// A barrier of some warps of a block, one PTX instruction.
#pragma once

namespace baracuda {

// As __syncthreads(), for the `kThreads` threads that call it with this `id`, below 15; whole warps, always the same ones.
template <int kThreads>
__device__ __forceinline__ void partial_barrier(int id = 0) {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  asm volatile("bar.sync %0, %1;" ::"r"(id + 1), "n"(kThreads) : "memory");
}

}  // namespace baracuda
