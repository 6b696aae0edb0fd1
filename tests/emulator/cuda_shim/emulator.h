// The emulated GPU as kernels see it: where a thread is, barriers, warp collectives and asynchronous copies.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

namespace emulator {

constexpr int kWarpLanes = 32;
constexpr int kMaxThreads = 1024;  // of a block, or of all blocks of a cluster
constexpr int kMaxBlocks = 2;      // of a cluster

struct Extent {
  unsigned x, y, z;
};
extern Extent threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs at the moment

// Ends the launch with this message. Never returns to the kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void block_barrier();

// The running thread's block in its cluster, and the cluster's barrier, see cluster.cuh.
unsigned cluster_rank();
void cluster_arrive();
void cluster_arrive_relaxed();
void cluster_wait();

// Addresses in the memory of the cluster's blocks; those of shared_address are the running thread's block's.
unsigned cluster_address(unsigned address, unsigned rank);
void store_cluster(unsigned address, const void* bytes, int nbytes);

// All 32 lanes of a warp call this with the same function and operands of their own. It is run once, when the
// last has come.
using WarpFunction = void (*)(void* const (&operands)[kWarpLanes]);
void warp_collective(WarpFunction function, void* operands);

void warp_barrier(void* const (&operands)[kWarpLanes]);
// Operands are bools. Which lane is chosen is not said: not the first here, which code might take it for.
void elect(void* const (&operands)[kWarpLanes]);

struct Shuffle {
  unsigned mask;
  int lane;  // or what a lane's own number differs in
  unsigned long long sent;
  unsigned long long received;
};
void shuffle_xor(void* const (&operands)[kWarpLanes]);
void shuffle_index(void* const (&operands)[kWarpLanes]);

struct MatrixLoad {
  unsigned (&fragment)[4];
  unsigned address;
};
void ldmatrix_x4(void* const (&operands)[kWarpLanes]);
void ldmatrix_x4_transposed(void* const (&operands)[kWarpLanes]);

struct MatrixStore {
  const unsigned (&fragments)[4];
  unsigned address;
};
void stmatrix_x4_transposed(void* const (&operands)[kWarpLanes]);

struct MatrixMultiply {
  float (&d)[4];
  const unsigned (&a)[4];
  unsigned b[2];
};
void mma_m16n8k16_f16(void* const (&operands)[kWarpLanes]);
void mma_m16n8k16_bf16(void* const (&operands)[kWarpLanes]);

enum class Operands { kF16, kBf16, kE4m3 };

// One lane's part of a warpgroup's instruction on its warp's 16 rows; `columns` times f32 sums, n8 tiles. It reads and
// writes when it is waited for, as late as it may.
struct WarpgroupMultiply {
  float* d;
  const unsigned* a;
  unsigned long long b;  // as wgmma_rows makes it
  int columns;
  Operands of;
  bool adds;  // to d; else d is written anew
  unsigned issued[4];  // what a was then: it must not change
};
void issue_wgmma(WarpgroupMultiply multiply);
void fence_wgmma();
void commit_wgmma();
void wait_for_wgmma(int pending);

// a * b + c in both halves, rounded once each.
unsigned fma_pair_f16(unsigned a, unsigned b, unsigned c);
unsigned fma_pair_bf16(unsigned a, unsigned b, unsigned c);

// Dynamic shared memory: its first byte, and addresses in the shared window, whose first byte is not 0.
void* dynamic_shared();
unsigned shared_address(const void* pointer);
char* shared_pointer(unsigned address, int nbytes);  // fails where these bytes are not the launch's, or not aligned

// cp.async of this thread.
void copy_async(unsigned destination, const void* source, int nbytes, bool valid);
void commit_copies();
void wait_for_copies(int pending);

// Barriers in shared memory that count arrivals and copied bytes, see mbarrier.cuh, and the copies that end on them.
void init_mbarrier(unsigned address, unsigned arrivals);
void fence_mbarriers();
void fence_before_bulk_copies();
void arrive_at_mbarrier(unsigned address, unsigned expected_nbytes);
void wait_at_mbarrier(unsigned address, unsigned parity);
void copy_bulk(unsigned destination, const void* source, unsigned nbytes, unsigned mbarrier);
// `map` is what the emulated cuTensorMapEncodeTiled makes of a tensor of three axes.
void copy_box(unsigned destination, const unsigned long long (&map)[16], int x, int y, int z, unsigned mbarrier);

// What the launch before did can be seen, and written over.
void wait_for_launch_before();

// A barrier of `threads` of the block's threads; those with other numbers have nothing to do with it. `arrive_at` does not
// wait, and passes on nothing of what the thread did.
void partial_barrier(int threads, int number);
void arrive_at_partial_barrier(int threads, int number);

// Fails unless `address` is a multiple of `nbytes`.
void check_aligned(const void* address, int nbytes);

// One kernel: called with the array of pointers that a launch passes, as the driver reads it.
struct Entry {
  const char* name;
  void (*call)(void* const* parameters);
  int parameters;
  const std::size_t* parameter_nbytes;
};

template <auto kKernel>
struct Trampoline;

template <typename... Parameters, void (*kKernel)(Parameters...)>
struct Trampoline<kKernel> {
  static constexpr int kCount = sizeof...(Parameters);
  static constexpr std::size_t kNbytes[] = {sizeof(Parameters)...};

  // A launch aligns its parameters to 8 bytes only.
  template <typename T>
  static T read(const void* parameter) {
    T value;
    std::memcpy(&value, parameter, sizeof value);
    return value;
  }
  template <std::size_t... kIndex>
  static void call_with(void* const* parameters, std::index_sequence<kIndex...>) {
    kKernel(read<std::remove_cv_t<Parameters>>(parameters[kIndex])...);
  }
  static void call(void* const* parameters) {
    call_with(parameters, std::index_sequence_for<Parameters...>{});
  }
};

}  // namespace emulator

#define EMULATED_ENTRY(name)                                                   \
  emulator::Entry {                                                            \
    #name, emulator::Trampoline<&name>::call, emulator::Trampoline<&name>::kCount, \
        emulator::Trampoline<&name>::kNbytes                                   \
  }
