// Checks of every access to memory, see checks.h. g++ compiles calls of the functions below into the sources, as
// for its thread sanitizer, whose library is not linked.
#include "checks.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
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
constexpr std::size_t kPlaces = kMbarriers + kMaxMbarriers;

// One for each byte of shared memory: most of the emulator's time goes into reading and writing them.
struct Byte {
  Count written = 0;  // the interval between barriers of the last write, and of the last read
  Count read = 0;
  // The interval between barriers of its warp of the last write, or the phases of the mbarrier with which a bulk copy
  // had landed, and the interval of the last read.
  Count write_step = 0;
  Count read_step = 0;
  std::uint32_t warps = 0;  // that read it in interval `read`, a bit each
  Count fences = 0;         // that there had been at the last write
  std::int16_t writer = kNobody;
  std::int16_t reader = kNobody;        // in interval `read`, or kSeveral
  std::int16_t reading_warp = kNobody;  // of those, or kSeveral
  std::int16_t copier = kNobody;        // whose copy is in flight to it
};
static_assert(sizeof(Byte) == 32, "two of a cache line");
static_assert(kMaxThreads + kMaxMbarriers < 1 << 15, "what a Byte's writer names");

struct Region {
  char* begin = nullptr;
  std::size_t nbytes = 0;
  std::vector<Byte> bytes;  // `nbytes` at least; kept from launch to launch
  const char* name = "dynamic";
  // For each four bytes, each warp's last reads of them, where `warps` says so; kept too.
  std::vector<Count> read_steps;
};

Region regions[kMaxBlocks + 1];  // the dynamic memory of each block of the cluster, and static memory
constexpr int kStatic = kMaxBlocks;
const char *watched_begin, *watched_end;  // all regions lie between
// Counted on from block to block and from launch to launch, so that no byte need be reset. In a cluster of several blocks
// `interval` stays: there a block's barrier says nothing of what others did, and only what threads know counts.
Count interval, block_begin;
Count steps[kWarps];    // of each warp, the intervals between its barriers; counted on too
Count ordered[kWarps];  // steps below are over for all its lanes; less than `steps` from an arrival to its wait
constexpr Count kManySteps = 1u << 31;  // so many that the next launch resets them; none makes as many
bool launch_runs;                       // or has failed, and may have left copies in flight
int block_count, block_threads;
Count fences, last_fence[kMaxThreads];   // of all threads, and the number of each one's last
Count arrival_steps[kWarps];             // what `ordered` becomes with the wait
Count remote_steps[kMaxBlocks][kWarps];  // how far warps must be known to be before the block may end

struct Unfinished {
  const char* begin;
  std::size_t nbytes;
};
std::vector<Unfinished> unfinished;

// What each thread knows of warps and mbarriers, of whose places so many are used. Most kernels have neither mbarriers
// nor partial barriers, and are spared the bookkeeping: then it is all 0.
Count known[kMaxThreads][kPlaces];
bool keeps_known;
std::size_t used_places = kMbarriers;

template <typename To, typename From>
void join(To& clock, const From& other, std::size_t places) {
  for (std::size_t i = 0; i < places; ++i) clock[i] = clock[i] > other[i] ? clock[i] : other[i];
}
void pass_on(int thread, Clock& clock) {
  keeps_known = true;
  if (clock.size() < used_places) clock.resize(used_places);
  join(clock, known[thread], used_places);
}
void get_to_know(int thread, const Clock& clock) {
  keeps_known = true;
  join(known[thread], clock, clock.size());  // no more than used_places
}
// Of the threads first, first + 1, ...
void share(int first, int count) {
  Count all[kPlaces];
  std::copy_n(known[first], used_places, all);
  for (int i = 1; i < count; ++i) join(all, known[first + i], used_places);
  for (int i = 0; i < count; ++i) std::copy_n(all, used_places, known[first + i]);
}
void share(const std::vector<int>& threads) {
  Count all[kPlaces];
  std::fill_n(all, used_places, 0);
  for (const int thread : threads) join(all, known[thread], used_places);
  for (const int thread : threads) std::copy_n(all, used_places, known[thread]);
}
void forget_known() {
  const int threads = (block_count * block_threads + kWarpLanes - 1) / kWarpLanes * kWarpLanes;
  for (int i = 0; keeps_known && i < threads; ++i) std::fill_n(known[i], used_places, 0);
  keeps_known = false;
  used_places = kMbarriers;
}

