// Kernels of clusters of two blocks, with one defect each, and the same without it.
//
// Every kernel runs with blocks of 64 threads and as many pairs of words of dynamic shared memory. Without the defect,
// block b copies the pairs of the other block of its cluster, b ^ 1, to its own place of the output in reverse order.
#include "baracuda/cluster.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/shared_memory.cuh"

using namespace baracuda;

constexpr unsigned kThreads = 64;

__device__ unsigned peer() { return cluster_rank() ^ 1; }
__device__ float2 own(const float2* in) { return in[blockIdx.x * kThreads + threadIdx.x]; }
__device__ void put(float2* out, float2 pair) { out[blockIdx.x * kThreads + kThreads - 1 - threadIdx.x] = pair; }
__device__ void copy_apart(const float2* in, float2* out) { put(out, in[(blockIdx.x ^ 1) * kThreads + threadIdx.x]); }

// Where pair `index` of a block is.
__device__ unsigned address_in(unsigned rank, unsigned index) {
  return cluster_address(shared_address(dynamic_shared<float2>() + index), rank);
}
__device__ float2 received() { return dynamic_shared<float2>()[threadIdx.x]; }
__device__ void send(float2 pair) { store_cluster(address_in(peer(), threadIdx.x), pair); }
__device__ void meet() {
  cluster_arrive();
  cluster_wait();
}
__device__ void begin() {
  cluster_arrive_relaxed();
  cluster_wait();
}

template <bool kDefect>
void store_to_a_block_that_has_not_begun(const float2* in, float2* out) {
  if (!kDefect) begin();
  send(own(in));
  meet();
  put(out, received());
}

// What one warp has waited for, the other one is told.
template <bool kDefect>
void begun_for_a_warp_that_is_not_told(const float2* in, float2* out) {
  cluster_arrive_relaxed();
  if (threadIdx.x < 32) cluster_wait();
  if (!kDefect) __syncthreads();
  if (threadIdx.x >= 32) send(own(in));
  if (threadIdx.x >= 32) cluster_wait();
  if (threadIdx.x < 32) send(own(in));
  meet();
  put(out, received());
}

template <bool kDefect>
void block_that_ends_ahead_of_stores(const float2* in, float2* out) {
  begin();
  if (cluster_rank() == 0) send(own(in));
  if (!kDefect || cluster_rank() == 0) meet();
  if (!kDefect && cluster_rank() == 1) put(out, received());
  if (kDefect || cluster_rank() == 0) copy_apart(in, out);
}

template <bool kDefect>
void store_to_a_block_that_has_ended(const float2* in, float2* out) {
  begin();
  copy_apart(in, out);
  if (kDefect && cluster_rank() == 1) return;
  meet();
  if (cluster_rank() == 0) send(own(in));
  meet();
}

template <bool kDefect>
void relaxed_arrival_ahead_of_the_end(const float2* in, float2* out) {
  begin();
  if (cluster_rank() == 0) send(own(in));
  if (kDefect) {
    begin();
  } else {
    meet();
  }
  copy_apart(in, out);
}

template <bool kDefect>
void block_barrier_in_place_of_the_clusters(const float2* in, float2* out) {
  dynamic_shared<float2>()[threadIdx.x] = {0, 0};
  meet();
  send(own(in));
  __syncthreads();
  if (!kDefect) meet();
  put(out, received());
  meet();
}

template <bool kDefect>
void store_over_words_that_are_read(const float2* in, float2* out) {
  begin();
  for (int round = 0; round < 3; ++round) {
    send(own(in));
    meet();
    put(out, received());
    __syncthreads();
    if (!kDefect) meet();
  }
  meet();
}

template <bool kDefect>
void two_stores_to_the_same_words(const float2* in, float2* out) {
  begin();
  if (!kDefect || cluster_rank() == 0) send(own(in));
  if (kDefect && cluster_rank() == 1) dynamic_shared<float2>()[threadIdx.x] = own(in);
  meet();
  if (kDefect) return copy_apart(in, out);
  put(out, received());
}

