// f32 to fp8 e4m3, the finite format (OCP "8-bit floating point", E4M3): 1 sign, 4 exponent and 3 mantissa bits, bias 7,
// largest value 448, no infinities. In integer arithmetic, for GPUs that have no instruction for it: to nearest, ties to
// even, what is larger becomes 448 with its sign, NaN stays NaN.
#pragma once

namespace baracuda {

__device__ __forceinline__ unsigned e4m3_from_f32(float value) {
  constexpr unsigned kSignBit = 0x80000000u, kNan = 0x7f, kLargest = 0x7e;
  constexpr int kDropped = 23 - 3;                      // mantissa bits
  constexpr unsigned kRebias = (127u - 7u) << 3;        // of the exponent, above three bits of mantissa
  constexpr unsigned kLeastNormal = (127u - 6u) << 23;  // 2^-6
  constexpr unsigned kSubnormalUnit = (127u + 14u) << 23;  // 2^14: one unit in its last place is 2^-9, a subnormal step
  constexpr unsigned k448 = 0x43e00000u;

  const unsigned bits = __float_as_uint(value), magnitude = bits & ~kSignBit;
  unsigned code;
  if (magnitude > 0x7f800000u) {
    code = kNan;
  } else if (magnitude >= k448) {
    code = kLargest;
  } else if (magnitude < kLeastNormal) {
    code = __float_as_uint(__uint_as_float(magnitude) + __uint_as_float(kSubnormalUnit)) - kSubnormalUnit;
  } else {
    const unsigned half_less_one = (1u << (kDropped - 1)) - 1;
    code = ((magnitude + half_less_one + (magnitude >> kDropped & 1)) >> kDropped) - kRebias;
  }
  return code | (bits & kSignBit) >> 24;
}

}  // namespace baracuda
