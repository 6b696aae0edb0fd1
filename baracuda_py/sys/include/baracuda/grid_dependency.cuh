// Programmatic dependent launch (sm_90), one PTX instruction each. Both do nothing in a launch without that attribute.
#pragma once

namespace baracuda {

// Waits until the launch before has ended, and its writes can be read.
__device__ __forceinline__ void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the launch behind begin, as far as there is room for it.
__device__ __forceinline__ void grid_dependency_release() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace baracuda
