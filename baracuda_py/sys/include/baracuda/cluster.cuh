// Blocks of a cluster (sm_90), which run at the same time and can write to each other's shared memory; one PTX instruction
// each. A kernel marked `__cluster_dims__(2, 1, 1)` has clusters of two; its grid's x is a multiple of 2.
//
// A block's memory is there from when a cluster_wait() has shown that the block has begun, until it ends: one that is
// written to must not end before a cluster_wait() behind the last write.
#pragma once

namespace baracuda {

// The place of this block in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The barrier of all threads of a cluster, in two halves, which every thread that has not ended calls in turn, a warp
// together; a thread that ends counts as arrived, but shows no one what it wrote. What a thread did before it arrives is
// seen by all that have waited.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Arrives, and shows nothing but that this block has begun.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Where block `rank` has what this one has at `s_address`; store_cluster() takes it, and nothing else does.
__device__ __forceinline__ unsigned cluster_address(unsigned s_address, unsigned rank) {
  unsigned address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(s_address), "r"(rank));
  return address;
}

// The address is a multiple of 8.
__device__ __forceinline__ void store_cluster(unsigned address, float2 values) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(values.x), "f"(values.y) : "memory");
}

}  // namespace baracuda
