// Stand-in: the same loads.
#pragma once

namespace baracuda {

inline float load_coherent(const float* address) { return *address; }

template <typename Element>
inline Element load_coherent(const Element* address) {
  return *address;
}

}  // namespace baracuda
