// Checks of every access to memory, see checks.h. g++ compiles calls of the functions below into the sources, as
// for its thread sanitizer, whose library is not linked.
#include "checks.h"

#include <cstdint>
#include <cstdio>
#include <vector>

#include "emulator.h"

namespace emulator {
namespace {

constexpr int kNobody = -1;
constexpr int kSeveral = -2;

struct Byte {
  std::uint64_t written = 0;  // the interval between barriers of the last write, and of the last read
  std::uint64_t read = 0;
  std::uint64_t write_step = 0;  // the interval between barriers of its warp of the last write, and of the last read
  std::uint64_t read_step = 0;
  int writer = kNobody;
  int reader = kNobody;       // in interval `read`, or kSeveral
  int reading_warp = kNobody;  // of those, or kSeveral
  int copier = kNobody;       // whose copy is in flight to it
};

struct Region {
  char* begin = nullptr;
  std::vector<Byte> bytes;
  const char* name;

  Byte* find(const char* address) {
    const auto offset = static_cast<std::uintptr_t>(address - begin);
    return offset < bytes.size() ? &bytes[offset] : nullptr;
  }
};

Region regions[2] = {{nullptr, {}, "dynamic"}, {nullptr, {}, "static"}};
std::uint64_t interval, block_begin;  // counted on from block to block, so that no byte need be reset
std::uint64_t steps[kMaxThreads / kWarpLanes];  // of each warp, the intervals between its barriers; counted on too

// Whether a barrier of the thread's warp lies between what `warp` did in `step`, and now.
bool after_warp_barrier(int thread, int warp, std::uint64_t step) {
  return thread / kWarpLanes == warp && step < steps[warp];
}
bool after_write(int thread, const Byte& byte) {
  return byte.writer != kNobody && after_warp_barrier(thread, byte.writer / kWarpLanes, byte.write_step);
}

[[noreturn]] void report(const Region& region, const char* address, const char* format, int other) {
  char what[128];
  std::snprintf(what, sizeof what, format, other);
  fail("%s, at offset %td of %s shared memory", what, address - region.begin, region.name);
}

// Runs `check` on each byte of the access that is shared memory.
template <typename Check>
void each_byte(const void* address, std::size_t nbytes, Check check) {
  const char* begin = static_cast<const char*>(address);
  for (Region& region : regions) {
    if (begin + nbytes <= region.begin || begin >= region.begin + region.bytes.size()) continue;
    for (std::size_t i = 0; i < nbytes; ++i) {
      if (Byte* byte = region.find(begin + i)) check(region, begin + i, *byte);
    }
  }
}

void check_no_copy(const Region& region, const char* address, const Byte& byte) {
  if (byte.copier != kNobody) {
    report(region, address, "an access to bytes that a copy of thread %d, not waited for, fills", byte.copier);
  }
}

void check_write(const Region& region, const char* address, const Byte& byte, int thread) {
  check_no_copy(region, address, byte);
  if (byte.written == interval && byte.writer != thread && !after_write(thread, byte)) {
    report(region, address, "a write to bytes that thread %d wrote since the last barrier", byte.writer);
  }
  if (after_warp_barrier(thread, byte.reading_warp, byte.read_step)) return;
  if (byte.read == interval && byte.reader == kSeveral) {
    report(region, address, "a write to bytes that other threads read since the last barrier%.0d", 0);
  }
  if (byte.read == interval && byte.reader != thread) {
    report(region, address, "a write to bytes that thread %d read since the last barrier", byte.reader);
  }
}

}  // namespace

void watch_shared(char* dynamic, std::size_t dynamic_nbytes, char* statics, std::size_t static_nbytes) {
  regions[0].begin = dynamic;
  regions[0].bytes.assign(dynamic_nbytes, {});
  regions[1].begin = statics;
  regions[1].bytes.assign(static_nbytes, {});
}

void begin_block() { block_begin = ++interval; }
void pass_barrier() { ++interval; }
void pass_warp_barrier(int warp) { ++steps[warp]; }

void note_read(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) {
    check_no_copy(region, at, byte);
    if (byte.written < block_begin) report(region, at, "a read of bytes that the block has not written%.0d", 0);
    if (byte.written == interval && byte.writer != thread && !after_write(thread, byte)) {
      report(region, at, "a read of bytes that thread %d wrote since the last barrier", byte.writer);
    }
    const int warp = thread / kWarpLanes;
    byte.reader = byte.read == interval && byte.reader != thread ? kSeveral : thread;
    byte.reading_warp = byte.read == interval && byte.reading_warp != warp ? kSeveral : warp;
    byte.read = interval;
    byte.read_step = steps[warp];
  });
}

void note_write(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) {
    check_write(region, at, byte, thread);
    byte.written = interval;
    byte.writer = thread;
    byte.write_step = steps[thread / kWarpLanes];
  });
}

void note_copy_issued(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) {
    check_write(region, at, byte, thread);
    byte.copier = thread;
  });
}

void note_copy_landed(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region&, const char*, Byte& byte) {
    byte.copier = kNobody;
    byte.written = interval;
    byte.writer = thread;
    byte.write_step = steps[thread / kWarpLanes];
  });
}

}  // namespace emulator

#define EMULATED_ACCESS(nbytes)                                                                          \
  void __tsan_read##nbytes(const void* address) {                                                        \
    emulator::note_read(emulator::running_thread(), address, nbytes);                                    \
  }                                                                                                      \
  void __tsan_write##nbytes(const void* address) {                                                       \
    emulator::note_write(emulator::running_thread(), address, nbytes);                                   \
  }                                                                                                      \
  void __tsan_unaligned_read##nbytes(const void* address) { __tsan_read##nbytes(address); }              \
  void __tsan_unaligned_write##nbytes(const void* address) { __tsan_write##nbytes(address); }

extern "C" {
EMULATED_ACCESS(1)
EMULATED_ACCESS(2)
EMULATED_ACCESS(4)
EMULATED_ACCESS(8)
EMULATED_ACCESS(16)
void __tsan_read_range(const void* address, std::size_t nbytes) {
  emulator::note_read(emulator::running_thread(), address, nbytes);
}
void __tsan_write_range(const void* address, std::size_t nbytes) {
  emulator::note_write(emulator::running_thread(), address, nbytes);
}
void __tsan_init() {}
}
