// Stand-in: mbarriers that the emulator keeps, at the addresses where they would lie.
#pragma once

namespace baracuda {

inline void mbarrier_init(unsigned barrier, unsigned arrivals) { emulator::init_mbarrier(barrier, arrivals); }
inline void mbarrier_fence_init() { emulator::fence_mbarriers(); }
inline void mbarrier_arrive(unsigned barrier) { emulator::arrive_at_mbarrier(barrier, 0); }
inline void mbarrier_arrive_expecting(unsigned barrier, unsigned nbytes) {
  emulator::arrive_at_mbarrier(barrier, nbytes);
}
inline void mbarrier_wait(unsigned barrier, unsigned parity) { emulator::wait_at_mbarrier(barrier, parity); }
inline bool mbarrier_ended_for_warp(unsigned barrier, unsigned parity) {
  static_cast<void>(barrier);
  static_cast<void>(parity);
  return false;
}
inline void mbarrier_wait_for_warp(unsigned barrier, unsigned parity) { mbarrier_wait(barrier, parity); }

}  // namespace baracuda
