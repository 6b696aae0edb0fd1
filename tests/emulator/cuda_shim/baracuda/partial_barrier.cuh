// Stand-in: barriers that the emulator keeps.
#pragma once

namespace baracuda {

template <int kThreads>
inline void partial_barrier() {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  emulator::partial_barrier(kThreads, 1);
}

template <int kThreads>
inline void partial_barrier(int number) {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  emulator::partial_barrier(kThreads, number);
}

}  // namespace baracuda
