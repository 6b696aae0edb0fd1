// Barriers of some warps of a block, one PTX instruction each.
#pragma once

namespace baracuda {

// As __syncthreads(), for the `kThreads` threads that call it; whole warps, always the same ones.
template <int kThreads>
__device__ __forceinline__ void partial_barrier() {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// The one of this number, 1 to 15; that without has 1.
template <int kThreads>
__device__ __forceinline__ void partial_barrier(int number) {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

}  // namespace baracuda
