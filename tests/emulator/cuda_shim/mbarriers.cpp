// Barriers in shared memory that count arrivals and copied bytes, and the bulk copies that end on them.
#include <cstring>

#include "checks.h"
#include "launch.h"

namespace emulator {
namespace {

constexpr unsigned kMbarrierBytes = 8, kCopyGrain = 16, kBoxGrain = 128;
constexpr int kAxes = 3;

struct BulkCopy {
  unsigned destination, nbytes;
  const char* source;
  unsigned long long map[16];  // of a box, of which `source` is null
  long long begin[kAxes];
};

struct Mbarrier {
  int block;
  unsigned address, arrivals, pending;
  long long nbytes;      // announced, and not landed
  Count phases;          // that have ended
  int initialiser;
  bool fenced;
  Clock gathered, released;  // what those who arrive pass on: in this phase, and up to the last
  std::vector<BulkCopy> copies;
};
std::vector<Mbarrier> mbarriers;

Mbarrier& find(unsigned address) {
  for (Mbarrier& one : mbarriers) {
    if (one.address != address || one.block != running->block) continue;
    note_mbarrier_used(running_thread(), shared_pointer(address, kMbarrierBytes));
    return one;
  }
  fail("there is no mbarrier at shared address %u", address);
}
int index_of(const Mbarrier& one) { return static_cast<int>(&one - mbarriers.data()); }

void end_phase_if_complete(Mbarrier& one) {
  if (one.pending != 0 || one.nbytes != 0) return;
  ++one.phases;
  one.pending = one.arrivals;
  note_merge(one.released, one.gathered);
  one.gathered.clear();
  wake_from_mbarrier(index_of(one));
}

// 16 bytes of a box at a time: those that lie beyond the tensor are 0, and swizzled by the address that they would have.
void land_box(const BulkCopy& copy, char* bytes) {
  const auto* extents = copy.map + 1;
  const auto* strides = copy.map + 4;
  const auto* box = copy.map + 6;
  const unsigned long long item = copy.map[9], items = kCopyGrain / item;  // bytes of an element, and how many are moved
  unsigned at = 0;
  for (unsigned long long z = 0; z < box[2]; ++z) {
    for (unsigned long long y = 0; y < box[1]; ++y) {
      for (unsigned long long x = 0; x < box[0]; x += items, at += kCopyGrain) {
        const auto place = [&](int axis, unsigned long long step) {
          return static_cast<unsigned long long>(copy.begin[axis]) + step;
        };
        const unsigned address = copy.destination + at;
        char* target = bytes + ((address ^ (address >> 3 & copy.map[10])) - copy.destination);
        if (place(0, x) >= extents[0] || place(1, y) >= extents[1] || place(2, z) >= extents[2]) {
          std::memset(target, 0, kCopyGrain);
        } else {
          std::memcpy(target, reinterpret_cast<const char*>(copy.map[0]) + place(0, x) * item +
                                  place(1, y) * strides[0] + place(2, z) * strides[1], kCopyGrain);
        }
      }
    }
  }
}

void land(Mbarrier& one) {
  for (const BulkCopy& copy : one.copies) {
    char* bytes = shared_pointer(copy.destination, kCopyGrain);
    note_bulk_copy_landed(bytes, copy.nbytes, index_of(one), one.phases + 1);
    if (copy.source != nullptr) {
      std::memcpy(bytes, copy.source, copy.nbytes);
    } else {
      land_box(copy, bytes);
    }
    one.nbytes -= copy.nbytes;
  }
  one.copies.clear();
  if (one.nbytes < 0) fail("more bytes land on an mbarrier than were announced");
  end_phase_if_complete(one);
}

void issue(const BulkCopy& copy, unsigned mbarrier) {
  Mbarrier& one = find(mbarrier);
  if (!one.fenced) fail("a copy is issued on an mbarrier that no fence has shown to it");
  char* bytes = shared_pointer(copy.destination, kCopyGrain);
  if (copy.nbytes == 0 || copy.nbytes % kCopyGrain != 0) fail("a bulk copy of %u bytes", copy.nbytes);
  shared_pointer(copy.destination + copy.nbytes - kCopyGrain, kCopyGrain);
  note_bulk_copy_issued(running_thread(), bytes, copy.nbytes);
  std::memset(bytes, kPoison, copy.nbytes);  // neither the old bytes nor the new ones
  one.copies.push_back(copy);
}

}  // namespace

void forget_mbarriers() { mbarriers.clear(); }
bool has_copies(int mbarrier) { return !mbarriers[static_cast<std::size_t>(mbarrier)].copies.empty(); }

const char* mbarrier_left_over(int block) {
  for (const Mbarrier& one : mbarriers) {
    if (one.block == block && !one.copies.empty()) return "the block ends with bulk copies in flight";
  }
  return nullptr;
}

void init_mbarrier(unsigned address, unsigned arrivals) {
  char* bytes = shared_pointer(address, kMbarrierBytes);
  for (const Mbarrier& one : mbarriers) {
    if (one.address == address && one.block == running->block) fail("an mbarrier is initialised again");
  }
  if (mbarriers.size() == kMaxMbarriers) fail("more than %d mbarriers are not emulated", kMaxMbarriers);
  note_write(running_thread(), bytes, kMbarrierBytes);
  mbarriers.push_back({running->block, address, arrivals, arrivals, 0, 0, running_thread(), false, {}, {}, {}});
}

void fence_before_bulk_copies() { note_fence(running_thread()); }

void fence_mbarriers() {
  note_fence(running_thread());
  for (Mbarrier& one : mbarriers) one.fenced |= one.initialiser == running_thread();
}

void arrive_at_mbarrier(unsigned address, unsigned expected_nbytes) {
  Mbarrier& one = find(address);
  if (one.pending == 0) fail("more threads arrive at an mbarrier than it was initialised for");
  note_release(running_thread(), one.gathered);
  one.nbytes += expected_nbytes;
  --one.pending;
  end_phase_if_complete(one);
}

void wait_at_mbarrier(unsigned address, unsigned parity) {
  const int index = index_of(find(address));
  const auto one = [&]() -> Mbarrier& { return mbarriers[static_cast<std::size_t>(index)]; };
  while ((one().phases & 1) == parity) {
    running->mbarrier = index;
    suspend(State::kAtMbarrier);
    // The scheduler lets it go on because the phase has ended, or so that copies land.
    if ((one().phases & 1) == parity) land(one());
  }
  note_acquire(running_thread(), one().released);
  note_phase_seen(running_thread(), index, one().phases);
}

void copy_bulk(unsigned destination, const void* source, unsigned nbytes, unsigned mbarrier) {
  check_aligned(source, kCopyGrain);
  note_global(running_thread(), source, nbytes);
  issue({destination, nbytes, static_cast<const char*>(source), {}, {}}, mbarrier);
}

void copy_box(unsigned destination, const unsigned long long (&map)[16], int x, int y, int z, unsigned mbarrier) {
  if (destination % kBoxGrain != 0) fail("a box is copied to shared address %u, no multiple of 128", destination);
  note_global(running_thread(), reinterpret_cast<const void*>(map[0]), 1);
  BulkCopy copy{destination, static_cast<unsigned>(map[9] * map[6] * map[7] * map[8]), nullptr, {}, {x, y, z}};
  std::memcpy(copy.map, map, sizeof copy.map);
  issue(copy, mbarrier);
}

}  // namespace emulator
