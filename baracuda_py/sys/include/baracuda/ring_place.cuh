// A place in a ring whose places have an mbarrier each.
#pragma once

namespace baracuda {

constexpr unsigned kBarrierBytes = 8;

// Goes round the places of a ring; the phase of a place's barrier has the parity `parity`.
struct RingPlace {
  int place = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance(int places) {
    if (++place == places) {
      place = 0;
      parity ^= 1;
    }
  }
};

}  // namespace baracuda
