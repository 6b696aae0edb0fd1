// Stand-in: barriers that the emulator keeps.
#pragma once

namespace baracuda {

template <int kThreads, int kNumber = 1>
inline void partial_barrier() {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  emulator::partial_barrier(kThreads, kNumber);
}
template <int kThreads>
inline void partial_barrier(int number) {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  emulator::partial_barrier(kThreads, number);
}

template <int kThreads, int kNumber>
inline void partial_barrier_arrive() {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  emulator::arrive_at_partial_barrier(kThreads, kNumber);
}

}  // namespace baracuda
