// Checks of every access to memory, see checks.h. g++ compiles calls of the functions below into the sources, as
// for its thread sanitizer, whose library is not linked.
#include "checks.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "emulator.h"

namespace emulator {
namespace {

constexpr int kNobody = -1;
constexpr int kSeveral = -2;
constexpr int kBulkCopy = -3;  // and below: a copy that landed on mbarrier kBulkCopy - writer
constexpr int kWarps = kMaxThreads / kWarpLanes;
// Places of a Clock: a warp's steps each, whether the launch before has ended, whether all blocks of the cluster have
// begun, and an mbarrier's phases each.
constexpr std::size_t kLaunchBefore = kWarps, kClusterBegun = kWarps + 1, kMbarriers = kWarps + 2;

struct Byte {
  std::uint64_t written = 0;  // the interval between barriers of the last write, and of the last read
  std::uint64_t read = 0;
  // The interval between barriers of its warp of the last write, or the phases of the mbarrier with which a bulk copy
  // had landed, and the interval of the last read.
  std::uint64_t write_step = 0;
  std::uint64_t read_step = 0;
  int writer = kNobody;
  int reader = kNobody;       // in interval `read`, or kSeveral
  int reading_warp = kNobody;  // of those, or kSeveral
  int copier = kNobody;       // whose copy is in flight to it
  std::uint32_t warps = 0;    // that read it in interval `read`, a bit each
  std::uint32_t fences = 0;   // that there had been at the last write
};

struct Region {
  char* begin = nullptr;
  std::vector<Byte> bytes;
  const char* name = "dynamic";
  // (bytes, kWarps) at least: of the last read of each warp, where `warps` says so; kept from launch to launch.
  std::vector<std::uint32_t> read_steps;
};

Region regions[kMaxBlocks + 1];  // the dynamic memory of each block of the cluster, and static memory
constexpr int kStatic = kMaxBlocks;
// Counted on from block to block, so that no byte need be reset. In a cluster of several blocks `interval` stays: there a
// block's barrier says nothing of what others did, and only what threads know counts.
std::uint64_t interval, block_begin;
std::uint64_t steps[kWarps];    // of each warp, the intervals between its barriers; counted on too
std::uint64_t ordered[kWarps];  // steps below are over for all its lanes; less than `steps` from an arrival to its wait
int block_count, block_threads;
std::uint32_t fences, last_fence[kMaxThreads];  // of all threads, and the number of each one's last
std::uint64_t arrival_steps[kWarps];             // what `ordered` becomes with the wait
std::uint64_t remote_steps[kMaxBlocks][kWarps];  // how far warps must be known to be before the block may end

struct Unfinished {
  const char* begin;
  std::size_t nbytes;
};
std::vector<Unfinished> unfinished;

// What each thread knows of warps and mbarriers. Most kernels have neither mbarriers nor partial barriers, and are
// spared the bookkeeping: then it is empty.
std::vector<Clock> known;

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (std::size_t i = 0; i < other.size(); ++i) clock[i] = clock[i] > other[i] ? clock[i] : other[i];
}
Clock& known_to(int thread) {
  if (known.empty()) known.assign(kMaxThreads, Clock(kWarps));
  return known[static_cast<std::size_t>(thread)];
}
void share(const std::vector<int>& threads) {
  Clock all;
  for (const int thread : threads) join(all, known_to(thread));
  for (const int thread : threads) known_to(thread) = all;
}
std::vector<int> threads_between(int begin, int end) {
  std::vector<int> threads;
  for (int thread = begin; thread < end; ++thread) threads.push_back(thread);
  return threads;
}

std::vector<int> threads_of(int block) { return threads_between(block * block_threads, (block + 1) * block_threads); }

void learn(int thread, std::size_t what, std::uint64_t value) {
  Clock& clock = known_to(thread);
  if (clock.size() <= what) clock.resize(what + 1);
  clock[what] = value;
}
bool knows(int thread, std::size_t what, std::uint64_t least) {
  return !known.empty() && known_to(thread).size() > what && known_to(thread)[what] >= least;
}
// Whether a barrier lies between what `warp` did in `step`, and what the thread does now.
bool after_step(int thread, int warp, std::uint64_t step) {
  if (thread / kWarpLanes == warp) return step < ordered[warp];
  return knows(thread, static_cast<std::size_t>(warp), step + 1);
}
bool after_write(int thread, const Byte& byte) {
  return byte.writer >= 0 && after_step(thread, byte.writer / kWarpLanes, byte.write_step);
}

[[noreturn]] void report(const Region& region, const char* address, const char* format, int other) {
  char what[128];
  std::snprintf(what, sizeof what, format, other);
  fail("%s, at offset %td of %s shared memory", what, address - region.begin, region.name);
}

// Runs `check` on each byte of the access that is shared memory.
template <typename Check>
void each_byte(const void* address, std::size_t nbytes, Check check) {
  const char* const begin = static_cast<const char*>(address);
  for (Region& region : regions) {
    const char* const end = region.begin + region.bytes.size();
    if (begin + nbytes <= region.begin || begin >= end) continue;
    const char* at = begin < region.begin ? region.begin : begin;
    const char* const last = begin + nbytes < end ? begin + nbytes : end;
    for (Byte* byte = &region.bytes[static_cast<std::size_t>(at - region.begin)]; at != last; ++at, ++byte) {
      check(region, at, *byte);
    }
  }
}

void check_no_copy(const Region& region, const char* address, const Byte& byte) {
  if (byte.copier != kNobody) {
    report(region, address, "an access to bytes that a copy of thread %d, not waited for, fills", byte.copier);
  }
}

void check_landed(const Region& region, const char* address, const Byte& byte, int thread) {
  const int mbarrier = kBulkCopy - byte.writer;
  if (mbarrier < 0 || byte.written < block_begin) return;
  if (!knows(thread, kMbarriers + static_cast<std::size_t>(mbarrier), byte.write_step)) {
    report(region, address, "an access to bytes that a copy on mbarrier %d, not waited for, fills", mbarrier);
  }
}

// A warp whose read of the byte no barrier parts from what the thread does now; kNobody when there is none. One warp at a
// time: how far others have come says nothing of it.
int warp_that_reads(const Region& region, const char* address, const Byte& byte, int thread) {
  const std::uint32_t* read_steps = &region.read_steps[static_cast<std::size_t>(address - region.begin) * kWarps];
  for (std::uint32_t left = byte.warps; left != 0; left &= left - 1) {
    const int warp = __builtin_ctz(left);
    if (!after_step(thread, warp, read_steps[warp])) return warp;
  }
  return kNobody;
}

void check_reads_of_warps(const Region& region, const char* address, const Byte& byte, int thread) {
  const int warp = warp_that_reads(region, address, byte, thread);
  if (warp != kNobody) report(region, address, "a write to bytes that warp %d read since the last barrier", warp);
}

void check_write(const Region& region, const char* address, const Byte& byte, int thread) {
  check_no_copy(region, address, byte);
  check_landed(region, address, byte, thread);
  if (byte.written == interval && byte.writer >= 0 && byte.writer != thread && !after_write(thread, byte)) {
    report(region, address, "a write to bytes that thread %d wrote since the last barrier", byte.writer);
  }
  if (byte.read == interval && byte.reader == thread) return;
  if (!known.empty() && byte.read == interval) return check_reads_of_warps(region, address, byte, thread);
  if (byte.reading_warp >= 0 && after_step(thread, byte.reading_warp, byte.read_step)) return;
  if (byte.read == interval && byte.reader == kSeveral) {
    report(region, address, "a write to bytes that other threads read since the last barrier%.0d", 0);
  }
  if (byte.read == interval && byte.reader != thread) {
    report(region, address, "a write to bytes that thread %d read since the last barrier", byte.reader);
  }
}

void check_written(const Region& region, const char* address, const Byte& byte, int thread) {
  if (byte.written == interval && byte.writer >= 0 && byte.writer != thread && !after_write(thread, byte)) {
    report(region, address, "a read of bytes that thread %d wrote since the last barrier", byte.writer);
  }
}

void check_own(const Region& region, const char* address, int thread) {
  if (block_count == 1 || &region == &regions[thread / block_threads]) return;
  report(region, address, "an access to the memory of block %d of the cluster", static_cast<int>(&region - regions));
}

void write(const Region& region, const char* address, Byte& byte, int thread) {
  check_write(region, address, byte, thread);
  byte.written = interval;
  byte.writer = thread;
  byte.write_step = steps[thread / kWarpLanes];
  byte.fences = fences;
}

void watch(Region& region, char* begin, std::size_t nbytes) {
  region.begin = begin;
  region.bytes.assign(nbytes, {});
}

}  // namespace