void learn(int thread, std::size_t what, Count value) {
  keeps_known = true;
  used_places = std::max(used_places, what + 1);
  known[thread][what] = value;
}
bool knows(int thread, std::size_t what, Count least) { return keeps_known && known[thread][what] >= least; }
// Whether a barrier lies between what `warp` did in `step`, and what the thread does now.
bool after_step(int thread, int warp, Count step) {
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
inline void each_byte(const void* address, std::size_t nbytes, Check check) {
  const char* const begin = static_cast<const char*>(address);
  if (begin + nbytes <= watched_begin || begin >= watched_end) return;
  for (Region& region : regions) {
    const char* const end = region.begin + region.nbytes;
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

std::size_t read_step_index(const Region& region, const char* address, int warp) {
  const auto offset = static_cast<std::size_t>(address - region.begin);
  return (offset / 4 * kWarps + static_cast<std::size_t>(warp)) * 4 + offset % 4;
}

void make_read_steps(Region& region) { region.read_steps.resize((region.bytes.size() + 3) / 4 * 4 * kWarps); }

// A warp whose read of the byte no barrier parts from what the thread does now; kNobody when there is none. One warp at a
// time: how far others have come says nothing of it.
int warp_that_reads(const Region& region, const char* address, const Byte& byte, int thread) {
  for (std::uint32_t left = byte.warps; left != 0; left &= left - 1) {
    const int warp = __builtin_ctz(left);
    if (!after_step(thread, warp, region.read_steps[read_step_index(region, address, warp)])) return warp;
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
  if (keeps_known && byte.read == interval) return check_reads_of_warps(region, address, byte, thread);
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

// The memory of the thread's block; null where there is one block.
const Region* own_region(int thread) { return block_count == 1 ? nullptr : &regions[thread / block_threads]; }

void check_own(const Region& region, const char* address, const Region* own) {
  if (own == nullptr || &region == own) return;
  report(region, address, "an access to the memory of block %d of the cluster", static_cast<int>(&region - regions));
}

void write(const Region& region, const char* address, Byte& byte, int thread) {
  check_write(region, address, byte, thread);
  byte.written = interval;
  byte.writer = static_cast<std::int16_t>(thread);
  byte.write_step = steps[thread / kWarpLanes];
  byte.fences = fences;
}

void watch(Region& region, char* begin, std::size_t nbytes) {
  region.begin = begin;
  region.nbytes = nbytes;
  if (region.bytes.size() < nbytes) region.bytes.resize(nbytes);
  if (nbytes == 0) return;
  watched_begin = watched_begin == nullptr ? begin : std::min<const char*>(watched_begin, begin);
  watched_end = std::max<const char*>(watched_end, begin + nbytes);
}

std::vector<int> threads_of(int block) {
  std::vector<int> threads(static_cast<std::size_t>(block_threads));
  std::iota(threads.begin(), threads.end(), block * block_threads);
  return threads;
}

}  // namespace

void begin_launch() {
  const Count most = std::max({interval, fences, *std::max_element(steps, steps + kWarps)});
  if (launch_runs || most >= kManySteps) {
    for (Region& region : regions) std::fill(region.bytes.begin(), region.bytes.end(), Byte{});
    interval = fences = 0;
    for (Count* counts : {steps, ordered, arrival_steps}) std::fill_n(counts, kWarps, 0);
    std::fill_n(last_fence, kMaxThreads, 0);
  }
  launch_runs = true;
  watched_begin = watched_end = nullptr;
}
void end_launch() { launch_runs = false; }

void watch_dynamic(int block, char* begin, std::size_t nbytes) { watch(regions[block], begin, nbytes); }
void watch_static(char* begin, std::size_t nbytes) {
  regions[kStatic].name = "static";
  watch(regions[kStatic], begin, nbytes);
}

void watch_unfinished(const char* begin, std::size_t nbytes) { unfinished.push_back({begin, nbytes}); }
void forget_unfinished() { unfinished.clear(); }

void begin_cluster(int blocks, int threads) {
  forget_known();
  block_count = blocks;
  block_threads = threads;
  block_begin = ++interval;
  keeps_known = blocks > 1;
  for (auto& of_block : remote_steps) std::fill_n(of_block, kWarps, 0);
}
void pass_barrier(int block) {
  if (block_count > 1) return pass_partial_barrier(threads_of(block));
  ++interval;
  if (keeps_known) share(0, block_threads);
}
void pass_warp_barrier(int warp) {
  ordered[warp] = ++steps[warp];
  if (keeps_known) share(warp * kWarpLanes, kWarpLanes);
}

void note_release(int thread, Clock& clock) {
  pass_on(thread, clock);
  const int warp = thread / kWarpLanes;
  clock[static_cast<std::size_t>(warp)] = ordered[warp];
}
void note_merge(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  join(clock, other, other.size());
}
void note_acquire(int thread, const Clock& clock) { get_to_know(thread, clock); }
void note_phase_seen(int thread, int mbarrier, Count phases) {
  learn(thread, kMbarriers + static_cast<std::size_t>(mbarrier), phases);
}
void note_launch_before_ended(int thread) { learn(thread, kLaunchBefore, 1); }
void pass_partial_barrier(const std::vector<int>& threads) {
  keeps_known = true;
  for (const int thread : threads) {
    const int warp = thread / kWarpLanes;
    if (thread % kWarpLanes == 0) ordered[warp] = ++steps[warp];  // whole warps come
  }
  for (const int thread : threads) {
    known[thread][thread / kWarpLanes] = steps[thread / kWarpLanes];
  }
  share(threads);
}

void note_cluster_arrival(int warp, bool releases, Clock& clock) {
  arrival_steps[warp] = ordered[warp];
  if (!releases) return;
  arrival_steps[warp] = ++steps[warp];
  for (int lane = 0; lane < kWarpLanes; ++lane) pass_on(warp * kWarpLanes + lane, clock);
  clock[static_cast<std::size_t>(warp)] = steps[warp];
}
void note_cluster_wait(int thread, const Clock& clock) {
  Count& lanes = ordered[thread / kWarpLanes];
  lanes = std::max(lanes, arrival_steps[thread / kWarpLanes]);
  note_acquire(thread, clock);
  learn(thread, kClusterBegun, 1);
}
bool cluster_has_begun(int thread) { return knows(thread, kClusterBegun, 1); }

int warp_whose_writes_are_unseen(int block) {
  for (int warp = 0; warp < kWarps; ++warp) {
    const Count least = remote_steps[block][warp];
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
  const int warp = thread / kWarpLanes;
  const Region* const own = own_region(thread);
  each_byte(address, nbytes, [&](Region& region, const char* at, Byte& byte) {
    check_own(region, at, own);
    check_no_copy(region, at, byte);
    check_landed(region, at, byte, thread);
    if (byte.written < block_begin) report(region, at, "a read of bytes that the block has not written%.0d", 0);
    check_written(region, at, byte, thread);
    bool alone = byte.read != interval;  // all earlier reads lie before this one: what is after it is after them
    if (keeps_known) {
      if (region.read_steps.size() < region.bytes.size() * kWarps) make_read_steps(region);
      alone = alone || (byte.reader != thread && warp_that_reads(region, at, byte, thread) == kNobody);
      if (alone) byte.warps = 0;
      byte.warps |= 1u << warp;
      region.read_steps[read_step_index(region, at, warp)] = steps[warp];
    }
    byte.reader = static_cast<std::int16_t>(alone || byte.reader == thread ? thread : kSeveral);
    byte.reading_warp = static_cast<std::int16_t>(alone || byte.reading_warp == warp ? warp : kSeveral);
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
  const Region* const own = own_region(thread);
  each_byte(address, nbytes, [&](const Region& region, const char* at, Byte& byte) {
    check_own(region, at, own);
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
    byte.copier = static_cast<std::int16_t>(thread);
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
    byte.writer = static_cast<std::int16_t>(thread);
    byte.write_step = steps[thread / kWarpLanes];
  });
}

void note_bulk_copy_landed(const void* address, std::size_t nbytes, int mbarrier, Count phases) {
  each_byte(address, nbytes, [&](const Region&, const char*, Byte& byte) {
    byte.copier = kNobody;
    byte.written = interval;
    byte.writer = static_cast<std::int16_t>(kBulkCopy - mbarrier);
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
