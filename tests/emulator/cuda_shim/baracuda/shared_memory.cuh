// Stand-in: the launch's dynamic shared memory, which ends at an inaccessible page.
#pragma once

namespace baracuda {

template <typename T>
inline T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared());
}

}  // namespace baracuda
