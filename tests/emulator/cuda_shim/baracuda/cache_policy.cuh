// Stand-in: a policy says nothing here, for there are no caches.
#pragma once

namespace baracuda {

inline unsigned long long evict_first_policy() { return 0; }
inline unsigned long long evict_normal_policy() { return 0; }

inline void load_evict_first_16(unsigned (&words)[4], const void* address, bool present,
                                unsigned long long policy) {
  (void)policy;
  if (!present) return;
  emulator::check_aligned(address, 16);
  std::memcpy(words, address, 16);
}

}  // namespace baracuda
