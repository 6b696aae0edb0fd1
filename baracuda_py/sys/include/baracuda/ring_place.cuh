// A place in a ring whose places have an mbarrier each, by number or by address.
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

// The same in shared memory, where items, and barriers, follow each other: multiplications at the end alone.
struct RingAddress {
  const unsigned char* s_item;
  unsigned s_barrier;
  int left;  // places until the end
  unsigned parity = 0;

  __device__ __forceinline__ void advance(unsigned item_bytes, int places) {
    s_item += item_bytes;
    s_barrier += kBarrierBytes;
    if (--left == 0) {
      s_item -= places * item_bytes;
      s_barrier -= places * kBarrierBytes;
      left = places;
      parity ^= 1;
    }
  }
};

}  // namespace baracuda
