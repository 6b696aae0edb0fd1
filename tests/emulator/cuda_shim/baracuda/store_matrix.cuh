// Stand-in: a store of fragments as a function of a whole warp.
#pragma once

namespace baracuda {

inline void stmatrix_x4_transposed(unsigned address, const unsigned (&fragments)[4]) {
  emulator::MatrixStore store{fragments, address};
  emulator::warp_collective(emulator::stmatrix_x4_transposed, &store);
}

}  // namespace baracuda
