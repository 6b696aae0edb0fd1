// Stand-in: launches follow one another; what one may not do before it waits, the checks know.
#pragma once

namespace baracuda {

inline void grid_dependency_wait() { emulator::wait_for_launch_before(); }
inline void grid_dependency_release() {}

}  // namespace baracuda