void watch_dynamic(int block, char* begin, std::size_t nbytes) { watch(regions[block], begin, nbytes); }
void watch_static(char* begin, std::size_t nbytes) {
  regions[kStatic].name = "static";
  watch(regions[kStatic], begin, nbytes);
}

void watch_unfinished(const char* begin, std::size_t nbytes) { unfinished.push_back({begin, nbytes}); }
void forget_unfinished() { unfinished.clear(); }

void begin_cluster(int blocks, int threads) {
  block_count = blocks;
  block_threads = threads;
  block_begin = ++interval;
  known.clear();
  if (blocks > 1) known_to(0);
  for (auto& of_block : remote_steps) std::fill_n(of_block, kWarps, 0);
}
void pass_barrier(int block) {
  if (block_count > 1) return pass_partial_barrier(threads_of(block));
  ++interval;
  if (!known.empty()) share(threads_between(0, kMaxThreads));
}
void pass_warp_barrier(int warp) {
  ordered[warp] = ++steps[warp];
  if (!known.empty()) share(threads_between(warp * kWarpLanes, (warp + 1) * kWarpLanes));
}

void note_release(int thread, Clock& clock) {
  join(clock, known_to(thread));
  const int warp = thread / kWarpLanes;
  clock[static_cast<std::size_t>(warp)] = ordered[warp];
}
void note_merge(Clock& clock, const Clock& other) { join(clock, other); }
void note_acquire(int thread, const Clock& clock) { join(known_to(thread), clock); }
void note_phase_seen(int thread, int mbarrier, std::uint64_t phases) {
  learn(thread, kMbarriers + static_cast<std::size_t>(mbarrier), phases);
}
void note_launch_before_ended(int thread) { learn(thread, kLaunchBefore, 1); }
void pass_partial_barrier(const std::vector<int>& threads) {
  for (const int thread : threads) {
    const int warp = thread / kWarpLanes;
    if (thread % kWarpLanes == 0) ordered[warp] = ++steps[warp];  // whole warps come
  }
  for (const int thread : threads) {
    known_to(thread)[static_cast<std::size_t>(thread / kWarpLanes)] = steps[thread / kWarpLanes];
  }
  share(threads);
}

