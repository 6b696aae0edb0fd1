// Stand-in: the blocks of a cluster run side by side in the emulator, which is told how many they are with the launch.
#pragma once

namespace baracuda {

inline unsigned cluster_rank() { return emulator::cluster_rank(); }
inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }
inline void cluster_arrive_relaxed() { emulator::cluster_arrive_relaxed(); }
inline unsigned cluster_address(unsigned s_address, unsigned rank) {
  return emulator::cluster_address(s_address, rank);
}
inline void store_cluster(unsigned address, float2 values) {
  emulator::store_cluster(address, &values, sizeof values);
}

}  // namespace baracuda
