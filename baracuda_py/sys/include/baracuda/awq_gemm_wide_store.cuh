// How a warpgroup finishes the sums that it holds in registers, and stores them.
#pragma once

#include "baracuda/awq_gemm.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/global_load.cuh"
#include "baracuda/global_store.cuh"
#include "baracuda/partial_barrier.cuh"
#include "baracuda/store_matrix.cuh"

namespace baracuda {

BARACUDA_CONSTANT(kWideStoreBytes, 4096);  // by way of which a warpgroup stores: two chunks of 16 tokens
BARACUDA_CONSTANT(kWideFinishTokens, 16);  // that a CTA of the second launch finishes
BARACUDA_CONSTANT(kWideFinishThreads, 128);

constexpr int kWarpgroupThreads = 128;
constexpr int kWarpgroupChannels = 64;
constexpr int kStoreRowBytes = kWarpgroupChannels * 2;  // of a token, in shared memory
constexpr int kStorePieces = kStoreRowBytes / 16;
constexpr int kStoreTokens = kWarpgroupThreads / kStorePieces;  // of a chunk: a piece a thread
constexpr int kStoreValues = kStoreTokens / 2;                  // sums of a thread in a chunk

static_assert(2 * kStoreTokens * kStoreRowBytes == kWideStoreBytes, "that is their size");

// In loops, for activations are much code: over what each thread puts in a place of its own.
template <int kSums>
__device__ __forceinline__ void activate(float (&sums)[kSums], unsigned char* s_rows, int thread, int epilogue) {
  constexpr int kValues = kStoreTokens * kStoreRowBytes / kWarpgroupThreads / 4;
  float* s_own = reinterpret_cast<float*>(s_rows) + thread;
#pragma unroll
  for (int first = 0; first < kSums; first += kValues) {
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

// A piece of a row, 16 bytes, or in halves where a row does not begin at a multiple of them.
template <bool kWhole, typename Element>
__device__ __forceinline__ void store_piece(Element* destination, const uint4& words) {
  const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
  if constexpr (kWhole) {
    store_16(destination, pairs);
  } else {
    unsigned short* halves = reinterpret_cast<unsigned short*>(destination);
#pragma unroll
    for (int i = 0; i < 8; ++i) halves[i] = static_cast<unsigned short>(pairs[i / 2] >> i % 2 * 16);
  }
}

// Chunk by chunk: with room for two, while pieces of one are stored, the next one's sums are put beside it.
template <bool kWhole, int kTokens, int kRoom, typename Element>
__device__ __forceinline__ void store_chunks(const AwqGemmOperands<Element>& operands, const float (&sums)[kTokens / 2],
                                             unsigned char* s_rows, long long first_token, int end,
                                             long long first_channel, int thread, int barrier) {
  constexpr int kChunks = kTokens / kStoreTokens, kChunkBytes = kStoreTokens * kStoreRowBytes;
  const int lane = thread % kWarpLanes;
  const int strip = thread / kWarpLanes;  // of 16 channels
  const int token_of_lane = lane / 16 * 8 + lane % 8;
  const unsigned s_lane = shared_address(s_rows) + token_of_lane * kStoreRowBytes +
                          ((2 * strip + lane / 8 % 2) ^ lane % 8) * 16;
  const int row = thread / kStorePieces, piece = thread % kStorePieces;
  const unsigned char* s_piece = s_rows + row * kStoreRowBytes + (piece ^ row % 8) * 16;
  const long long channel = first_channel + 8 * piece;
  Element* destination = operands.y + (first_token + row) * operands.ldy + channel;
  const long long left = channel < operands.oc ? end - first_token - row : 0;  // tokens, from this row on
  const auto put = [&](int chunk) {
    const float* d = sums + chunk * kStoreValues;
    stmatrix_x4_transposed(s_lane + chunk % kRoom * kChunkBytes,
                           {pair_from_f32<Element>(d[0], d[1]), pair_from_f32<Element>(d[2], d[3]),
                            pair_from_f32<Element>(d[4], d[5]), pair_from_f32<Element>(d[6], d[7])});
  };
  // Words wait until the next ones have been asked for. So many tokens are left from theirs on: from none, they are none.
  uint4 words = make_uint4(0, 0, 0, 0);
  long long waiting = 0;
  destination -= kStoreTokens * operands.ldy;
  if constexpr (kRoom > 1) put(0);
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    if (first_token + chunk * kStoreTokens >= end) break;
    if constexpr (kRoom == 1) {
      if (chunk > 0) {
        partial_barrier<kWarpgroupThreads>(barrier);
      }
      put(chunk);
    }
    partial_barrier<kWarpgroupThreads>(barrier);
    if (kRoom > 1 && chunk + 1 < kChunks) put(chunk + 1);
    const uint4 next = *reinterpret_cast<const uint4*>(s_piece + chunk % kRoom * kChunkBytes);
    if (waiting > 0) store_piece<kWhole>(destination, words);
    destination += kStoreTokens * operands.ldy;
    words = next;
    waiting = left - chunk * kStoreTokens;
  }
  if (waiting > 0) store_piece<kWhole>(destination, words);
}

// Sums of kTokens tokens and 64 channels, as wgmma leaves them, to outputs, those from `end` on and beyond oc left out, by way
// of `s_rows`: kWideStoreBytes, or half of them for kRoom 1. Called by the 128 threads of a warpgroup with a barrier of
// their own.
template <int kTokens, int kRoom = kTokens == kStoreTokens ? 1 : 2, typename Element>
__device__ __forceinline__ void store_warpgroup_sums(const AwqGemmOperands<Element>& operands,
                                                     float (&sums)[kTokens / 2], unsigned char* s_rows,
                                                     long long first_token, int end,
                                                     long long first_channel, int thread, int barrier) {
  if (operands.epilogue != kIdentity && operands.bias != nullptr) {
    const long long channel = first_channel + 16 * (thread / kWarpLanes) + thread % kWarpLanes / 4;
    const float upper = channel < operands.oc ? to_f32(load_coherent(operands.bias + channel)) : 0.0f;
    const float lower = channel + 8 < operands.oc ? to_f32(load_coherent(operands.bias + channel + 8)) : 0.0f;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i] += i % 4 < 2 ? upper : lower;
  }
  partial_barrier<kWarpgroupThreads>(barrier);  // the rows have been read
  if (operands.epilogue > kBias) {
    activate(sums, s_rows, thread, operands.epilogue);
    partial_barrier<kWarpgroupThreads>(barrier);
  }
  // Two copies of the code: a branch in each chunk would take longer, and so would instructions that are skipped.
  if ((reinterpret_cast<unsigned long long>(operands.y) | operands.ldy * 2) % 16 == 0) {
    store_chunks<true, kTokens, kRoom>(operands, sums, s_rows, first_token, end, first_channel, thread, barrier);
  } else {
    store_chunks<false, kTokens, kRoom>(operands, sums, s_rows, first_token, end, first_channel, thread, barrier);
  }
}

}  // namespace baracuda
