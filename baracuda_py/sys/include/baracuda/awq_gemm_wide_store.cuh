// How a warpgroup of awq_gemm_tiled_wide.cuh finishes the sums that it holds in registers, and stores them.
#pragma once

#include "baracuda/awq_gemm.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/global_load.cuh"
#include "baracuda/global_store.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/store_matrix.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWideStoreBytes, 4096);  // by way of which a warpgroup stores
BARACUDA_CONSTANT(kWideFinishTokens, 16);  // that a CTA of the second launch finishes
BARACUDA_CONSTANT(kWideFinishThreads, 128);

constexpr int kWarpgroupThreads = 128;
constexpr int kWarpgroupChannels = 64;
constexpr int kStoreRowBytes = kWarpgroupChannels * 2;  // of a token, in shared memory
constexpr int kStorePieces = kStoreRowBytes / 16;

// In loops, for activations are much code: over what each thread puts in a place of its own.
template <int kTokens, int kChunk>
__device__ __forceinline__ void activate(float (&sums)[kTokens / 2], unsigned char* s_rows, int thread, int epilogue) {
  constexpr int kValues = kChunk * kStoreRowBytes / kWarpgroupThreads / 4;
  float* s_own = reinterpret_cast<float*>(s_rows) + thread;
#pragma unroll
  for (int first = 0; first < kTokens / 2; first += kValues) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) s_own[i * kWarpgroupThreads] = sums[first + i];
#pragma unroll 1
    for (int i = 0; i < kValues; ++i) {
      s_own[i * kWarpgroupThreads] = apply_activation(s_own[i * kWarpgroupThreads], epilogue);
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) sums[first + i] = s_own[i * kWarpgroupThreads];
  }
}

// Sums of kTokens tokens and 64 channels, as wgmma leaves them, to outputs, those from `end` on and beyond oc left out; kChunk
// tokens at a time by way of `s_rows`, (kChunk, 64) of Element. Called by the 128 threads of a warpgroup with a barrier of
// their own.
template <int kTokens, int kChunk, typename Element>
__device__ __forceinline__ void store_warpgroup_sums(const AwqGemmOperands<Element>& operands,
                                                     float (&sums)[kTokens / 2], unsigned char* s_rows,
                                                     long long first_token, int end,
                                                     long long first_channel, int thread, int barrier) {
  const int lane = thread % kWarpLanes;
  const int strip = thread / kWarpLanes;  // of 16 channels
  if (operands.epilogue != kIdentity && operands.bias != nullptr) {
    const long long channel = first_channel + 16 * strip + lane / 4;
    const float upper = channel < operands.oc ? to_f32(load_coherent(operands.bias + channel)) : 0.0f;
    const float lower = channel + 8 < operands.oc ? to_f32(load_coherent(operands.bias + channel + 8)) : 0.0f;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i] += i % 4 < 2 ? upper : lower;
  }
  partial_barrier<kWarpgroupThreads>(barrier);  // the rows have been read
  if (operands.epilogue > kBias) {
    activate<kTokens, kChunk>(sums, s_rows, thread, operands.epilogue);
    partial_barrier<kWarpgroupThreads>(barrier);
  }
  const bool wide = (reinterpret_cast<unsigned long long>(operands.y) | operands.ldy * 2) % 16 == 0;
  const int token_of_lane = lane / 16 * 8 + lane % 8;
  const unsigned s_lane = shared_address(s_rows) + token_of_lane * kStoreRowBytes +
                          ((2 * strip + lane / 8 % 2) ^ lane % 8) * 16;
#pragma unroll
  for (int chunk = 0; chunk < kTokens / kChunk; ++chunk) {
    const long long token = first_token + chunk * kChunk;
    if (token >= end) break;
    if (chunk > 0) partial_barrier<kWarpgroupThreads>(barrier);
#pragma unroll
    for (int i = 0; i < kChunk / 16; ++i) {
      const float* d = sums + (chunk * (kChunk / 16) + i) * 8;
      stmatrix_x4_transposed(s_lane + i * 16 * kStoreRowBytes,
                             {pair_from_f32<Element>(d[0], d[1]), pair_from_f32<Element>(d[2], d[3]),
                              pair_from_f32<Element>(d[4], d[5]), pair_from_f32<Element>(d[6], d[7])});
    }
    partial_barrier<kWarpgroupThreads>(barrier);
#pragma unroll
    for (int pass = 0; pass < kChunk * kStorePieces / kWarpgroupThreads; ++pass) {
      const int row = pass * (kWarpgroupThreads / kStorePieces) + thread / kStorePieces;
      const int piece = thread % kStorePieces;
      const long long channel = first_channel + 8 * piece;
      if (token + row >= end || channel >= operands.oc) continue;
      const uint4 words = *reinterpret_cast<const uint4*>(s_rows + row * kStoreRowBytes + (piece ^ row % 8) * 16);
      Element* destination = operands.y + (token + row) * operands.ldy + channel;
      const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
      if (wide) {
        store_16(destination, pairs);
      } else {
        unsigned short* halves = reinterpret_cast<unsigned short*>(destination);
#pragma unroll
        for (int i = 0; i < 8; ++i) halves[i] = static_cast<unsigned short>(pairs[i / 2] >> i % 2 * 16);
      }
    }
  }
}

}  // namespace baracuda