template <bool kDefect>
void relaxed_arrival_behind_a_store(const float2* in, float2* out) {
  begin();
  send(own(in));
  if (kDefect) {
    cluster_arrive_relaxed();
  } else {
    cluster_arrive();
  }
  cluster_wait();
  put(out, received());
  meet();
}

template <bool kDefect>
void store_behind_the_arrival(const float2* in, float2* out) {
  begin();
  if (!kDefect) send(own(in));
  cluster_arrive();
  if (kDefect) send(own(in));
  cluster_wait();
  put(out, received());
  meet();
}

template <bool kDefect>
void read_ahead_of_the_wait(const float2* in, float2* out) {
  dynamic_shared<float2>()[threadIdx.x] = {0, 0};
  meet();
  send(own(in));
  cluster_arrive();
  if (kDefect) put(out, received());
  cluster_wait();
  put(out, received());
}

// An arrival orders nothing for the lanes of a warp: the wait does.
template <bool kDefect>
void lane_ahead_of_the_wait(const float2* in, float2* out) {
  dynamic_shared<float2>()[threadIdx.x ^ 1] = in[(blockIdx.x ^ 1) * kThreads + (threadIdx.x ^ 1)];
  cluster_arrive();
  if (kDefect) put(out, received());
  cluster_wait();
  put(out, received());
}

// Nor does it for what they do between both.
template <bool kDefect>
void lane_behind_the_arrival(const float2* in, float2* out) {
  cluster_arrive();
  dynamic_shared<float2>()[threadIdx.x ^ 1] = in[(blockIdx.x ^ 1) * kThreads + (threadIdx.x ^ 1)];
  cluster_wait();
  if (!kDefect) __syncwarp();
  put(out, received());
}

// A warp that ends counts as arrived; what it wrote, its end shows to no one.
template <bool kDefect>
void end_in_place_of_an_arrival(const float2* in, float2* out) {
  begin();
  send(own(in));
  if (threadIdx.x >= 32) {
    copy_apart(in, out);
    if (kDefect) return;
    cluster_arrive();
    return;
  }
  meet();
  copy_apart(in, out);
  if (received().x != in[(blockIdx.x ^ 1) * kThreads + threadIdx.x].x) put(out, {0, 0});
  const float2 other = dynamic_shared<float2>()[threadIdx.x ^ 32];
  if (other.x != in[(blockIdx.x ^ 1) * kThreads + (threadIdx.x ^ 32)].x) put(out, {0, 0});
  meet();
}

template <bool kDefect>
void arrival_without_a_wait(const float2* in, float2* out) {
  cluster_arrive();
  if (!kDefect) cluster_wait();
  cluster_arrive();
  cluster_wait();
  copy_apart(in, out);
}

template <bool kDefect>
void wait_without_an_arrival(const float2* in, float2* out) {
  if (!kDefect) cluster_arrive();
  cluster_wait();
  copy_apart(in, out);
}

// An arrival takes whole warps.
template <bool kDefect>
void arrival_in_a_branch(const float2* in, float2* out) {
  copy_apart(in, out);
  if (kDefect && cluster_rank() == 1 && threadIdx.x == 3) return;
  meet();
}

template <bool kDefect>
void warp_that_never_arrives(const float2* in, float2* out) {
  copy_apart(in, out);
  if (kDefect && cluster_rank() == 1 && threadIdx.x < 32) __syncthreads();
  meet();
}

template <bool kDefect>
void mbarrier_of_the_other_block(const float2* in, float2* out) {
  copy_apart(in, out);
  const unsigned barrier = shared_address(dynamic_shared<float2>());
  if (threadIdx.x == 0 && !(kDefect && cluster_rank() == 1)) mbarrier_init(barrier, kThreads);
  meet();
  mbarrier_arrive(barrier);
  mbarrier_wait(barrier, 0);
}

template <bool kDefect>
void partial_barrier_of_the_other_block(const float2* in, float2* out) {
  copy_apart(in, out);
  if (!kDefect || threadIdx.x / 32 == cluster_rank()) partial_barrier<kThreads>();
}

// A block may write to its own memory that way.
template <bool kDefect>
void own_words_as_the_clusters(const float2* in, float2* out) {
  const unsigned of_lane = threadIdx.x ^ (kDefect ? 1 : 0);
  store_cluster(address_in(cluster_rank(), of_lane), in[(blockIdx.x ^ 1) * kThreads + of_lane]);
  put(out, received());
}

