// TILED weights (awq_tiles.cuh) for the kernel of awq_gemm_bulk.cuh: a unit, what a warp takes at a time, is contiguous.
#pragma once

#include "baracuda/awq_gemm_bulk.cuh"

namespace baracuda {

template <typename Shape>
struct BulkTiled {
  using Tokens = TokenBoxes;
  static constexpr unsigned kUnitBytes = block_bytes(Shape::kGroups) * Shape::kBlocks;
  static constexpr unsigned kCopiedBytes = kUnitBytes;
  static constexpr bool kNeighboursTogether = false;  // a CTA takes tiles that follow each other
  static constexpr int kExchanged = 8;  // channels that lanes of other tokens exchange, so that sums lie in distinct banks

  const unsigned char* g_weights;
  const unsigned char* g_next = nullptr;

  // Of 32 channels, that there are with padding.
  static __device__ __forceinline__ int halves(int oc) {
    return (oc + kTileChannels - 1) / kTileChannels * kBlockHalves;
  }

  // The next unit to copy is a block of 32 channels from `half`; there are `columns` blocks of input channels.
  __device__ __forceinline__ void start(int columns, int half, int block) {
    constexpr int kBytes = block_bytes(Shape::kGroups);
    g_next = g_weights + (static_cast<long long>(half / kBlockHalves) * columns + block) * (kBlockHalves * kBytes) +
             half % kBlockHalves * kBytes;
  }
  __device__ __forceinline__ void advance() { g_next += Shape::kDepthWarps * kBlockHalves * block_bytes(Shape::kGroups); }

  __device__ __forceinline__ void copy(unsigned s_unit, unsigned s_barrier, bool once) const {
    if (once) {
      bulk_copy_once(s_unit, g_next, kUnitBytes, s_barrier);
    } else {  // other tokens' CTAs read the same
      bulk_copy(s_unit, g_next, kUnitBytes, s_barrier);
    }
  }

  // Asks for the same by all lanes of a warp: cp_async_wait() of all of them shows that it has come.
  __device__ __forceinline__ void copy_by_threads(unsigned s_unit, int lane) const {
#pragma unroll
    for (unsigned first = 0; first < kUnitBytes; first += kWarpLanes * kLaneBytes) {
      const unsigned offset = first + lane * kLaneBytes;
      if (offset < kUnitBytes) cp_async_16(s_unit + offset, g_next + offset, true);
    }
    cp_async_commit();
  }

  using Held = HeldBlocks<Shape>;
  static __device__ __forceinline__ Held hold(const unsigned char* s_unit, int lane) {
    return Held(SharedBlocks<Shape>{s_unit, lane});
  }
  template <typename Element, typename Operand>
  static __device__ __forceinline__ void multiply(const Held& held, const Operand& tokens, bool scales_bf16,
                                                  float (&sums)[Shape::kTilesM][Shape::kTilesN][4]) {
    multiply_block<Shape, Element>(held, tokens, scales_bf16, sums);
  }

  // The channel of a lane's row of a m16 tile: its g'th, or its g + 8'th.
  static __device__ __forceinline__ int channel(int lane, int tile, int lower) { return 16 * tile + lane / 4 + 8 * lower; }
};

}  // namespace baracuda
