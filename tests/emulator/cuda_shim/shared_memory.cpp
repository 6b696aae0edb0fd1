// The shared memory of a cluster's blocks: where it lies, addresses in it, and the asynchronous copies to it.
#include <link.h>

#include <cstring>

#include "checks.h"
#include "launch.h"

namespace emulator {
namespace {

constexpr std::size_t kArenaBytes = 228 * 1024;  // more than any GPU gives a block
constexpr unsigned kWindowBegin = 0x400;         // shared addresses start here, so that 0 is none
constexpr unsigned kRankShift = 24;              // in a cluster_address(), the rank plus 1 lies from this bit up
static_assert(kArenaBytes % kPage == 0, "guards are whole pages");
constexpr std::size_t kArenaPeriod = kArenaBytes + kPage;

char* arenas;        // kArenaBytes of each block, inaccessible pages on both sides
char* shared_begin;  // the first block's dynamic shared memory, which ends with its arena; others lie as in theirs

char* arena_of(int block) { return arenas + block * kArenaPeriod; }
char* shared_of(int block) { return shared_begin + block * kArenaPeriod; }

struct ThreadLocal {
  char* begin;
  std::size_t nbytes;
};
ThreadLocal statics;

struct TlsIndex {
  unsigned long module, offset;
};
extern "C" void* __tls_get_addr(TlsIndex*);

// A module's thread-local memory is its static shared memory and nothing else.
int find_thread_local(dl_phdr_info* object, std::size_t, void* inside_module) {
  const auto inside = reinterpret_cast<std::uintptr_t>(inside_module);
  std::size_t nbytes = 0;
  bool holds = false;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD) holds |= inside - object->dlpi_addr - segment.p_vaddr < segment.p_memsz;
    if (segment.p_type == PT_TLS) nbytes = segment.p_memsz;
  }
  if (holds && nbytes != 0) {
    TlsIndex index{object->dlpi_tls_modid, 0};
    statics = {static_cast<char*>(__tls_get_addr(&index)), nbytes};
  }
  return holds;
}

bool poisoned(const char* begin, const char* end) {
  for (; begin != end; ++begin) {
    if (static_cast<unsigned char>(*begin) != kPoison) return false;
  }
  return true;
}

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

bool place_shared() {
  if (arenas == nullptr) {
    char* mapped = map_guarded(kMaxBlocks * kArenaPeriod + kPage, kArenaPeriod);
    if (mapped == nullptr) return false;
    arenas = mapped + kPage;
  }
  // Aligned to 16 bytes and no more, which is what the sources ask for.
  shared_begin = arenas + kArenaBytes - (launch->shared_nbytes + 15) / 16 * 16;
  statics = {};
  dl_iterate_phdr(find_thread_local, const_cast<Entry*>(launch->module));
  watch_static(statics.begin, statics.nbytes);
  for (int block = 0; block < kMaxBlocks; ++block) {
    watch_dynamic(block, shared_of(block), block < launch->cluster ? launch->shared_nbytes : 0);
  }
  return true;
}

void poison_shared() {
  for (int block = 0; block < launch->cluster; ++block) std::memset(arena_of(block), kPoison, kArenaBytes);
  if (statics.nbytes != 0) std::memset(statics.begin, kPoison, statics.nbytes);
}

bool has_static_shared() { return statics.nbytes != 0; }

bool wrote_beside_shared(int block) {
  const char* const arena = arena_of(block);
  const char* const begin = shared_of(block);
  const bool near = begin - arena < static_cast<std::ptrdiff_t>(kPage);
  return !poisoned(near ? arena : begin - kPage, begin) || !poisoned(begin + launch->shared_nbytes, arena + kArenaBytes);
}

bool in_shared_arena(const char* address, long* offset) {
  const char* const arena = arena_of(running->block);
  *offset = address - shared_of(running->block);
  return address >= arena - kPage && address < arena + kArenaBytes + kPage;
}

void* dynamic_shared() { return shared_of(running->block); }

unsigned shared_address(const void* pointer) {
  const char* byte = static_cast<const char*>(pointer);
  const char* const begin = shared_of(running->block);
  if (byte < begin || byte > begin + launch->shared_nbytes) {
    fail("a shared address is asked of a pointer that is not to dynamic shared memory");
  }
  return kWindowBegin + static_cast<unsigned>(byte - begin);
}

namespace {

char* pointer_in_block(int block, unsigned address, int nbytes) {
  const unsigned offset = address - kWindowBegin;
  if (offset > launch->shared_nbytes || launch->shared_nbytes - offset < static_cast<unsigned>(nbytes)) {
    fail("%d bytes at offset %d lie outside the %u bytes of dynamic shared memory", nbytes,
         static_cast<int>(offset), launch->shared_nbytes);
  }
  check_aligned(shared_of(block) + offset, nbytes);
  return shared_of(block) + offset;
}

}  // namespace

char* shared_pointer(unsigned address, int nbytes) { return pointer_in_block(running->block, address, nbytes); }

unsigned cluster_address(unsigned address, unsigned rank) {
  if (rank >= static_cast<unsigned>(launch->cluster)) fail("the cluster has no block %u", rank);
  pointer_in_block(running->block, address, 1);
  return address | (rank + 1) << kRankShift;
}

void store_cluster(unsigned address, const void* bytes, int nbytes) {
  const unsigned tag = address >> kRankShift;
  const int block = tag == 0 ? running->block : static_cast<int>(tag) - 1;
  if (block != running->block && !cluster_has_begun(running_thread())) {
    fail("no cluster barrier has shown that block %d of the cluster has begun", block);
  }
  if (block_ended(block)) fail("block %d of the cluster, to which this thread writes, has ended", block);
  char* destination = pointer_in_block(block, address & ((1u << kRankShift) - 1), nbytes);
  note_remote_write(running_thread(), block, destination, static_cast<std::size_t>(nbytes));
  std::memcpy(destination, bytes, static_cast<std::size_t>(nbytes));
}

void check_aligned(const void* address, int nbytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % static_cast<unsigned>(nbytes) != 0) {
    fail("an access of %d bytes to the misaligned address %p", nbytes, address);
  }
}

void copy_async(unsigned destination, const void* source, int nbytes, bool valid) {
  char* bytes = shared_pointer(destination, nbytes);
  note_copy_issued(running_thread(), bytes, static_cast<std::size_t>(nbytes));
  std::memset(bytes, kPoison, static_cast<std::size_t>(nbytes));  // neither the old bytes nor the new ones
  if (valid) note_global(running_thread(), source, static_cast<std::size_t>(nbytes));
  running->copies.push_back({destination, source, nbytes, valid});
}

void commit_copies() { running->ends.push_back(running->copies.size()); }

void wait_for_copies(int pending) {
  std::vector<Copy>& copies = running->copies;
  std::vector<std::size_t>& ends = running->ends;
  if (ends.size() <= static_cast<std::size_t>(pending)) return;
  const auto groups = static_cast<std::ptrdiff_t>(ends.size()) - pending;
  const std::size_t done = ends[static_cast<std::size_t>(groups) - 1];
  for (std::size_t i = 0; i < done; ++i) land(copies[i]);
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
  ends.erase(ends.begin(), ends.begin() + groups);
  for (std::size_t& end : ends) end -= done;
}

}  // namespace emulator
