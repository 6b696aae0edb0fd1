// Runs one launch: clusters, of one block where a kernel has none, one after another, the threads of a cluster as
// fibres that leave off only at barriers and warp collectives.
//
// A warp runs until all its lanes wait or have ended, then another one does, so that a warp gets as far ahead of
// the others as the barriers allow. Which cluster, warp and lane comes next is drawn from the launch's seed.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <utility>

#include "checks.h"
#include "launch.h"

namespace emulator {

Extent threadIdx, blockIdx, blockDim, gridDim;

const Launch* launch;
Report* report;
Thread* running;

namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kStackPeriod = kStackBytes + kPage;
static_assert(kStackBytes % kPage == 0, "guards are whole pages");

struct Warp {
  WarpFunction function;
  void* operands[kWarpLanes];
  int arrived;
  int cluster_arrivals, cluster_waits;
};

struct Random {
  std::uint64_t state;

  // splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
  std::uint64_t next() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[next() % i]);
  }
};

constexpr int kBarriers = 16;  // of a block; number 0 is the one of __syncthreads()

struct Block {
  Extent index;
  int at_barrier, ended;
  int at_partial_barrier[kBarriers];
  Clock passed_on[kBarriers];  // by those who arrive and do not wait
};

Random order;
Thread threads[kMaxThreads];  // of the cluster's blocks one behind another, as are warps
Warp warps[kMaxThreads / kWarpLanes];
Block blocks[kMaxBlocks];
int thread_count, block_threads;
int cluster_phases;                         // of the cluster's barrier, that have ended
Clock cluster_gathered, cluster_released;  // what those who arrive pass on: in this phase, and in the last
void* scheduler_stack_pointer;
char* stacks;  // one every kStackPeriod bytes, an inaccessible page below each

// Saves the callee-saved registers and continues where `to` was left.
extern "C" void emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size emulator_switch, . - emulator_switch
)");
#else
#error "the switch between fibres is written for x86-64"
#endif

[[noreturn]] void abandon() {
  suspend(State::kEnded);
  __builtin_unreachable();
}

void record(const Extent& thread, const char* format, va_list arguments) {
  report->block = blockIdx;
  report->thread = thread;
  std::vsnprintf(report->message, sizeof report->message, format, arguments);
}

__attribute__((format(printf, 2, 3))) void record(const Extent& thread, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(thread, format, arguments);
  va_end(arguments);
}

bool failed() { return report->message[0] != 0; }

// Makes threadIdx and blockIdx those of a thread.
void be(int index) {
  threadIdx = threads[index].place;
  blockIdx = blocks[threads[index].block].index;
}

void run_kernel() {
  launch->module[launch->kernel].call(launch->parameters);
  if (!running->copies.empty()) fail("the thread ends with asynchronous copies in flight");
  if (!running->multiplies.empty()) fail("the thread ends while matrix instructions run");
  ++blocks[running->block].ended;
  abandon();
}

void prepare(int index) {
  Thread& thread = threads[index];
  thread.index = index;
  thread.block = index / block_threads;
  const unsigned linear = static_cast<unsigned>(index - thread.block * block_threads);
  thread.place = {linear % blockDim.x, linear / blockDim.x % blockDim.y, linear / (blockDim.x * blockDim.y)};
  thread.state = State::kReady;
  thread.copies.clear();
  thread.ends.clear();
  thread.multiplies.clear();
  thread.multiply_ends.clear();
  thread.fenced = false;
  // What emulator_switch pops: six registers and the address it returns to. Above it the return address that
  // run_kernel never uses, so that its frame is aligned as after a call.
  void** top = reinterpret_cast<void**>(stacks + (index + 1) * kStackPeriod);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(run_kernel);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}

