// Barriers of some warps of a block, one PTX instruction each.
#pragma once

namespace baracuda {

// As __syncthreads(), for the `kThreads` threads that call it; whole warps, always the same ones. kNumber is 1 to 15.
template <int kThreads, int kNumber = 1>
__device__ __forceinline__ void partial_barrier() {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  asm volatile("bar.sync %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}
template <int kThreads>
__device__ __forceinline__ void partial_barrier(int number) {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

// Arrives without waiting: kThreads are those that arrive and those that wait.
template <int kThreads, int kNumber>
__device__ __forceinline__ void partial_barrier_arrive() {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  asm volatile("bar.arrive %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}

}  // namespace baracuda
