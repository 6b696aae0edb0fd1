// Stand-in: the launch's dynamic shared memory, which ends at an inaccessible page.
#pragma once

namespace baracuda {

template <typename T>
inline T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared());
}

inline void load_in_order(unsigned (&words)[2], const unsigned char* s_words) {
  for (int i = 0; i < 2; ++i) words[i] = reinterpret_cast<const unsigned*>(s_words)[i];
}
inline void load_in_order(unsigned (&words)[4], const unsigned char* s_words) {
  for (int i = 0; i < 4; ++i) words[i] = reinterpret_cast<const unsigned*>(s_words)[i];
}

}  // namespace baracuda
