// Stand-in: a function of a whole warp.
#pragma once

namespace baracuda {

inline bool elect_one() {
  bool chosen = false;
  emulator::warp_collective(emulator::elect, &chosen);
  return chosen;
}

}  // namespace baracuda
