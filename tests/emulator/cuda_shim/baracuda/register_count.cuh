// Stand-in: a thread has as many registers as it needs.
#pragma once

namespace baracuda {

template <int kCount>
inline void lower_register_count() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256, "what the instruction takes");
}

template <int kCount>
inline void raise_register_count() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256, "what the instruction takes");
}

inline int thread_read_here() { return static_cast<int>(emulator::threadIdx.x); }

}  // namespace baracuda
