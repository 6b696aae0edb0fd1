// Stand-in: copies that land when the emulator says so, at the latest where their mbarrier is waited for.
#pragma once

namespace baracuda {

struct alignas(64) TensorMap {
  unsigned long long opaque[16];
};

inline unsigned char* dynamic_shared_for_boxes() { return static_cast<unsigned char*>(emulator::dynamic_shared()); }

inline void bulk_copy(unsigned destination, const void* source, unsigned nbytes, unsigned barrier) {
  emulator::copy_bulk(destination, source, nbytes, barrier);
}
inline void bulk_copy(unsigned destination, const void* source, unsigned nbytes, unsigned barrier,
                      unsigned long long policy) {
  static_cast<void>(policy);
  emulator::copy_bulk(destination, source, nbytes, barrier);
}
inline void fence_before_bulk_copy() { emulator::fence_before_bulk_copies(); }

inline void box_copy(unsigned destination, const TensorMap* map, int x, int y, int z, unsigned barrier) {
  emulator::copy_box(destination, map->opaque, x, y, z, barrier);
}

}  // namespace baracuda
