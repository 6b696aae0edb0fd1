// Accesses outside all memory end the launch like any other failure: the kernel holds nothing that a normal
// return would have to release.
#include <sys/mman.h>

#include "launch.h"

namespace emulator {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
constexpr int kSignalCount = sizeof kSignals / sizeof *kSignals;
struct sigaction previous[kSignalCount];
char signal_stack[64 * 1024];  // a thread's own may be what overflows

void restore_handlers() {
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

void on_fault(int signal, siginfo_t* information, void*) {
  if (running == nullptr) return restore_handlers();  // not in a kernel: it happens again, under those
  const char* address = static_cast<const char*>(information->si_addr);
  long offset;
  if (signal != SIGSEGV && signal != SIGBUS) fail("signal %d", signal);
  if (in_stacks(address)) fail("the thread's stack overflows");
  if (in_shared_arena(address, &offset)) {
    fail("an access %ld bytes from the start of %u bytes of dynamic shared memory", offset, launch->shared_nbytes);
  }
  report->address = reinterpret_cast<std::uint64_t>(address);
  fail("an access to address %p", static_cast<const void*>(address));
}

}  // namespace

char* map_guarded(std::size_t nbytes, std::size_t period) {
  void* mapped =
      mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(mapped);
  for (std::size_t at = 0; at < nbytes; at += period) mprotect(begin + at, kPage, PROT_NONE);
  return begin;
}

FaultHandlers::FaultHandlers() {
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &stack_before_);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left without returning
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

FaultHandlers::~FaultHandlers() {
  restore_handlers();
  sigaltstack(&stack_before_, nullptr);
}

}  // namespace emulator
