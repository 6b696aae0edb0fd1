// Registers of a thread, moved between warpgroups (sm_90a), one PTX instruction each. All warps of a warpgroup call them;
// `kCount` is a multiple of 8, and the sum over the block what it was launched with, or less.
#pragma once

namespace baracuda {

template <int kCount>
__device__ __forceinline__ void lower_register_count() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Waits until others have given up as many.
template <int kCount>
__device__ __forceinline__ void raise_register_count() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// threadIdx.x, read here and not before: what is computed from it holds no registers over a loop ahead of it.
__device__ __forceinline__ int thread_read_here() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

}  // namespace baracuda