void note_cluster_arrival(int warp, bool releases, Clock& clock) {
  arrival_steps[warp] = ordered[warp];
  if (!releases) return;
  arrival_steps[warp] = ++steps[warp];
  for (int lane = 0; lane < kWarpLanes; ++lane) join(clock, known_to(warp * kWarpLanes + lane));
  clock[static_cast<std::size_t>(warp)] = steps[warp];
}
void note_cluster_wait(int thread, const Clock& clock) {
  std::uint64_t& lanes = ordered[thread / kWarpLanes];
  lanes = std::max(lanes, arrival_steps[thread / kWarpLanes]);
  note_acquire(thread, clock);
  learn(thread, kClusterBegun, 1);
}
bool cluster_has_begun(int thread) { return knows(thread, kClusterBegun, 1); }

int warp_whose_writes_are_unseen(int block) {
  for (int warp = 0; warp < kWarps; ++warp) {
    const std::uint64_t least = remote_steps[block][warp];
    const auto seen = [&](int thread) { return knows(thread, static_cast<std::size_t>(warp), least); };
    const std::vector<int> readers = threads_of(block);
    if (least != 0 && std::none_of(readers.begin(), readers.end(), seen)) return warp;
  }
  return kNobody;
}

void note_global(int thread, const void* address, std::size_t nbytes) {
  const char* const begin = static_cast<const char*>(address);
  for (const Unfinished& one : unfinished) {
    if (begin + nbytes <= one.begin || begin >= one.begin + one.nbytes || knows(thread, kLaunchBefore, 1)) continue;
    fail("an access to what the launch before may still write, which has not been waited for");
  }
}

