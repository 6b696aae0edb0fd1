// Copies from global to shared memory by the bulk copy engine (sm_90), one PTX instruction each. One thread issues a
// copy; it ends on an mbarrier, to which its bytes have been announced.
#pragma once

namespace baracuda {

// What cuTensorMapEncodeTiled writes: where a tensor lies, and the box that a copy takes of it.
struct alignas(64) TensorMap {
  unsigned long long opaque[16];
};

// The first byte of the dynamic shared memory, aligned to what boxes swizzled over 128 bytes repeat in.
__device__ __forceinline__ unsigned char* dynamic_shared_for_boxes() {
  extern __shared__ __align__(1024) unsigned char s_boxes[];
  return s_boxes;
}

// Addresses and size are multiples of 16.
__device__ __forceinline__ void bulk_copy(unsigned destination, const void* source, unsigned nbytes,
                                          unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "l"(source), "r"(nbytes), "r"(barrier)
      : "memory");
}

// The same, of lines that L2 keeps as `policy` says (cache_policy.cuh).
__device__ __forceinline__ void bulk_copy(unsigned destination, const void* source, unsigned nbytes, unsigned barrier,
                                          unsigned long long policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          destination),
      "l"(source), "r"(nbytes), "r"(barrier), "l"(policy)
      : "memory");
}

// What this thread has seen or written of shared memory lies before what bulk copies, issued behind it, write there.
__device__ __forceinline__ void fence_before_bulk_copy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The box of a tensor of three axes that begins at (x, y, z), x along the innermost; what lies beyond the tensor is 0.
// The destination is a multiple of 128. With rows of 128 bytes and swizzling over as many, the 16 bytes that would lie at
// an address a lie at a ^ (a >> 3 & 0x70).
__device__ __forceinline__ void box_copy(unsigned destination, const TensorMap* map, int x, int y, int z,
                                         unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          destination),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

}  // namespace baracuda