// Runs the lanes of a warp until none of them can go on; whether any could.
bool run_warp(int warp) {
  std::vector<int> lanes(kWarpLanes);
  std::iota(lanes.begin(), lanes.end(), warp * kWarpLanes);
  if (!launch->in_order) order.shuffle(lanes);
  bool any = false;
  for (bool ran = true; ran;) {
    ran = false;
    for (const int lane : lanes) {
      if (lane >= thread_count || threads[lane].state != State::kReady) continue;
      be(lane);
      running = &threads[lane];
      emulator_switch(&scheduler_stack_pointer, running->stack_pointer);
      running = nullptr;
      any = ran = true;
      if (failed()) return true;
    }
  }
  return any;
}

int ended_threads() {
  int ended = 0;
  for (int i = 0; i < launch->cluster; ++i) ended += blocks[i].ended;
  return ended;
}

void record_deadlock() {
  for (int i = 0; i < thread_count; ++i) {
    be(i);
    if (threads[i].state == State::kAtCollective) {
      return record(threadIdx, "waits in a warp instruction that not all lanes of its warp reach");
    }
  }
  for (int i = 0; i < thread_count; ++i) {
    be(i);
    if (threads[i].state == State::kAtMbarrier) {
      return record(threadIdx, "waits for an mbarrier whose phase never ends");
    }
    if (threads[i].state == State::kAtPartialBarrier) {
      return record(threadIdx, "waits at a partial barrier that some of its threads do not reach");
    }
    if (threads[i].state == State::kAtClusterBarrier) {
      return record(threadIdx, "waits in cluster_wait() for threads that have neither arrived nor ended");
    }
    if (threads[i].state != State::kAtBarrier) continue;
    return record(threadIdx, "waits at __syncthreads(), which %d of %d threads have left the kernel without",
                  blocks[threads[i].block].ended, block_threads);
  }
}

// Lets one thread go on that waits for copies, which it lands then; whether there was one.
bool let_copies_land() {
  std::vector<int> waiting;
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state == State::kAtMbarrier && has_copies(threads[i].mbarrier)) waiting.push_back(i);
  }
  if (waiting.empty()) return false;
  threads[launch->in_order ? waiting[0] : waiting[order.next() % waiting.size()]].state = State::kReady;
  return true;
}

bool warp_ended(int warp) {
  const Thread* const first = threads + warp * kWarpLanes;
  return std::all_of(first, first + kWarpLanes, [](const Thread& one) { return one.state == State::kEnded; });
}

// Ends the phase of the cluster's barrier at which all warps have arrived that have not ended; whether it has.
bool open_cluster_barrier() {
  for (int warp = 0; warp < thread_count / kWarpLanes; ++warp) {
    if (warps[warp].cluster_arrivals == cluster_phases && !warp_ended(warp)) return false;
  }
  ++cluster_phases;
  cluster_released = std::move(cluster_gathered);
  cluster_gathered.clear();
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state == State::kAtClusterBarrier) threads[i].state = State::kReady;
  }
  return true;
}

// Opens the barriers whose threads have all come; whether there was one.
bool open_barriers() {
  bool any = false;
  for (int i = 0; i < launch->cluster; ++i) {
    if (blocks[i].at_barrier < block_threads) continue;
    blocks[i].at_barrier = 0;
    pass_barrier(i);
    for (int thread = 0; thread < block_threads; ++thread) threads[i * block_threads + thread].state = State::kReady;
    any = true;
  }
  return any || (launch->cluster > 1 && open_cluster_barrier());
}

void check_end(int block) {
  blockIdx = blocks[block].index;
  if (const char* left_over = mbarrier_left_over(block)) record({0, 0, 0}, "%s", left_over);
  for (const int arrived : blocks[block].at_partial_barrier) {
    if (arrived != 0) record({0, 0, 0}, "the block ends with arrivals at a partial barrier that nobody waits for");
  }
  if (const int warp = warp_whose_writes_are_unseen(block); warp >= 0) {
    record({0, 0, 0}, "warp %d of the cluster wrote to the block's memory when the block might have ended", warp);
  }
  if (wrote_beside_shared(block)) {
    record({0, 0, 0}, "the block wrote beside its %u bytes of dynamic shared memory", launch->shared_nbytes);
  }
}

