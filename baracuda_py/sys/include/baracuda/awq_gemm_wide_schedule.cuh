// Which tiles a CTA of awq_gemm_tiled_wide.cuh computes, and over which input channels.
//
// Tiles are 128 output channels of some tokens. The first `whole` of them go round the CTAs. What is left is less than one
// round, so that `splits` CTAs can take a tile, a range of its input channels each, and leave partial sums.
//
// Tokens are shared out evenly over tiles, rather than all but the last filled: a box copy takes longer for tokens beyond m
// than for others (65 tokens in boxes of 128, on an H100: 30.7 us; of 72: 25.8).
#pragma once

#include "baracuda/constant.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWideChannels, 128);  // output channels of a tile

// Blocks [first, end) of 128 input channels of a tile.
struct WideWork {
  int tile;
  int first;
  int end;
  int part;  // which partial sums these are; kFinished: all of the tile's, none
};

constexpr int kFinished = -1;

// Where a tile begins.
struct WidePlace {
  long long channel;
  long long token;
};

struct WideSchedule {
  int whole;   // tiles
  int split;   // tiles behind them
  int splits;  // of one of those
  int panel;   // token tiles that follow each other before the next channels; the next panel comes after all channels
  int token_tiles;
  int tokens;  // of a box of x: a multiple of 8, those of the entry at most
  int m;
  int oc;
  int blocks;  // of a tile

  // Shape::kEven: whether tiles are as large as boxes. Otherwise they are Shape::kTokens.
  template <typename Shape>
  __device__ __forceinline__ WidePlace place(int tile) const {
    const int channel_tiles = static_cast<int>((static_cast<long long>(oc) + kWideChannels - 1) / kWideChannels);
    const int before = tile / (panel * channel_tiles) * panel;  // token tiles of the panels before
    const int inside = tile - before * channel_tiles;
    const int width = token_tiles - before < panel ? token_tiles - before : panel;
    return {static_cast<long long>(inside / width) * kWideChannels,
            static_cast<long long>(before + inside % width) * (Shape::kEven ? tokens : Shape::kTokens)};
  }

  // Behind a tile's last token: what comes there is the next tile's, or beyond m.
  template <typename Shape>
  __device__ __forceinline__ int end(const WidePlace& place) const {
    return Shape::kEven && m - static_cast<int>(place.token) > tokens ? static_cast<int>(place.token) + tokens : m;
  }
};

// The works of one CTA, in their order.
struct WideWorks {
  const WideSchedule& schedule;
  int tile;  // the next one taken whole
  int part;  // the one that comes last; kFinished: none

  explicit __device__ __forceinline__ WideWorks(const WideSchedule& schedule)
      : schedule(schedule),
        tile(static_cast<int>(blockIdx.x)),
        part(tile < schedule.split * schedule.splits ? tile : kFinished) {}

  __device__ __forceinline__ bool next(WideWork& work) {
    if (tile < schedule.whole) {
      work = {tile, 0, schedule.blocks, kFinished};
      tile += static_cast<int>(gridDim.x);
      return true;
    }
    if (part == kFinished) return false;
    const int range = part % schedule.splits;
    const int even = schedule.blocks / schedule.splits;
    const int longer = schedule.blocks - even * schedule.splits;  // the first `longer` ranges have one block more
    const int first = range * even + (range < longer ? range : longer);
    work = {schedule.whole + part / schedule.splits, first, first + even + (range < longer ? 1 : 0), part};
    part = kFinished;
    return true;
  }
};

}  // namespace baracuda
