// Asynchronous copies from global to shared memory, one PTX instruction each.
#pragma once

namespace baracuda {

// What ld.shared, cp.async and ldmatrix take: the offset in the shared window.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes, both addresses 16-byte aligned; where not `valid`, reads nothing and writes zeros.
__device__ __forceinline__ void cp_async_16(unsigned destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}

// As cp_async_16; L2 gets all of the line of 128 bytes.
__device__ __forceinline__ void cp_async_16_of_line(unsigned destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Copies 4 bytes, both addresses 4-byte aligned; where not `valid`, reads nothing and writes zeros.
__device__ __forceinline__ void cp_async_4(unsigned destination, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 4 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's newest committed groups are still in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace baracuda
