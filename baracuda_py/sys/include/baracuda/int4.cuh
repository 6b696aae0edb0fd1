// Unsigned 4-bit integers, eight to a 32-bit word, in the two orders that AWQ tensors come in.
//
//   natural:    nibble position p holds element p             high bits left: [7|6|5|4|3|2|1|0]
//   hf_gemm:    AutoAWQ's interleave, element per position    high bits left: [7|5|3|1|6|4|2|0]
#pragma once

namespace baracuda {

constexpr int kNibbleBits = 4;
constexpr int kNibblesPerWord = 8;
constexpr unsigned kNibbleMask = 0xf;

// The value 0..15 in nibble position 0..7, counted from the low bits.
__host__ __device__ __forceinline__ constexpr unsigned nibble(unsigned word, int position) {
  return (word >> (kNibbleBits * position)) & kNibbleMask;
}

// Which of its word's eight elements an hf_gemm nibble position holds, and the inverse.
__host__ __device__ __forceinline__ constexpr int hf_gemm_element(int position) {
  return 2 * (position % 4) + position / 4;
}
__host__ __device__ __forceinline__ constexpr int hf_gemm_position(int element) {
  return element / 2 + 4 * (element % 2);
}
static_assert(hf_gemm_element(4) == 1 && hf_gemm_element(7) == 7, "a word is [7|5|3|1|6|4|2|0]");
static_assert(hf_gemm_position(hf_gemm_element(5)) == 5, "the two maps are inverses");

}  // namespace baracuda