// `first` is the first of its blocks.
void run_cluster(const Extent& first) {
  for (int i = 0; i < launch->cluster; ++i) {
    blocks[i] = {};
    blocks[i].index = {first.x + static_cast<unsigned>(i), first.y, first.z};
  }
  cluster_phases = 0;
  cluster_gathered.clear();
  begin_cluster(launch->cluster, block_threads);
  forget_mbarriers();
  for (Warp& warp : warps) warp.arrived = warp.cluster_arrivals = warp.cluster_waits = 0;
  for (int i = 0; i < thread_count; ++i) prepare(i);
  std::vector<int> warp_order((thread_count + kWarpLanes - 1) / kWarpLanes);
  std::iota(warp_order.begin(), warp_order.end(), 0);
  while (ended_threads() < thread_count) {
    bool ran = false;
    if (!launch->in_order) order.shuffle(warp_order);
    for (const int warp : warp_order) {
      ran |= run_warp(warp);
      if (failed()) return;
    }
    if (!open_barriers() && !ran && !let_copies_land()) return record_deadlock();
  }
  for (int i = 0; i < launch->cluster && !failed(); ++i) check_end(i);
}

// Why the launch is none; null when it is one.
const char* refusal() {
  if (launch->cluster == 1) return nullptr;
  if (launch->cluster != kMaxBlocks) return "clusters of 2 blocks along x are emulated, and no others";
  const auto blocks_x = static_cast<unsigned>(launch->cluster);
  if (gridDim.x % blocks_x != 0) return "the grid's x is no multiple of the cluster's blocks";
  if (block_threads % kWarpLanes != 0) return "a cluster's blocks are emulated if their warps are whole";
  if (thread_count > kMaxThreads) return "a cluster is emulated if it has 1024 threads at most";
  if (has_static_shared()) return "a cluster is emulated if its module has no static shared memory";
  return nullptr;
}

}  // namespace

bool in_stacks(const char* address) {
  return address >= stacks && address < stacks + kMaxThreads * kStackPeriod;
}

// -- what kernels call ---------------------------------------------------------------------------------------

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(threadIdx, format, arguments);
  va_end(arguments);
  abandon();
}

Thread& running_lane(int lane) { return threads[running_thread_of_lane(lane)]; }
int running_thread() { return running->index; }
int running_thread_of_lane(int lane) { return running_thread() / kWarpLanes * kWarpLanes + lane; }

void suspend(State state) {
  running->state = state;
  emulator_switch(&running->stack_pointer, scheduler_stack_pointer);
}

void block_barrier() {
  ++blocks[running->block].at_barrier;
  suspend(State::kAtBarrier);
}

unsigned cluster_rank() { return static_cast<unsigned>(running->block); }

namespace {

template <bool kReleases>
void cluster_arrival(void* const (&)[kWarpLanes]) {
  const int index = running_thread() / kWarpLanes;
  Warp& warp = warps[index];
  if (warp.cluster_arrivals != warp.cluster_waits) fail("a warp arrives at the cluster's barrier again without a wait");
  ++warp.cluster_arrivals;
  note_cluster_arrival(index, kReleases, cluster_gathered);
}

void cluster_wait_of_warp(void* const (&)[kWarpLanes]) {
  Warp& warp = warps[running_thread() / kWarpLanes];
  if (warp.cluster_waits == warp.cluster_arrivals) fail("a warp waits at the cluster's barrier without an arrival");
  ++warp.cluster_waits;
}

}  // namespace

void cluster_arrive() { warp_collective(cluster_arrival<true>, nullptr); }
void cluster_arrive_relaxed() { warp_collective(cluster_arrival<false>, nullptr); }
void cluster_wait() {
  warp_collective(cluster_wait_of_warp, nullptr);
  if (warps[running_thread() / kWarpLanes].cluster_waits > cluster_phases) suspend(State::kAtClusterBarrier);
  note_cluster_wait(running_thread(), cluster_released);
}

