// Four-bit weights to packed pairs in f16 or bf16, without a conversion instruction: of exact q - z, or of q as it lies.
//
// A nibble placed in the low mantissa bits of a power of two reads as that power plus q: in f16 0x6400 | q is
// 1024 + q and 0x6400 | q << 4 is 1024 + 16 q; one fused multiply-add then gives q - z with nothing to round.
// bf16 has only seven mantissa bits, so 0x4300 | q is 128 + q and its high nibbles are shifted down first.
// The idea: Kim et al., "Who Says Elephants Can't Run", 2022.
//
// A nibble in the low bits of an f16 of no exponent is a subnormal number, which tensor cores multiply exactly: q * 2^-24, or
// q * 2^-20. In bf16 that would be q * 2^-133, too little for f32 sums, and so it is 128 + q. A sum of such products with x
// wants the zero point, alike, times the sum of x subtracted from it.
#pragma once

#include "baracuda/int4.cuh"
#include "baracuda/pair_arithmetic.cuh"

namespace baracuda {

// Halves of two words side by side: (low of b | low of a) and (high of b | high of a).
__device__ __forceinline__ unsigned join_low_halves(unsigned a, unsigned b) {
  return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ unsigned join_high_halves(unsigned a, unsigned b) {
  return __byte_perm(a, b, 0x7632);
}

// "Spread" pairs: position i (0..3) of a word is its nibble i (low element) with its nibble i + 4 (high
// element). `zero_term` and `spread_pair` of one position belong together; both elements share the zero
// point. `stored_zero_term` is the term of position kNibble for the zero point in that nibble of either half of `zeros`.
//
// "Raw" pairs are the same nibbles as they lie, in a unit of their position; raw_units of it make 1. `raw_zero` is a zero point
// alike, in the unit of position nibble % 2, that of nibble 0..7 of a word. `raw_zero_term` is that of a nibble of both halves,
// negative: added to a pair of its unit, it makes exact q - z. All positions have the unit of position 1 by `alike_pair`, or
// times `alike_factor`. Positions and nibbles are constants, once inlined.
template <typename Element>
struct Int4Pair;

template <>
struct Int4Pair<__half> {
  // Positions 0 and 2, and 1 and 3, have the same term.
  template <int kPosition>
  static __device__ __forceinline__ unsigned zero_term(unsigned zero) {
    return kPosition % 2 == 0 ? 0xe400e400u | zero * 0x00010001u   // -(1024 + z)
                              : 0xd400d400u | zero * 0x00100010u;  // -(64 + z)
  }
  template <int kNibble>
  static __device__ __forceinline__ unsigned stored_zero_term(unsigned zeros) {
    const unsigned shifted = kNibble < 2 ? zeros : zeros >> 8;
    return kNibble % 2 == 0 ? mask_or<0x000f000fu, 0xe400e400u>(shifted) : mask_or<0x00f000f0u, 0xd400d400u>(shifted);
  }

  template <int kPosition>
  static __device__ __forceinline__ unsigned spread_pair(unsigned word, unsigned zero_term) {
    const unsigned shifted = kPosition < 2 ? word : word >> 8;
    return kPosition % 2 == 0
               ? fma_pair<__half>(mask_or<0x000f000fu, 0x64006400u>(shifted), kOne, zero_term)
               : fma_pair<__half>(mask_or<0x00f000f0u, 0x64006400u>(shifted), kSixteenth, zero_term);
  }

  // The two nibbles of byte `selector` of a word: low nibble first.
  static __device__ __forceinline__ unsigned byte_zero_term(unsigned zero) {
    return 0xd400e400u | zero * 0x00100001u;  // -(64 + z), -(1024 + z)
  }
  static __device__ __forceinline__ unsigned byte_selector(int byte) { return 0x0101u * byte; }
  static __device__ __forceinline__ unsigned byte_pair(unsigned word, unsigned selector, unsigned zero_term) {
    const unsigned doubled = __byte_perm(word, word, selector);
    return fma_pair<__half>(mask_or<0x00f0000fu, 0x64006400u>(doubled), kOneThenSixteenth, zero_term);
  }

  static __device__ __forceinline__ float raw_units(int position) { return position % 2 == 0 ? 0x1p24f : 0x1p20f; }
  static __device__ __forceinline__ unsigned raw_pair(unsigned word, int position) {
    return (position < 2 ? word : word >> 8) & (position % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
  }
  static __device__ __forceinline__ unsigned alike_pair(unsigned word, int position) {
    // Shifts to the left are multiplications, in another pipe than masks and shifts to the right.
    return (position == 0 ? word << kNibbleBits : word >> kNibbleBits * (position - 1)) & 0x00f000f0u;
  }
  static __device__ __forceinline__ float raw_zero(unsigned zeros, int nibble) {
    const unsigned both = raw_pair(zeros, nibble % 4);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(nibble < 4 ? both : both >> 16)));
  }
  static __device__ __forceinline__ unsigned raw_zero_term(unsigned zeros, int position) {
    const unsigned shifted = position < 2 ? zeros : zeros >> 8;
    return position % 2 == 0 ? mask_or<0x000f000fu, 0x80008000u>(shifted) : mask_or<0x00f000f0u, 0x80008000u>(shifted);
  }
  static __device__ __forceinline__ unsigned alike_factor(int position) {
    return position % 2 == 0 ? 0x4c004c00u : kOne;  // 16 or 1
  }
  static __device__ __forceinline__ unsigned ones() { return kOne; }

 private:
  static constexpr unsigned kOne = 0x3c003c00u;
  static constexpr unsigned kSixteenth = 0x2c002c00u;
  static constexpr unsigned kOneThenSixteenth = 0x2c003c00u;
};

template <>
struct Int4Pair<__nv_bfloat16> {
  template <int kPosition>
  static __device__ __forceinline__ unsigned zero_term(unsigned zero) {
    return 0xc300c300u | zero * 0x00010001u;  // -(128 + z)
  }
  template <int kNibble>
  static __device__ __forceinline__ unsigned stored_zero_term(unsigned zeros) {
    return mask_or<0x000f000fu, 0xc300c300u>(zeros >> (kNibbleBits * kNibble));
  }

