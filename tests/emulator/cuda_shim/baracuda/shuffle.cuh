// Stand-in: a shuffle as a function of a whole warp.
#pragma once

namespace baracuda {

inline float value_of_lane(float value, int lane) {
  emulator::Shuffle shuffle{0xffffffffu, lane, 0, 0};
  std::memcpy(&shuffle.sent, &value, sizeof value);
  emulator::warp_collective(emulator::shuffle_index, &shuffle);
  std::memcpy(&value, &shuffle.received, sizeof value);
  return value;
}

}  // namespace baracuda
