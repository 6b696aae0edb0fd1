// Stand-in: see wgmma.cuh.
#pragma once

#include "baracuda/wgmma.cuh"

namespace baracuda {

template <int kRegisters>
inline void wgmma_m64k32_e4m3(float (&d)[kRegisters], const unsigned (&a)[4], unsigned long long b, bool adds);

template <>
inline void wgmma_m64k32_e4m3<16>(float (&d)[16], const unsigned (&a)[4], unsigned long long b, bool adds) {
  emulator::issue_wgmma({d, a, b, 32, emulator::Operands::kE4m3, adds, {}});
}
template <>
inline void wgmma_m64k32_e4m3<32>(float (&d)[32], const unsigned (&a)[4], unsigned long long b, bool adds) {
  emulator::issue_wgmma({d, a, b, 64, emulator::Operands::kE4m3, adds, {}});
}
template <>
inline void wgmma_m64k32_e4m3<64>(float (&d)[64], const unsigned (&a)[4], unsigned long long b, bool adds) {
  emulator::issue_wgmma({d, a, b, 128, emulator::Operands::kE4m3, adds, {}});
}

}  // namespace baracuda
