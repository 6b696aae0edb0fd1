// Stand-in: the same loads.
#pragma once

namespace baracuda {

inline float load_coherent(const float* address) { return *address; }
inline float4 load_coherent(const float4* address) { return *address; }

template <typename Element>
inline Element load_coherent(const Element* address) {
  return *address;
}

}  // namespace baracuda
