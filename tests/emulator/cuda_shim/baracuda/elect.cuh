// Stand-in: a function of a whole warp.
#pragma once

namespace baracuda {

inline bool elect_one() {
  bool chosen = false;
  emulator::warp_collective(emulator::elect, &chosen);
  return chosen;
}

// Loads have come at once here.
inline bool warp_has_loaded(unsigned loaded) { return loaded != 0; }

}  // namespace baracuda
