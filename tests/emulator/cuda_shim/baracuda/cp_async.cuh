// Stand-in: asynchronous copies land when the emulator says so, at the latest where they are waited for.
#pragma once

namespace baracuda {

inline unsigned shared_address(const void* pointer) { return emulator::shared_address(pointer); }

inline void cp_async_16(unsigned destination, const void* source, bool valid) {
  emulator::copy_async(destination, source, 16, valid);
}

inline void cp_async_16_of_line(unsigned destination, const void* source, bool valid) {
  cp_async_16(destination, source, valid);
}

inline void cp_async_4(unsigned destination, const void* source, bool valid) {
  emulator::copy_async(destination, source, 4, valid);
}

inline void cp_async_commit() { emulator::commit_copies(); }

template <int kPending>
inline void cp_async_wait() {
  emulator::wait_for_copies(kPending);
}

}  // namespace baracuda
