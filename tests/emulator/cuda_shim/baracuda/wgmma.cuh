// Stand-in: a warpgroup's instructions as those of its warps, which do what they do when they are waited for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

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

inline float wgmma_settled(float d) { return d; }

// Compile for the sizes that wgmma.cuh has.
template <typename Element, int kRegisters>
inline void wgmma_m64k16(float (&d)[kRegisters], const unsigned (&a)[4], unsigned long long b) {
  constexpr auto kind = std::is_same_v<Element, __half> ? emulator::Operands::kF16 : emulator::Operands::kBf16;
  static_assert(kRegisters == 8 || (kRegisters % 16 == 0 && kRegisters <= 128));
  emulator::issue_wgmma({d, a, b, 2 * kRegisters, kind, true, {}});
}

template <typename Element, int kRegisters>
inline void wgmma_m64k16_anew(float (&d)[kRegisters], const unsigned (&a)[4], unsigned long long b) {
  constexpr auto kind = std::is_same_v<Element, __half> ? emulator::Operands::kF16 : emulator::Operands::kBf16;
  static_assert(kRegisters == 8 || kRegisters == 16 || kRegisters == 32);
  emulator::issue_wgmma({d, a, b, 2 * kRegisters, kind, false, {}});
}

}  // namespace baracuda
