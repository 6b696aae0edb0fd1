// Stores of matrix fragments to shared memory (sm_90), one PTX instruction each.
#pragma once

namespace baracuda {

// Four 8x8 matrices of 16-bit elements, transposed. Lane 4 r + t has, of matrix i in `fragments[i]`, rows 2 t and 2 t + 1 of
// its column r; lane 8 i + r has, in `address`, where the 16 bytes of its row r go.
__device__ __forceinline__ void stmatrix_x4_transposed(unsigned address, const unsigned (&fragments)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(fragments[0]), "r"(fragments[1]), "r"(fragments[2]), "r"(fragments[3])
               : "memory");
}

}  // namespace baracuda
