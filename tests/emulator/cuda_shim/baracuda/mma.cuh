// Stand-in: the tensor-core instructions as functions of a whole warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace baracuda {

inline void ldmatrix_x4(unsigned (&fragment)[4], unsigned address) {
  emulator::MatrixLoad load{fragment, address};
  emulator::warp_collective(emulator::ldmatrix_x4, &load);
}

inline void ldmatrix_x4_transposed(unsigned (&fragment)[4], unsigned address) {
  emulator::MatrixLoad load{fragment, address};
  emulator::warp_collective(emulator::ldmatrix_x4_transposed, &load);
}

template <typename Element>
inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
inline void mma_m16n8k16<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emulator::MatrixMultiply multiply{d, a, {b0, b1}};
  emulator::warp_collective(emulator::mma_m16n8k16_f16, &multiply);
}

template <>
inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emulator::MatrixMultiply multiply{d, a, {b0, b1}};
  emulator::warp_collective(emulator::mma_m16n8k16_bf16, &multiply);
}

}  // namespace baracuda
