// Stand-in: all lanes have it already.
#pragma once

namespace baracuda {

inline unsigned warp_uniform(unsigned value) { return value; }

}  // namespace baracuda