bool block_ended(int block) { return blocks[block].ended == block_threads; }

void wait_for_launch_before() { note_launch_before_ended(running_thread()); }

namespace {

// Counts one more thread; whether it was the last.
bool count_at_partial_barrier(int count, int number) {
  if (number < 1 || number >= kBarriers) fail("there is no partial barrier %d", number);
  int& arrived = blocks[running->block].at_partial_barrier[number];
  if (++arrived < count) return false;
  arrived = 0;
  return true;
}

void open_partial_barrier(int number) {
  std::vector<int> passing;
  for (int i = running->block * block_threads; i < (running->block + 1) * block_threads; ++i) {
    if (threads[i].state == State::kAtPartialBarrier && threads[i].partial_barrier == number) passing.push_back(i);
  }
  pass_partial_barrier(passing);
  Clock& passed_on = blocks[running->block].passed_on[number];
  for (const int i : passing) {
    note_acquire(i, passed_on);
    threads[i].state = State::kReady;
  }
  passed_on.clear();
}

}  // namespace

void partial_barrier(int count, int number) {
  running->partial_barrier = number;
  if (!count_at_partial_barrier(count, number)) return suspend(State::kAtPartialBarrier);
  running->state = State::kAtPartialBarrier;
  open_partial_barrier(number);
}

void arrive_at_partial_barrier(int count, int number) {
  note_release(running_thread(), blocks[running->block].passed_on[number]);
  if (count_at_partial_barrier(count, number)) open_partial_barrier(number);
}

void wake_from_mbarrier(int mbarrier) {
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state == State::kAtMbarrier && threads[i].mbarrier == mbarrier) threads[i].state = State::kReady;
  }
}

void warp_collective(WarpFunction function, void* operands) {
  const int index = running_thread();
  Warp& warp = warps[index / kWarpLanes];
  if (warp.arrived != 0 && warp.function != function) fail("lanes of a warp meet in different instructions");
  warp.function = function;
  warp.operands[index % kWarpLanes] = operands;
  if (++warp.arrived < kWarpLanes) return suspend(State::kAtCollective);
  warp.arrived = 0;
  function(warp.operands);
  for (int lane = 0; lane < kWarpLanes; ++lane) threads[running_thread_of_lane(lane)].state = State::kReady;
}

// -- what Python calls ---------------------------------------------------------------------------------------

extern "C" void emulator_launch(const Launch* wanted, Report* result) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  launch = wanted;
  report = result;
  order.state = wanted->seed;
  gridDim = wanted->grid;
  blockDim = wanted->block;
  block_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  thread_count = launch->cluster * block_threads;
  if (stacks == nullptr) stacks = map_guarded(kMaxThreads * kStackPeriod, kStackPeriod);
  blockIdx = {0, 0, 0};
  begin_launch();
  if (stacks == nullptr || !place_shared()) return record({0, 0, 0}, "no memory for stacks or shared memory");
  if (const char* why = refusal()) return record({0, 0, 0}, "%s", why);

  const auto wide = static_cast<std::uint64_t>(launch->cluster), clusters_x = gridDim.x / wide;
  std::vector<std::uint64_t> clusters(clusters_x * gridDim.y * gridDim.z);
  std::iota(clusters.begin(), clusters.end(), 0);
  if (!wanted->in_order) order.shuffle(clusters);
  forget_unfinished();
  for (std::size_t i = 0; i < wanted->unfinished_count; ++i) {
    watch_unfinished(wanted->unfinished[i].begin, wanted->unfinished[i].nbytes);
  }
  const FaultHandlers handlers;
  for (const std::uint64_t cluster : clusters) {
    poison_shared();
    run_cluster({static_cast<unsigned>(cluster % clusters_x * wide),
                 static_cast<unsigned>(cluster / clusters_x % gridDim.y),
                 static_cast<unsigned>(cluster / clusters_x / gridDim.y)});
    if (failed()) return;
  }
  end_launch();
}

}  // namespace emulator