template <bool kDefect>
void rank_that_is_none(const float2* in, float2* out) {
  begin();
  store_cluster(address_in(kDefect ? 2 : peer(), threadIdx.x), own(in));
  meet();
  put(out, received());
}

template <bool kDefect>
void store_past_shared(const float2* in, float2* out) {
  begin();
  store_cluster(address_in(peer(), threadIdx.x) + (kDefect ? 8 : 0), own(in));
  meet();
  put(out, received());
}

template <bool kDefect>
void store_to_misaligned(const float2* in, float2* out) {
  begin();
  send(own(in));
  if (kDefect && threadIdx.x == 5) store_cluster(address_in(peer(), threadIdx.x) - 4, own(in));
  meet();
  put(out, received());
}

template <bool kDefect>
void address_of_the_cluster_in_a_copy(const float2* in, float2* out) {
  begin();
  const float2* const from = in + (blockIdx.x ^ 1) * kThreads + threadIdx.x;
  for (int half = 0; half < 2; ++half) {
    const unsigned address = shared_address(dynamic_shared<float2>() + threadIdx.x) + 4 * half;
    cp_async_4(kDefect ? cluster_address(address, cluster_rank()) : address, &from->x + half, true);
  }
  cp_async_commit();
  cp_async_wait<0>();
  put(out, received());
}

template <bool kDefect>
void words_of_the_peer_by_a_pointer(const float2* in, float2* out) {
  float2* s_pairs = dynamic_shared<float2>();
  s_pairs[threadIdx.x] = own(in);
  auto* const shown = reinterpret_cast<float2**>(out + blockIdx.x / 2 * 2 * kThreads);
  if (threadIdx.x == 0 && cluster_rank() == 0) *shown = s_pairs;
  meet();
  if (kDefect && cluster_rank() == 1) s_pairs = *shown;
  const float x = s_pairs[threadIdx.x].x;
  meet();
  copy_apart(in, out);
  if (x != own(in).x) put(out, {0, 0});
}

template <bool kDefect>
void write_before_the_second_blocks_shared(const float2* in, float2* out) {
  copy_apart(in, out);
  if (kDefect && cluster_rank() == 1 && threadIdx.x == 0) dynamic_shared<float>()[-1] = 0;
}

#define DEFECT(name)                                                                               \
  extern "C" __global__ void __cluster_dims__(2, 1, 1) name##_sound(const float2* in, float2* out) { \
    name<false>(in, out);                                                                          \
  }                                                                                                \
  extern "C" __global__ void __cluster_dims__(2, 1, 1) name##_defect(const float2* in, float2* out) { \
    name<true>(in, out);                                                                           \
  }

DEFECT(store_to_a_block_that_has_not_begun)
DEFECT(begun_for_a_warp_that_is_not_told)
DEFECT(block_that_ends_ahead_of_stores)
DEFECT(store_to_a_block_that_has_ended)
DEFECT(relaxed_arrival_ahead_of_the_end)
DEFECT(block_barrier_in_place_of_the_clusters)
DEFECT(store_over_words_that_are_read)
DEFECT(two_stores_to_the_same_words)
DEFECT(relaxed_arrival_behind_a_store)
DEFECT(store_behind_the_arrival)
DEFECT(read_ahead_of_the_wait)
DEFECT(lane_ahead_of_the_wait)
DEFECT(lane_behind_the_arrival)
DEFECT(end_in_place_of_an_arrival)
DEFECT(arrival_without_a_wait)
DEFECT(wait_without_an_arrival)
DEFECT(arrival_in_a_branch)
DEFECT(warp_that_never_arrives)
DEFECT(mbarrier_of_the_other_block)
DEFECT(partial_barrier_of_the_other_block)
DEFECT(own_words_as_the_clusters)
DEFECT(rank_that_is_none)
DEFECT(store_past_shared)
DEFECT(store_to_misaligned)
DEFECT(address_of_the_cluster_in_a_copy)
DEFECT(words_of_the_peer_by_a_pointer)
DEFECT(write_before_the_second_blocks_shared)
