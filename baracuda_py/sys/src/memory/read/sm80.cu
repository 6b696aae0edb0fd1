// memory_read: reads memory and does nothing with it: what any kernel that needs these bytes takes at least.
//
//     parts[w] = xor of the 32-bit words that warp w reads        so that no load can be left out
//
// grid (blocks, 1, 1), kReadThreads threads; any number of blocks reads everything. A block takes kReadPieces pieces of
// 16 bytes a thread at a time, all in flight at once: 96 KiB an SM, where 4.5 TB/s for 1 us are 34 KB an SM of 132.
//
#include "baracuda/cache_policy.cuh"
#include "baracuda/constant.cuh"
#include "baracuda/global_memory.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kReadThreads, 512);
BARACUDA_CONSTANT(kReadBlocks, 3);  // of one SM, that it holds at a time
BARACUDA_CONSTANT(kReadPieces, 4);
BARACUDA_CONSTANT(kReadPieceBytes, 16);

constexpr int kWords = kReadPieceBytes / 4;
constexpr int kWarp = 32;
static_assert(kReadThreads % kWarp == 0, "each warp stores the xor of its 32 lanes");
static_assert(kReadThreads * kReadBlocks <= 1536, "an SM of sm_86 holds no more threads");

struct Streaming {
  __device__ __forceinline__ void operator()(unsigned (&r_words)[kWords], const void* g_piece, bool present) const {
    load_streaming_16(r_words, g_piece, present);
  }
};

struct EvictFirst {
  unsigned long long policy = evict_first_policy();
  __device__ __forceinline__ void operator()(unsigned (&r_words)[kWords], const void* g_piece, bool present) const {
    load_evict_first_16(r_words, g_piece, present, policy);
  }
};

template <typename Load>
__device__ __forceinline__ void memory_read(const uint4* g_data,  // (pieces,), aligned to 16 bytes
                                            unsigned long long pieces,
                                            unsigned* g_parts) {  // (blocks * kReadThreads / 32,)
  const Load load{};
  const unsigned long long stride = 1ull * gridDim.x * kReadThreads;
  unsigned long long first = 1ull * blockIdx.x * kReadThreads + threadIdx.x;
  unsigned r_xor = 0;
  for (; first < pieces; first += kReadPieces * stride) {
    unsigned r_words[kReadPieces][kWords];
#pragma unroll
    for (int p = 0; p < kReadPieces; ++p) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) r_words[p][w] = 0;
      const unsigned long long piece = first + p * stride;
      load(r_words[p], g_data + piece, piece < pieces);
    }
#pragma unroll
    for (int p = 0; p < kReadPieces; ++p) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) r_xor ^= r_words[p][w];
    }
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) r_xor ^= __shfl_xor_sync(0xffffffffu, r_xor, lanes);
  if (threadIdx.x % kWarp == 0) g_parts[(1ull * blockIdx.x * kReadThreads + threadIdx.x) / kWarp] = r_xor;
}

}  // namespace baracuda

using namespace baracuda;

#define BARACUDA_ENTRY(name, Load)                                                                        \
  extern "C" __global__ void __launch_bounds__(kReadThreads, kReadBlocks)                                 \
      name(const uint4* g_data, unsigned long long pieces, unsigned* g_parts) {                           \
    memory_read<Load>(g_data, pieces, g_parts);                                                           \
  }

BARACUDA_ENTRY(memory_read_sm80_streaming, Streaming)
BARACUDA_ENTRY(memory_read_sm80_evict_first, EvictFirst)
