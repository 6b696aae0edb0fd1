// Runs one launch: blocks one after another, the threads of a block as fibres that leave off only at barriers
// and warp collectives.
//
// A warp runs until all its lanes wait or have ended, then another one does, so that a warp gets as far ahead of
// the others as the barriers allow. Which block, warp and lane comes next is drawn from the launch's seed.
#include "emulator.h"

#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <link.h>
#include <mutex>
#include <numeric>
#include <sys/mman.h>
#include <vector>

#include "checks.h"

namespace emulator {

Extent threadIdx, blockIdx, blockDim, gridDim;

// As driver.py declares them.
struct Launch {
  const Entry* module;  // the entries of the module; Entry `kernel` of them runs
  long long kernel;
  void* const* parameters;
  Extent grid, block;
  unsigned shared_nbytes;
  int in_order;     // blocks, warps and lanes by rising index, instead of as the seed says
  std::uint64_t seed;
};

struct Report {
  Extent block, thread;
  std::uint64_t address;  // of an access that faulted, or 0
  char message[512];      // empty when the launch succeeded
};

namespace {

constexpr int kPoison = 0xff;  // NaN in every floating format
constexpr int kMaxThreads = 1024;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kArenaBytes = 228 * 1024;  // more than any GPU gives a block
constexpr unsigned kWindowBegin = 0x400;         // shared addresses start here, so that 0 is none

static_assert(kArenaBytes % kPage == 0 && kStackBytes % kPage == 0, "guards are whole pages");

struct Copy {
  unsigned destination;
  const void* source;
  int nbytes;
  bool valid;
};

enum class State { kReady, kAtBarrier, kAtCollective, kEnded };

struct Thread {
  void* stack_pointer;
  State state;
  std::vector<Copy> copies;       // in flight, oldest first; a group's end is an index into them
  std::vector<std::size_t> ends;  // of the committed groups
};

struct Warp {
  WarpFunction function;
  void* operands[kWarpLanes];
  int arrived;
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

const Launch* launch;
Report* report;
Random order;
Thread threads[kMaxThreads];
Warp warps[kMaxThreads / kWarpLanes];
int thread_count, at_barrier, ended;
Thread* running;  // null while the scheduler runs
void* scheduler_stack_pointer;
char* stacks;        // kMaxThreads of kStackBytes, an inaccessible page below each
char* arena;         // kArenaBytes, inaccessible pages on both sides
char* shared_begin;  // the launch's dynamic shared memory: so that its end is the arena's

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

void leave(State state) {
  running->state = state;
  emulator_switch(&running->stack_pointer, scheduler_stack_pointer);
}

[[noreturn]] void abandon() {
  leave(State::kEnded);
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

Extent thread_at(int index) {
  const unsigned linear = static_cast<unsigned>(index);
  return {linear % blockDim.x, linear / blockDim.x % blockDim.y, linear / (blockDim.x * blockDim.y)};
}

void run_kernel() {
  launch->module[launch->kernel].call(launch->parameters);
  if (!running->copies.empty()) fail("the thread ends with asynchronous copies in flight");
  ++ended;
  abandon();
}

void prepare(int index) {
  Thread& thread = threads[index];
  thread.state = State::kReady;
  thread.copies.clear();
  thread.ends.clear();
  // What emulator_switch pops: six registers and the address it returns to. Above it the return address that
  // run_kernel never uses, so that its frame is aligned as after a call.
  void** top = reinterpret_cast<void**>(stacks + (index + 1) * (kStackBytes + kPage));
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
      threadIdx = thread_at(lane);
      running = &threads[lane];
      emulator_switch(&scheduler_stack_pointer, running->stack_pointer);
      running = nullptr;
      any = ran = true;
      if (failed()) return true;
    }
  }
  return any;
}

void record_deadlock() {
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state == State::kAtCollective) {
      return record(thread_at(i), "waits in a warp instruction that not all lanes of its warp reach");
    }
  }
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state != State::kAtBarrier) continue;
    return record(thread_at(i), "waits at __syncthreads(), which %d of %d threads have left the kernel without",
                  ended, thread_count);
  }
}

void check_slack() {
  const char* slack_end = shared_begin + launch->shared_nbytes;
  const auto poisoned = [](const char* begin, const char* end) {
    for (; begin != end; ++begin) {
      if (static_cast<unsigned char>(*begin) != kPoison) return false;
    }
    return true;
  };
  const char* below = shared_begin - arena < static_cast<long>(kPage) ? arena : shared_begin - kPage;
  if (!poisoned(below, shared_begin) || !poisoned(slack_end, arena + kArenaBytes)) {
    record({0, 0, 0}, "the block wrote beside its %u bytes of dynamic shared memory", launch->shared_nbytes);
  }
}

