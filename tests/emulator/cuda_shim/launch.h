// What the parts of the emulator share: the launch that runs, and the thread of it that does.
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator.h"

namespace emulator {

constexpr int kPoison = 0xff;  // NaN in every floating format
constexpr std::size_t kPage = 4096;

// As library.py declares them.
struct Range {
  const char* begin;
  std::size_t nbytes;
};

struct Launch {
  const Entry* module;  // the entries of the module; Entry `kernel` of them runs
  long long kernel;
  void* const* parameters;
  Extent grid, block;
  unsigned shared_nbytes;
  int in_order;  // blocks, warps and lanes by rising index, instead of as the seed says
  std::uint64_t seed;
  const Range* unfinished;  // what the launch before may still read or write, until it has been waited for
  std::size_t unfinished_count;
  int cluster;  // blocks, along x
};

struct Report {
  Extent block, thread;
  std::uint64_t address;  // of an access that faulted, or 0
  char message[512];      // empty when the launch succeeded
};

struct Copy {
  unsigned destination;
  const void* source;
  int nbytes;
  bool valid;
};

enum class State { kReady, kAtBarrier, kAtClusterBarrier, kAtPartialBarrier, kAtMbarrier, kAtCollective, kEnded };

struct Thread {
  void* stack_pointer;
  State state;
  int index, block;               // in its cluster
  Extent place;                   // in its block
  std::vector<Copy> copies;       // in flight, oldest first; a group's end is an index into them
  std::vector<std::size_t> ends;  // of the committed groups
  int mbarrier;                   // the index of the one that it waits at
  int partial_barrier;            // the number of the one that it waits at
  std::vector<WarpgroupMultiply> multiplies;   // that run, oldest first; a group's end is an index into them
  std::vector<std::size_t> multiply_ends;      // of the committed groups
  bool fenced;                                 // since the last wait for one
};

extern const Launch* launch;
extern Report* report;
extern Thread* running;  // null while the scheduler runs
Thread& running_lane(int lane);  // of the running thread's warp

bool block_ended(int block);

// Zeroed memory in which every `period`-th page, from the first, is inaccessible; null when there is none.
char* map_guarded(std::size_t nbytes, std::size_t period);

// Whether an address lies in or beside the threads' stacks, or the dynamic shared memory (and then where, seen
// from its first byte).
bool in_stacks(const char* address);
bool in_shared_arena(const char* address, long* offset);

// Stops the running thread until the scheduler finds it ready again, or wakes what waits at an mbarrier.
void suspend(State state);
void wake_from_mbarrier(int mbarrier);

// The cluster's mbarriers. Copies land as late as they may: when no thread can go on, one of those that wait, at an
// mbarrier for which `has_copies`, is let go on, and lands them. `mbarrier_left_over` says what is wrong with a block's
// when the cluster has ended.
void forget_mbarriers();
bool has_copies(int mbarrier);
const char* mbarrier_left_over(int block);

// The shared memory of the cluster's blocks. `place_shared` is once a launch; it is false when there is no memory.
bool place_shared();
void poison_shared();
bool wrote_beside_shared(int block);
bool has_static_shared();

// While one exists, a fault of the running thread ends the launch.
class FaultHandlers {
 public:
  FaultHandlers();
  ~FaultHandlers();
  FaultHandlers(const FaultHandlers&) = delete;
  FaultHandlers& operator=(const FaultHandlers&) = delete;

 private:
  stack_t stack_before_;
};

}  // namespace emulator
