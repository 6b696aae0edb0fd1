// f16, bf16 and fp8 e4m3: values of bit patterns; of the first two, rounding to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

constexpr double power_of_2(int exponent) { return exponent == 0 ? 1.0 : 2.0 * power_of_2(exponent - 1); }

template <int kExponentBits, int kMantissaBits>
struct Format {
  static constexpr int kLowestExponent = 2 - (1 << (kExponentBits - 1));
  static constexpr unsigned kInfinity = ((1u << kExponentBits) - 1) << kMantissaBits;
  static constexpr unsigned short kNan = 0x7fff;  // what conversions make of every NaN
  static constexpr int kDropped = 52 - kMantissaBits;                 // bits of an f64's significand
  static constexpr unsigned kRebias = 1023 - (1 - kLowestExponent);  // of an exponent, from f64's
  static constexpr double kLowestNormal = 1.0 / power_of_2(-kLowestExponent);
  static constexpr double kBeyond = power_of_2(1 - kLowestExponent + 1);

  static double value(unsigned short bits) {
    const unsigned magnitude = bits & 0x7fffu;
    const double sign = bits >> 15 ? -1.0 : 1.0;
    if (magnitude >= kInfinity) return magnitude == kInfinity ? sign * HUGE_VAL : std::nan("");
    if (magnitude < 1u << kMantissaBits) return sign * magnitude * (kLowestNormal / (1 << kMantissaBits));
    const std::uint64_t wide = (magnitude + (std::uint64_t{kRebias} << kMantissaBits)) << kDropped;
    double found;
    std::memcpy(&found, &wide, sizeof found);
    return sign * found;
  }

  static unsigned short bits(double value) {
    if (std::isnan(value)) return kNan;
    const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
    const double magnitude = std::fabs(value);
    if (magnitude >= kLowestNormal && magnitude < kBeyond) {  // nearly all: the same as below, in integers
      std::uint64_t wide;
      std::memcpy(&wide, &magnitude, sizeof wide);
      wide += (std::uint64_t{1} << (kDropped - 1)) - 1 + (wide >> kDropped & 1);
      const auto rounded = static_cast<unsigned>((wide >> kDropped) - (std::uint64_t{kRebias} << kMantissaBits));
      return static_cast<unsigned short>(sign | (rounded < kInfinity ? rounded : kInfinity));
    }
    if (std::isinf(magnitude)) return static_cast<unsigned short>(sign | kInfinity);
    if (magnitude == 0) return static_cast<unsigned short>(sign);
    int exponent = std::ilogb(magnitude);
    if (exponent < kLowestExponent) exponent = kLowestExponent;
    if (exponent > (1 << (kExponentBits - 1))) return static_cast<unsigned short>(sign | kInfinity);
    const unsigned units = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, kMantissaBits - exponent)));
    // A significand that rounds up to the next power of two carries into the exponent by itself.
    const unsigned rounded = (static_cast<unsigned>(exponent - kLowestExponent) << kMantissaBits) + units;
    return static_cast<unsigned short>(sign | (rounded < kInfinity ? rounded : kInfinity));
  }
};

using F16 = Format<5, 10>;
using Bf16 = Format<8, 7>;

// The finite format of fp8: no infinities, and one NaN of each sign.
struct E4m3 {
  static double value(unsigned char bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    if (exponent == 15 && fraction == 7) return std::nan("");
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    return bits >> 7 ? -magnitude : magnitude;
  }
};

// a + b to f64 such that rounding the result to a much narrower format rounds a + b once: of the two values
// next to an inexact sum, the one with an odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly
// rounded sums", 2008).
inline double sum_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double of_b = sum - a;
  const double error = (a - (sum - of_b)) + (b - of_b);
  std::uint64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  return error == 0 || bits & 1 ? sum : std::nextafter(sum, error > 0 ? HUGE_VAL : -HUGE_VAL);
}

}  // namespace emulator
