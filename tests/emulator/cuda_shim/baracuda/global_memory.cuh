// Stand-in: predicated loads; where not `present`, the destination keeps its value.
#pragma once

namespace baracuda {

inline void load_streaming_16(unsigned (&words)[4], const void* address, bool present) {
  if (!present) return;
  emulator::check_aligned(address, 16);
  std::memcpy(words, address, 16);
}

inline void load_streaming_8(unsigned& low, unsigned& high, const void* address, bool present) {
  if (!present) return;
  emulator::check_aligned(address, 8);
  std::memcpy(&low, address, 4);
  std::memcpy(&high, static_cast<const char*>(address) + 4, 4);
}

inline void load_streaming_4(unsigned& word, const void* address, bool present) {
  if (!present) return;
  emulator::check_aligned(address, 4);
  std::memcpy(&word, address, 4);
}

}  // namespace baracuda