void run_block() {
  at_barrier = ended = 0;
  begin_block();
  for (Warp& warp : warps) warp.arrived = 0;
  for (int i = 0; i < thread_count; ++i) prepare(i);
  std::vector<int> warp_order((thread_count + kWarpLanes - 1) / kWarpLanes);
  std::iota(warp_order.begin(), warp_order.end(), 0);
  while (ended < thread_count) {
    bool ran = false;
    if (!launch->in_order) order.shuffle(warp_order);
    for (const int warp : warp_order) {
      ran |= run_warp(warp);
      if (failed()) return;
    }
    if (at_barrier == thread_count) {
      at_barrier = 0;
      pass_barrier();
      for (int i = 0; i < thread_count; ++i) threads[i].state = State::kReady;
    } else if (!ran) {
      return record_deadlock();
    }
  }
  check_slack();
}

char* map_guarded(std::size_t nbytes, std::size_t guard) {
  char* mapped = static_cast<char*>(mmap(nullptr, nbytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (mapped == MAP_FAILED) return nullptr;
  for (std::size_t at = 0; at < nbytes; at += guard) mprotect(mapped + at, kPage, PROT_NONE);
  return mapped;
}

bool allocate() {
  if (stacks == nullptr) stacks = map_guarded(kMaxThreads * (kStackBytes + kPage), kStackBytes + kPage);
  if (arena == nullptr) {
    char* mapped = map_guarded(kArenaBytes + 2 * kPage, kArenaBytes + kPage);
    arena = mapped == nullptr ? nullptr : mapped + kPage;
  }
  return stacks != nullptr && arena != nullptr;
}

// -- faults --------------------------------------------------------------------------------------------------

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
constexpr int kSignalCount = sizeof kSignals / sizeof *kSignals;
struct sigaction previous[kSignalCount];
char signal_stack[64 * 1024];

// An access outside all memory ends the launch like any other failure: the kernel holds nothing that a normal
// return would have to release.
void on_fault(int signal, siginfo_t* information, void*) {
  if (running == nullptr) {  // not in a kernel: let it happen again under the handler that was there before
    for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &previous[i], nullptr);
    return;
  }
  const char* address = static_cast<const char*>(information->si_addr);
  if (signal != SIGSEGV && signal != SIGBUS) fail("signal %d", signal);
  if (address >= stacks && address < stacks + kMaxThreads * (kStackBytes + kPage)) {
    fail("the thread's %zu bytes of stack overflow", kStackBytes);
  }
  if (address >= arena - kPage && address < arena + kArenaBytes + kPage) {
    fail("an access %ld bytes from the start of %u bytes of dynamic shared memory",
         static_cast<long>(address - shared_begin), launch->shared_nbytes);
  }
  report->address = reinterpret_cast<std::uint64_t>(address);
  fail("an access to address %p", static_cast<const void*>(address));
}

void catch_faults(stack_t& stack_before) {
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &stack_before);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left without returning
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

void release_faults(const stack_t& stack_before) {
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &previous[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

// -- static shared memory ------------------------------------------------------------------------------------

struct ThreadLocal {
  const void* inside;  // an address of the module
  char* begin;
  std::size_t nbytes;
};

struct TlsIndex {
  unsigned long module, offset;
};
extern "C" void* __tls_get_addr(TlsIndex*);

// The module's thread-local memory is its static shared memory and nothing else.
int find_thread_local(dl_phdr_info* object, std::size_t, void* result) {
  auto* found = static_cast<ThreadLocal*>(result);
  const auto inside = reinterpret_cast<std::uintptr_t>(found->inside);
  std::size_t nbytes = 0;
  bool holds = false;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD) holds |= inside - object->dlpi_addr - segment.p_vaddr < segment.p_memsz;
    if (segment.p_type == PT_TLS) nbytes = segment.p_memsz;
  }
  if (holds && nbytes != 0) {
    TlsIndex index{object->dlpi_tls_modid, 0};
    found->begin = static_cast<char*>(__tls_get_addr(&index));
    found->nbytes = nbytes;
  }
  return holds;
}

}  // namespace

// -- what kernels call ---------------------------------------------------------------------------------------

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(threadIdx, format, arguments);
  va_end(arguments);
  abandon();
}

int running_thread() { return static_cast<int>(running - threads); }
int running_thread_of_lane(int lane) { return running_thread() / kWarpLanes * kWarpLanes + lane; }

