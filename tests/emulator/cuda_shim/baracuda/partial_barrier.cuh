// Stand-in: barriers that the emulator keeps.
#pragma once

namespace baracuda {

template <int kThreads>
inline void partial_barrier(int id = 0) {
  static_assert(kThreads % 32 == 0, "warps arrive as a whole");
  emulator::partial_barrier(kThreads, id);
}

}  // namespace baracuda