  template <int kPosition>
  static __device__ __forceinline__ unsigned spread_pair(unsigned word, unsigned zero_term) {
    const unsigned shifted = word >> (kNibbleBits * kPosition);
    return fma_pair<__nv_bfloat16>(mask_or<0x000f000fu, 0x43004300u>(shifted), kOne, zero_term);
  }

  static __device__ __forceinline__ unsigned byte_zero_term(unsigned zero) { return zero_term<0>(zero); }
  static __device__ __forceinline__ unsigned byte_selector(int byte) { return 0x0400u + 0x0101u * byte; }
  static __device__ __forceinline__ unsigned byte_pair(unsigned word, unsigned selector, unsigned zero_term) {
    const unsigned nibbles = __byte_perm(word, word >> kNibbleBits, selector);
    return fma_pair<__nv_bfloat16>(mask_or<0x000f000fu, 0x43004300u>(nibbles), kOne, zero_term);
  }

  static __device__ __forceinline__ float raw_units(int) { return 1.0f; }
  static __device__ __forceinline__ unsigned raw_pair(unsigned word, int position) {
    return mask_or<0x000f000fu, 0x43004300u>(word >> kNibbleBits * position);
  }
  static __device__ __forceinline__ unsigned alike_pair(unsigned word, int position) { return raw_pair(word, position); }
  static __device__ __forceinline__ float raw_zero(unsigned zeros, int nibble) {
    const unsigned high = nibble < 4 ? zeros << kNibbleBits * (4 - nibble) : zeros >> kNibbleBits * (nibble - 4);
    return __uint_as_float(mask_or<0x000f0000u, 0x43000000u>(high));  // 128 + z: a bf16 is the high half of an f32
  }
  static __device__ __forceinline__ unsigned raw_zero_term(unsigned zeros, int position) {
    return mask_or<0x000f000fu, 0xc300c300u>(zeros >> kNibbleBits * position);
  }
  static __device__ __forceinline__ unsigned alike_factor(int) { return kOne; }
  static __device__ __forceinline__ unsigned ones() { return kOne; }

 private:
  static constexpr unsigned kOne = 0x3f803f80u;
};

}  // namespace baracuda
