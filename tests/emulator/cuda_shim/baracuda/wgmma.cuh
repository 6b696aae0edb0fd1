// Stand-in: a warpgroup's instructions as those of its warps, which do what they do when they are waited for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace baracuda {

inline unsigned long long wgmma_rows(unsigned address) {
  return 1ull << 62 | 1024ull >> 4 << 32 | 1ull << 16 | (address & 0x3ffffu) >> 4;
}

inline unsigned long long wgmma_step(unsigned long long rows, int step) {
  return (rows & ~0xffffffffull) | (static_cast<unsigned>(rows) + 2 * step);
}

inline void wgmma_fence() { emulator::fence_wgmma(); }
inline void wgmma_commit() { emulator::commit_wgmma(); }

template <int kPending>
inline void wgmma_wait() {
  emulator::wait_for_wgmma(kPending);
}

template <int kRegisters>
inline void wgmma_settle(float (&d)[kRegisters]) {
  static_cast<void>(d);
}

template <typename Element, int kRegisters>
inline void wgmma_m64k16(float (&d)[kRegisters], const unsigned (&a)[4], unsigned long long b);

template <>
inline void wgmma_m64k16<__half, 16>(float (&d)[16], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 32, emulator::Operands::kF16, true, {}});
}
template <>
inline void wgmma_m64k16<__half, 32>(float (&d)[32], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 64, emulator::Operands::kF16, true, {}});
}
template <>
inline void wgmma_m64k16<__half, 64>(float (&d)[64], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 128, emulator::Operands::kF16, true, {}});
}
template <>
inline void wgmma_m64k16<__half, 128>(float (&d)[128], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 256, emulator::Operands::kF16, true, {}});
}
template <>
inline void wgmma_m64k16<__nv_bfloat16, 16>(float (&d)[16], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 32, emulator::Operands::kBf16, true, {}});
}
template <>
inline void wgmma_m64k16<__nv_bfloat16, 32>(float (&d)[32], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 64, emulator::Operands::kBf16, true, {}});
}
template <>
inline void wgmma_m64k16<__nv_bfloat16, 64>(float (&d)[64], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 128, emulator::Operands::kBf16, true, {}});
}
template <>
inline void wgmma_m64k16<__nv_bfloat16, 128>(float (&d)[128], const unsigned (&a)[4], unsigned long long b) {
  emulator::issue_wgmma({d, a, b, 256, emulator::Operands::kBf16, true, {}});
}

}  // namespace baracuda
