// Kernels with one defect each, and the same without it: what the emulator must find, and must not.
//
// Every kernel runs with one block of 64 threads and kSharedWords words of dynamic shared memory. Without the
// defect it copies in[0 .. 63] to out[0 .. 63] in reverse order.
#include "baracuda/bulk_copy.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/global_memory.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/mma.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/shared_memory.cuh"

using namespace baracuda;

constexpr int kThreads = 64;
constexpr int kSharedWords = 128;

template <bool kDefect>
void no_barrier_before_read(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  if (!kDefect) __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void no_barrier_before_static_read(const unsigned* in, unsigned* out) {
  __shared__ unsigned s_words[kThreads];
  s_words[threadIdx.x] = in[threadIdx.x];
  if (!kDefect) __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void no_barrier_before_reuse(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const unsigned word = s_words[kThreads - 1 - threadIdx.x];
  if (!kDefect) __syncthreads();
  s_words[threadIdx.x] = word;
  out[threadIdx.x] = s_words[threadIdx.x];
}

// Lanes of a warp are not ordered by a shuffle either.
template <bool kDefect>
void shuffle_as_barrier(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x ^ 32] = in[threadIdx.x];
  __syncthreads();
  const unsigned word = s_words[threadIdx.x];
  if (!kDefect) __syncthreads();
  s_words[threadIdx.x] = __shfl_xor_sync(0xffffffffu, word, 31);
  if (!kDefect) __syncthreads();
  out[threadIdx.x] = s_words[kDefect ? threadIdx.x ^ 1 : threadIdx.x];
}

// Each lane passes its word on to its warp's mirror lane, and the block's order is turned by the result's place.
template <bool kDefect>
void no_warp_barrier_before_read(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  if (!kDefect) __syncwarp();
  out[kThreads - 1 - (threadIdx.x ^ 31)] = s_words[threadIdx.x ^ 31];
}

// All lanes read a word that the first one then writes again.
template <bool kDefect>
void no_warp_barrier_before_reuse(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  const unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane;
  const unsigned word = s_words[first];
  if (!kDefect) __syncwarp();
  if (lane == 0) s_words[first] = in[first];
  __syncwarp();
  out[kThreads - 1 - threadIdx.x] = s_words[threadIdx.x] + (word - in[first]);
}

template <bool kDefect>
void warp_barrier_for_another_warp(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  if (kDefect) __syncwarp();
  if (!kDefect) __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void copy_not_waited_for(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  cp_async_4(shared_address(s_words + threadIdx.x), in + threadIdx.x, true);
  cp_async_commit();
  if (!kDefect) cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
  cp_async_wait<0>();
}

template <bool kDefect>
void one_copy_too_many_left_pending(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  for (unsigned half = 0; half < 2; ++half) {
    if (threadIdx.x / 32 == half) cp_async_4(shared_address(s_words + threadIdx.x), in + threadIdx.x, true);
    cp_async_commit();
  }
  cp_async_wait<kDefect ? 1 : 0>();
  __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
  cp_async_wait<0>();
}

template <bool kDefect>
void copy_not_committed(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  cp_async_4(shared_address(s_words + threadIdx.x), in + threadIdx.x, true);
  if (!kDefect) cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void no_barrier_after_wait(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  cp_async_4(shared_address(s_words + threadIdx.x), in + threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!kDefect) __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void ends_with_copies_in_flight(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  cp_async_4(shared_address(s_words + threadIdx.x), in + threadIdx.x, true);
  cp_async_commit();
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (!kDefect) cp_async_wait<0>();
}

template <bool kDefect>
void shared_never_written(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  if (!kDefect || threadIdx.x != 5) s_words[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void read_beside_global(const unsigned* in, unsigned* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x + (kDefect ? 1 : 0)];
}

template <bool kDefect>
void write_beside_global(const unsigned* in, unsigned* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (kDefect && threadIdx.x == 0) out[kThreads] = 0;
}

template <bool kDefect>
void read_past_shared(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s_words[kThreads - 1 - threadIdx.x];
  if (kDefect) out[0] = s_words[kSharedWords];
}

template <bool kDefect>
void write_before_shared(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  if (kDefect && threadIdx.x == 0) s_words[-1] = 0;
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void copy_past_shared(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>() + (kDefect ? kSharedWords - 1 : 0);
  if (threadIdx.x == 0) {
    cp_async_16(shared_address(s_words), in, true);
    cp_async_commit();
    cp_async_wait<0>();
  }
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void copy_to_misaligned(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>() + (kDefect ? 2 : 4);
  if (threadIdx.x == 0) {
    cp_async_16(shared_address(s_words), in, true);
    cp_async_commit();
    cp_async_wait<0>();
  }
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
}

template <bool kDefect>
void misaligned_vector(const unsigned* in, unsigned* out) {
  const uint4 words = *reinterpret_cast<const uint4*>(in + (kDefect ? 2 : 0));
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x] + 0 * words.x;
}

template <bool kDefect>
void misaligned_streaming_load(const unsigned* in, unsigned* out) {
  unsigned words[4];
  load_streaming_16(words, in + (kDefect ? 2 : 0), true);
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x] + 0 * words[0];
}

template <bool kDefect>
void index_outside_array(const unsigned* in, unsigned* out) {
  unsigned words[4] = {};
  const int last = kDefect ? 4 : 3;
  for (int i = 0; i <= last; ++i) words[i] = in[kThreads - 1 - threadIdx.x];
  out[threadIdx.x] = words[threadIdx.x % 4];
}

template <bool kDefect>
void int_overflow(const unsigned* in, unsigned* out) {
  const int large = static_cast<int>(threadIdx.x) * (kDefect ? 1 << 26 : 1);
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x] + (large < 0 ? 1u : 0u);
}

template <bool kDefect>
void barrier_in_a_branch(const unsigned* in, unsigned* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (kDefect && threadIdx.x == 3) return;
  __syncthreads();
}

template <bool kDefect>
void shuffle_in_a_branch(const unsigned* in, unsigned* out) {
  unsigned word = in[kThreads - 1 - threadIdx.x];
  if (!kDefect || threadIdx.x % 2 == 0) word = __shfl_xor_sync(0xffffffffu, word, 2);
  if (!kDefect) word = __shfl_xor_sync(0xffffffffu, word, 2);
  out[threadIdx.x] = word;
}

template <bool kDefect>
void different_warp_instructions(const unsigned* in, unsigned* out) {
  unsigned word = in[kThreads - 1 - threadIdx.x];
  unsigned fragment[4] = {};
  float sums[4] = {};
  if (kDefect && threadIdx.x % 2 == 0) mma_m16n8k16<__half>(sums, fragment, 0, 0);
  word = __shfl_xor_sync(0xffffffffu, word, 0);
  out[threadIdx.x] = word;
}

// The words, and two mbarriers behind them, of one and of `arrivals` arrivals.
struct Bulk {
  unsigned* s_words = dynamic_shared<unsigned>();
  unsigned address = shared_address(s_words);
  unsigned full = address + kThreads * 4;
  unsigned empty = full + 8;

  explicit Bulk(unsigned arrivals = 1, bool fence = true, bool show = true) {
    if (threadIdx.x == 0) {
      mbarrier_init(full, 1);
      mbarrier_init(empty, arrivals);
      if (fence) mbarrier_fence_init();
    }
    if (show) __syncthreads();
  }
  void copy(const unsigned* in, unsigned nbytes = kThreads * 4, unsigned announced = kThreads * 4) const {
    mbarrier_arrive_expecting(full, announced);
    bulk_copy(address, in, nbytes, full);
  }
  unsigned mirrored() const { return s_words[kThreads - 1 - threadIdx.x]; }
};

template <bool kDefect>
void bulk_copy_that_one_warp_does_not_wait_for(const unsigned* in, unsigned* out) {
  const Bulk bulk;
  if (threadIdx.x == 0) bulk.copy(in);
  if (!kDefect || threadIdx.x >= 32) mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

template <bool kDefect>
void mbarrier_without_fence(const unsigned* in, unsigned* out) {
  const Bulk bulk(1, !kDefect);
  if (threadIdx.x == 0) bulk.copy(in);
  mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

template <bool kDefect>
void mbarrier_that_others_are_not_shown(const unsigned* in, unsigned* out) {
  const Bulk bulk(1, true, !kDefect);
  if (threadIdx.x == 0) bulk.copy(in);
  mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

// All read the words, one lane of each warp says so, and the words are copied again, over themselves.
template <bool kWait, bool kWarpBarrier>
void copy_twice(const unsigned* in, unsigned* out) {
  const Bulk bulk(2);
  if (threadIdx.x == 0) bulk.copy(in);
  mbarrier_wait(bulk.full, 0);
  const unsigned first = bulk.mirrored();
  if (kWarpBarrier) __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(bulk.empty);
  if (threadIdx.x == 0) {
    if (kWait) mbarrier_wait(bulk.empty, 0);
    bulk.copy(in);
  }
  mbarrier_wait(bulk.full, 1);
  out[threadIdx.x] = bulk.mirrored() + (first - in[kThreads - 1 - threadIdx.x]);
}
template <bool kDefect>
void bulk_copy_over_words_that_are_read(const unsigned* in, unsigned* out) {
  copy_twice<!kDefect, true>(in, out);
}
template <bool kDefect>
void arrival_ahead_of_other_lanes(const unsigned* in, unsigned* out) {
  copy_twice<true, !kDefect>(in, out);
}

template <bool kDefect>
void more_arrivals_than_a_phase_has(const unsigned* in, unsigned* out) {
  const Bulk bulk;
  if (threadIdx.x == 0) {
    bulk.copy(in);
    if (kDefect) bulk.copy(in);
  }
  mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

template <bool kDefect>
void fewer_bytes_announced_than_come(const unsigned* in, unsigned* out) {
  const Bulk bulk;
  if (threadIdx.x == 0) bulk.copy(in, kThreads * 4, kDefect ? kThreads * 2 : kThreads * 4);
  mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

template <bool kDefect>
void more_bytes_announced_than_come(const unsigned* in, unsigned* out) {
  const Bulk bulk;
  if (threadIdx.x == 0) bulk.copy(in, kThreads * 4, kDefect ? kThreads * 8 : kThreads * 4);
  mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

template <bool kDefect>
void ends_with_bulk_copies_in_flight(const unsigned* in, unsigned* out) {
  const Bulk bulk;
  if (threadIdx.x == 0) bulk.copy(in);
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (!kDefect) mbarrier_wait(bulk.full, 0);
}

template <bool kDefect>
void bulk_copy_of_no_multiple_of_16_bytes(const unsigned* in, unsigned* out) {
  const Bulk bulk;
  constexpr unsigned kBytes = kThreads * 4 - (kDefect ? 4 : 0);
  if (threadIdx.x == 0) bulk.copy(in, kBytes, kBytes);
  mbarrier_wait(bulk.full, 0);
  out[threadIdx.x] = bulk.mirrored();
}

// The second warp writes what it has read back when the first has.
template <bool kDefect>
void no_partial_barrier_before_reuse(const unsigned* in, unsigned* out) {
  unsigned* s_words = dynamic_shared<unsigned>();
  s_words[threadIdx.x] = in[threadIdx.x];
  partial_barrier<kThreads>();
  const unsigned word = s_words[kThreads - 1 - threadIdx.x];
  if (!kDefect) partial_barrier<kThreads>();
  s_words[threadIdx.x] = word;
  out[threadIdx.x] = s_words[threadIdx.x];
}

template <bool kDefect>
void partial_barrier_that_a_warp_does_not_reach(const unsigned* in, unsigned* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (!kDefect || threadIdx.x < 32) partial_barrier<kThreads>();
}

template <bool kDefect>
void arrival_that_nobody_waits_for(const unsigned* in, unsigned* out) {
  out[threadIdx.x] = in[kThreads - 1 - threadIdx.x];
  if (threadIdx.x < 32) {
    partial_barrier_arrive<kThreads, 2>();
  } else if (!kDefect) {
    partial_barrier<kThreads, 2>();
  }
}

#define DEFECT(name)                                                                                        \
  extern "C" __global__ void name##_sound(const unsigned* in, unsigned* out) { name<false>(in, out); }      \
  extern "C" __global__ void name##_defect(const unsigned* in, unsigned* out) { name<true>(in, out); }

DEFECT(no_barrier_before_read)
DEFECT(no_barrier_before_static_read)
DEFECT(no_barrier_before_reuse)
DEFECT(shuffle_as_barrier)
DEFECT(no_warp_barrier_before_read)
DEFECT(no_warp_barrier_before_reuse)
DEFECT(warp_barrier_for_another_warp)
DEFECT(copy_not_waited_for)
DEFECT(one_copy_too_many_left_pending)
DEFECT(copy_not_committed)
DEFECT(no_barrier_after_wait)
DEFECT(ends_with_copies_in_flight)
DEFECT(shared_never_written)
DEFECT(read_beside_global)
DEFECT(write_beside_global)
DEFECT(read_past_shared)
DEFECT(write_before_shared)
DEFECT(copy_past_shared)
DEFECT(copy_to_misaligned)
DEFECT(misaligned_vector)
DEFECT(misaligned_streaming_load)
DEFECT(index_outside_array)
DEFECT(int_overflow)
DEFECT(barrier_in_a_branch)
DEFECT(shuffle_in_a_branch)
DEFECT(different_warp_instructions)
DEFECT(bulk_copy_that_one_warp_does_not_wait_for)
DEFECT(mbarrier_without_fence)
DEFECT(mbarrier_that_others_are_not_shown)
DEFECT(bulk_copy_over_words_that_are_read)
DEFECT(arrival_ahead_of_other_lanes)
DEFECT(more_arrivals_than_a_phase_has)
DEFECT(fewer_bytes_announced_than_come)
DEFECT(more_bytes_announced_than_come)
DEFECT(ends_with_bulk_copies_in_flight)
DEFECT(bulk_copy_of_no_multiple_of_16_bytes)
DEFECT(no_partial_barrier_before_reuse)
DEFECT(partial_barrier_that_a_warp_does_not_reach)
DEFECT(arrival_that_nobody_waits_for)

// Blocks that count on running in order: whatever order a GPU takes, the sum is another one.
extern "C" __global__ void last_block_wins(const unsigned* in, unsigned* out) { out[threadIdx.x] = in[blockIdx.x]; }
