// Matrix instructions of a warpgroup (sm_90a), one PTX instruction each. The 128 threads of four neighbouring warps, the
// first a multiple of four, call them together. They run on after the call: until they have been waited for, neither d nor
// a nor the shared memory of b may be touched.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace baracuda {

// Operand b in shared memory: rows of 128 bytes of input channels, swizzled over as many as a tensor map does it, the first
// at `address`, a multiple of 1024.
__device__ __forceinline__ unsigned long long wgmma_rows(unsigned address) {
  constexpr unsigned long long kSwizzle128 = 1ull << 62;
  constexpr unsigned long long kEightRows = 1024ull >> 4 << 32;  // from eight rows to the next
  return kSwizzle128 | kEightRows | 1ull << 16 | (address & 0x3ffffu) >> 4;
}

// The same rows, `step` times 32 bytes on: k16 steps of 16-bit elements, k32 steps of 8-bit ones.
__device__ __forceinline__ unsigned long long wgmma_step(unsigned long long rows, int step) {
  return (rows & ~0xffffffffull) | (static_cast<unsigned>(rows) + 2 * step);
}

// Orders the registers that the instructions behind it use after what was done with them before.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` of the newest committed groups run.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from taking sums before the wait that is ahead of this.
template <int kRegisters>
__device__ __forceinline__ void wgmma_settle(float (&d)[kRegisters]) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// One of them, while others run: the register itself must not be written then.
__device__ __forceinline__ float wgmma_settled(float d) {
  float settled;
  asm volatile("mov.f32 %0, %1;" : "=f"(settled) : "f"(d) : "memory");
  return settled;
}

// d (64 x 2 kRegisters, f32) += a (64 x 16) * b (16 x 2 kRegisters). A warp has 16 rows of a and d, laid out as
// mma_m16n8k16's, d in n8 tiles.
template <typename Element, int kRegisters>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[kRegisters], const unsigned (&a)[4], unsigned long long b);

// The same with d as 0, whatever it holds.
template <typename Element, int kRegisters>
__device__ __forceinline__ void wgmma_m64k16_anew(float (&d)[kRegisters], const unsigned (&a)[4], unsigned long long b);

// Lists of registers of d: in an instruction's text, and as its operands.
#define BARACUDA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BARACUDA_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define BARACUDA_NAMES_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BARACUDA_NAMES_2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define BARACUDA_NAMES_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BARACUDA_NAMES_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define BARACUDA_NAMES_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BARACUDA_NAMES_6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define BARACUDA_NAMES_7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define BARACUDA_NAMES_32 BARACUDA_NAMES_0 ", " BARACUDA_NAMES_1
#define BARACUDA_NAMES_48 BARACUDA_NAMES_32 ", " BARACUDA_NAMES_2
#define BARACUDA_NAMES_64 BARACUDA_NAMES_48 ", " BARACUDA_NAMES_3
#define BARACUDA_NAMES_80 BARACUDA_NAMES_64 ", " BARACUDA_NAMES_4
#define BARACUDA_NAMES_96 BARACUDA_NAMES_80 ", " BARACUDA_NAMES_5
#define BARACUDA_NAMES_112 BARACUDA_NAMES_96 ", " BARACUDA_NAMES_6
#define BARACUDA_NAMES_128 BARACUDA_NAMES_112 ", " BARACUDA_NAMES_7

#define BARACUDA_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BARACUDA_SUMS_8 BARACUDA_SUMS_4(0), BARACUDA_SUMS_4(4)
#define BARACUDA_SUMS_16(i) BARACUDA_SUMS_4(i), BARACUDA_SUMS_4(i + 4), BARACUDA_SUMS_4(i + 8), BARACUDA_SUMS_4(i + 12)
#define BARACUDA_SUMS_32 BARACUDA_SUMS_16(0), BARACUDA_SUMS_16(16)
#define BARACUDA_SUMS_48 BARACUDA_SUMS_32, BARACUDA_SUMS_16(32)
#define BARACUDA_SUMS_64 BARACUDA_SUMS_48, BARACUDA_SUMS_16(48)
#define BARACUDA_SUMS_80 BARACUDA_SUMS_64, BARACUDA_SUMS_16(64)
#define BARACUDA_SUMS_96 BARACUDA_SUMS_80, BARACUDA_SUMS_16(80)
#define BARACUDA_SUMS_112 BARACUDA_SUMS_96, BARACUDA_SUMS_16(96)
#define BARACUDA_SUMS_128 BARACUDA_SUMS_112, BARACUDA_SUMS_16(112)

