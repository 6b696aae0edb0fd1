// Stand-in: the same store.
#pragma once

namespace baracuda {

inline void store_16(void* address, const unsigned (&words)[4]) {
  emulator::check_aligned(address, 16);
  std::memcpy(address, words, 16);
}

}  // namespace baracuda
