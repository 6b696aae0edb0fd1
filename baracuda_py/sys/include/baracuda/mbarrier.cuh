// Barriers in shared memory that count arrivals and copied bytes (sm_90), one PTX instruction each.
//
// A barrier is 8 bytes, aligned to 8. A phase of it ends when as many threads have arrived as `mbarrier_init` said and
// all bytes that were announced have come; then the next phase begins. Phases are told apart by their parity: the first
// has 0. Addresses are those in the shared window.
#pragma once

namespace baracuda {

__device__ __forceinline__ void mbarrier_init(unsigned barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Shows this thread's inits to the copies that it issues.
__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces bytes that copies will bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expecting(unsigned barrier, unsigned nbytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(nbytes) : "memory");
}

// Waits until the phase of this parity has ended; at once where the one before it, of the other parity, is running.
__device__ __forceinline__ void mbarrier_wait(unsigned barrier, unsigned parity) {
  unsigned ended;
  do {  // the hardware suspends the thread for a while each time
    asm volatile(
        "{ .reg .pred ended; mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2; selp.u32 %0, 1, 0, ended; }"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (ended == 0);
}

// Of a warp, whose lanes call these together. The compiler is shown that they agree: behind a branch or a loop on what each
// lane has seen, it does not use uniform registers.

// Whether the phase of this parity has ended, at once: after true, a wait may be left out.
__device__ __forceinline__ bool mbarrier_ended_for_warp(unsigned barrier, unsigned parity) {
  unsigned ended;
  asm volatile(
      "{ .reg .pred ended; mbarrier.test_wait.parity.shared::cta.b64 ended, [%1], %2; "
      "vote.sync.all.pred ended, ended, 0xffffffff; selp.u32 %0, 1, 0, ended; }"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}

__device__ __forceinline__ void mbarrier_wait_for_warp(unsigned barrier, unsigned parity) {
  unsigned ended;
  do {
    asm volatile(
        "{ .reg .pred ended; mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2; "
        "vote.sync.all.pred ended, ended, 0xffffffff; selp.u32 %0, 1, 0, ended; }"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (ended == 0);
}

}  // namespace baracuda