#define BARACUDA_WGMMA_AS(function, adds, Element, type, columns, names, a_names, b_name, ...)                         \
  template <>                                                                                                          \
  __device__ __forceinline__ void function<Element, columns / 2>(float(&d)[columns / 2], const unsigned (&a)[4],       \
                                                                 unsigned long long b) {                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names "}, {" a_names "}, " \
                 b_name ", " adds ", 1, 1, 0;"                                                                         \
                 : __VA_ARGS__                                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                \
  }
#define BARACUDA_WGMMA(...) BARACUDA_WGMMA_AS(wgmma_m64k16, "1", __VA_ARGS__)
#define BARACUDA_WGMMA_ANEW(...) BARACUDA_WGMMA_AS(wgmma_m64k16_anew, "0", __VA_ARGS__)

#define BARACUDA_WGMMAS(Element, type)                                                                        \
  BARACUDA_WGMMA(Element, type, 16, BARACUDA_NAMES_8, "%8, %9, %10, %11", "%12", BARACUDA_SUMS_8)             \
  BARACUDA_WGMMA(Element, type, 32, BARACUDA_NAMES_0, "%16, %17, %18, %19", "%20", BARACUDA_SUMS_16(0))       \
  BARACUDA_WGMMA(Element, type, 64, BARACUDA_NAMES_32, "%32, %33, %34, %35", "%36", BARACUDA_SUMS_32)         \
  BARACUDA_WGMMA(Element, type, 96, BARACUDA_NAMES_48, "%48, %49, %50, %51", "%52", BARACUDA_SUMS_48)         \
  BARACUDA_WGMMA(Element, type, 128, BARACUDA_NAMES_64, "%64, %65, %66, %67", "%68", BARACUDA_SUMS_64)        \
  BARACUDA_WGMMA(Element, type, 160, BARACUDA_NAMES_80, "%80, %81, %82, %83", "%84", BARACUDA_SUMS_80)        \
  BARACUDA_WGMMA(Element, type, 192, BARACUDA_NAMES_96, "%96, %97, %98, %99", "%100", BARACUDA_SUMS_96)       \
  BARACUDA_WGMMA(Element, type, 224, BARACUDA_NAMES_112, "%112, %113, %114, %115", "%116", BARACUDA_SUMS_112) \
  BARACUDA_WGMMA(Element, type, 256, BARACUDA_NAMES_128, "%128, %129, %130, %131", "%132", BARACUDA_SUMS_128)

#define BARACUDA_WGMMAS_ANEW(Element, type)                                                                   \
  BARACUDA_WGMMA_ANEW(Element, type, 16, BARACUDA_NAMES_8, "%8, %9, %10, %11", "%12", BARACUDA_SUMS_8)        \
  BARACUDA_WGMMA_ANEW(Element, type, 32, BARACUDA_NAMES_0, "%16, %17, %18, %19", "%20", BARACUDA_SUMS_16(0))  \
  BARACUDA_WGMMA_ANEW(Element, type, 64, BARACUDA_NAMES_32, "%32, %33, %34, %35", "%36", BARACUDA_SUMS_32)

BARACUDA_WGMMAS_ANEW(__half, "f16")
BARACUDA_WGMMAS_ANEW(__nv_bfloat16, "bf16")
BARACUDA_WGMMAS(__half, "f16")
BARACUDA_WGMMAS(__nv_bfloat16, "bf16")

}  // namespace baracuda