void block_barrier() {
  ++at_barrier;
  leave(State::kAtBarrier);
}

void warp_collective(WarpFunction function, void* operands) {
  const int index = running_thread();
  Warp& warp = warps[index / kWarpLanes];
  if (warp.arrived != 0 && warp.function != function) fail("lanes of a warp meet in different instructions");
  warp.function = function;
  warp.operands[index % kWarpLanes] = operands;
  if (++warp.arrived < kWarpLanes) return leave(State::kAtCollective);
  warp.arrived = 0;
  function(warp.operands);
  for (int lane = 0; lane < kWarpLanes; ++lane) threads[running_thread_of_lane(lane)].state = State::kReady;
}

void* dynamic_shared() { return shared_begin; }

unsigned shared_address(const void* pointer) {
  const char* byte = static_cast<const char*>(pointer);
  if (byte < shared_begin || byte > shared_begin + launch->shared_nbytes) {
    fail("a shared address is asked of a pointer that is not to dynamic shared memory");
  }
  return kWindowBegin + static_cast<unsigned>(byte - shared_begin);
}

char* shared_pointer(unsigned address, int nbytes) {
  const unsigned offset = address - kWindowBegin;
  if (offset > launch->shared_nbytes || launch->shared_nbytes - offset < static_cast<unsigned>(nbytes)) {
    fail("%d bytes at offset %d lie outside the %u bytes of dynamic shared memory", nbytes,
         static_cast<int>(offset), launch->shared_nbytes);
  }
  check_aligned(shared_begin + offset, nbytes);
  return shared_begin + offset;
}

void check_aligned(const void* address, int nbytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % static_cast<unsigned>(nbytes) != 0) {
    fail("an access of %d bytes to the misaligned address %p", nbytes, address);
  }
}

namespace {

void land(const Copy& copy) {
  char* destination = shared_pointer(copy.destination, copy.nbytes);
  const auto nbytes = static_cast<std::size_t>(copy.nbytes);
  note_copy_landed(running_thread(), destination, nbytes);
  if (copy.valid) {
    check_aligned(copy.source, copy.nbytes);
    std::memcpy(destination, copy.source, nbytes);
  } else {
    std::memset(destination, 0, nbytes);
  }
}

}  // namespace

void copy_async(unsigned destination, const void* source, int nbytes, bool valid) {
  char* bytes = shared_pointer(destination, nbytes);
  note_copy_issued(running_thread(), bytes, static_cast<std::size_t>(nbytes));
  std::memset(bytes, kPoison, static_cast<std::size_t>(nbytes));  // neither the old bytes nor the new ones
  running->copies.push_back({destination, source, nbytes, valid});
}

void commit_copies() { running->ends.push_back(running->copies.size()); }

void wait_for_copies(int pending) {
  Thread& thread = *running;
  if (thread.ends.size() <= static_cast<std::size_t>(pending)) return;
  const std::size_t groups = thread.ends.size() - static_cast<std::size_t>(pending);
  const std::size_t done = thread.ends[groups - 1];
  for (std::size_t i = 0; i < done; ++i) land(thread.copies[i]);
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(done));
  thread.ends.erase(thread.ends.begin(), thread.ends.begin() + static_cast<std::ptrdiff_t>(groups));
  for (std::size_t& end : thread.ends) end -= done;
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
  thread_count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  if (!allocate()) return record({0, 0, 0}, "no memory for stacks and shared memory");
  // Aligned to 16 bytes and no more, which is what the sources ask for.
  shared_begin = arena + kArenaBytes - (wanted->shared_nbytes + 15) / 16 * 16;
  ThreadLocal statics{wanted->module, nullptr, 0};
  dl_iterate_phdr(find_thread_local, &statics);
  watch_shared(shared_begin, wanted->shared_nbytes, statics.begin, statics.nbytes);

  std::vector<std::uint64_t> blocks(static_cast<std::size_t>(gridDim.x) * gridDim.y * gridDim.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (!wanted->in_order) order.shuffle(blocks);
  stack_t stack_before;
  catch_faults(stack_before);
  for (const std::uint64_t block : blocks) {
    blockIdx = {static_cast<unsigned>(block % gridDim.x), static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / gridDim.x / gridDim.y)};
    std::memset(arena, kPoison, kArenaBytes);
    if (statics.nbytes != 0) std::memset(statics.begin, kPoison, statics.nbytes);
    run_block();
    if (failed()) break;
  }
  release_faults(stack_before);
}

}  // namespace emulator