void note_read(int thread, const void* address, std::size_t nbytes) {
  note_global(thread, address, nbytes);
  each_byte(address, nbytes, [&](Region& region, const char* at, Byte& byte) {
    check_own(region, at, thread);
    check_no_copy(region, at, byte);
    check_landed(region, at, byte, thread);
    if (byte.written < block_begin) report(region, at, "a read of bytes that the block has not written%.0d", 0);
    check_written(region, at, byte, thread);
    const int warp = thread / kWarpLanes;
    bool alone = byte.read != interval;  // all earlier reads lie before this one: what is after it is after them
    if (!known.empty()) {
      if (region.read_steps.size() < region.bytes.size() * kWarps) region.read_steps.resize(region.bytes.size() * kWarps);
      alone = alone || (byte.reader != thread && warp_that_reads(region, at, byte, thread) == kNobody);
      if (alone) byte.warps = 0;
      byte.warps |= 1u << warp;
      region.read_steps[static_cast<std::size_t>(at - region.begin) * kWarps + static_cast<std::size_t>(warp)] =
          static_cast<std::uint32_t>(steps[warp]);
    }
    byte.reader = alone || byte.reader == thread ? thread : kSeveral;
    byte.reading_warp = alone || byte.reading_warp == warp ? warp : kSeveral;
    byte.read = interval;
    byte.read_step = steps[warp];
  });
}

bool holds_something(const void* address, std::size_t nbytes) {
  bool all = true;
  each_byte(address, nbytes, [&](const Region&, const char*, const Byte& byte) {
    all = all && (byte.written >= block_begin || byte.copier != kNobody);
  });
  return all;
}

void note_write(int thread, const void* address, std::size_t nbytes) {
  note_global(thread, address, nbytes);
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) {
    check_own(region, at, thread);
    write(region, at, byte, thread);
  });
}

void note_remote_write(int thread, int block, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) { write(region, at, byte, thread); });
  if (block != thread / block_threads) remote_steps[block][thread / kWarpLanes] = steps[thread / kWarpLanes] + 1;
}

void note_copy_issued(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) {
    check_write(region, at, byte, thread);
    byte.copier = thread;
  });
}

void note_bulk_copy_issued(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region& region, const char* at, const Byte& byte) {
    if (byte.writer < 0 || byte.written < block_begin) return;
    if (last_fence[byte.writer] <= byte.fences && last_fence[thread] <= byte.fences) {
      report(region, at, "a bulk copy to bytes that thread %d has written, and no fence orders", byte.writer);
    }
  });
  note_copy_issued(thread, address, nbytes);
}

void note_fence(int thread) { last_fence[thread] = ++fences; }

void note_copy_landed(int thread, const void* address, std::size_t nbytes) {
  each_byte(address, nbytes, [&](const Region&, const char*, Byte& byte) {
    byte.copier = kNobody;
    byte.fences = fences;
    byte.written = interval;
    byte.writer = thread;
    byte.write_step = steps[thread / kWarpLanes];
  });
}

void note_bulk_copy_landed(const void* address, std::size_t nbytes, int mbarrier, std::uint64_t phases) {
  each_byte(address, nbytes, [&](const Region&, const char*, Byte& byte) {
    byte.copier = kNobody;
    byte.written = interval;
    byte.writer = kBulkCopy - mbarrier;
    byte.write_step = phases;
  });
}

void note_mbarrier_used(int thread, const void* address) {
  each_byte(address, 1, [&](const Region& region, const char* at, const Byte& byte) {
    check_written(region, at, byte, thread);
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
