// The shared memory of a block: where it lies, addresses in it, and the asynchronous copies to it.
#include <link.h>

#include <cstring>

#include "checks.h"
#include "launch.h"

namespace emulator {
namespace {

constexpr std::size_t kArenaBytes = 228 * 1024;  // more than any GPU gives a block
constexpr unsigned kWindowBegin = 0x400;         // shared addresses start here, so that 0 is none
static_assert(kArenaBytes % kPage == 0, "guards are whole pages");

char* arena;         // kArenaBytes, inaccessible pages on both sides
char* shared_begin;  // the launch's dynamic shared memory, which ends with the arena

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
  if (arena == nullptr) {
    char* mapped = map_guarded(kArenaBytes + 2 * kPage, kArenaBytes + kPage);
    if (mapped == nullptr) return false;
    arena = mapped + kPage;
  }
  // Aligned to 16 bytes and no more, which is what the sources ask for.
  shared_begin = arena + kArenaBytes - (launch->shared_nbytes + 15) / 16 * 16;
  statics = {};
  dl_iterate_phdr(find_thread_local, const_cast<Entry*>(launch->module));
  watch_shared(shared_begin, launch->shared_nbytes, statics.begin, statics.nbytes);
  return true;
}

void poison_shared() {
  std::memset(arena, kPoison, kArenaBytes);
  if (statics.nbytes != 0) std::memset(statics.begin, kPoison, statics.nbytes);
}

bool wrote_beside_shared() {
  const bool near = shared_begin - arena < static_cast<std::ptrdiff_t>(kPage);
  return !poisoned(near ? arena : shared_begin - kPage, shared_begin) ||
         !poisoned(shared_begin + launch->shared_nbytes, arena + kArenaBytes);
}

bool in_shared_arena(const char* address, long* offset) {
  *offset = address - shared_begin;
  return address >= arena - kPage && address < arena + kArenaBytes + kPage;
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
