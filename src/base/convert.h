// The 16-bit floating point formats, scalar and by definition: what float16 and bfloat16 mean to
// the reference backend, to the dropout threshold and to tests. Rounds once, from double, to
// nearest even. Knows no tensors; the SIMD kernels have their own conversions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fusion_attention {

// An IEEE-style format of 1 sign bit, `exponent_bits` and `fraction_bits`.
struct SmallFloat {
  int exponent_bits;
  int fraction_bits;

  constexpr int Bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr uint16_t Infinity() const {
    return static_cast<uint16_t>(((1 << exponent_bits) - 1) << fraction_bits);
  }
};
inline constexpr SmallFloat kFloat16Format{5, 10};
inline constexpr SmallFloat kBFloat16Format{8, 7};

// Exact.
inline double Widen(SmallFloat format, uint16_t bits) {
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int exponent = (bits & format.Infinity()) >> format.fraction_bits;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << format.exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::copysign(std::numeric_limits<double>::quiet_NaN(), sign);
  }
  const int significand = exponent == 0 ? fraction : fraction + (1 << format.fraction_bits);
  // Subnormals have the spacing of the lowest binade.
  const int binade = (exponent == 0 ? 1 : exponent) - format.Bias();
  return sign * std::ldexp(significand, binade - format.fraction_bits);
}

// To nearest, ties to even; overflow gives infinity; every NaN gives the quiet NaN of its sign.
inline uint16_t Narrow(SmallFloat format, double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) {
    return static_cast<uint16_t>(sign | format.Infinity() | 1 << (format.fraction_bits - 1));
  }
  const double magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  if (magnitude >= std::ldexp(1.0, format.Bias() + 1)) return sign | format.Infinity();
  const int lowest_binade = 1 - format.Bias();
  const int binade = std::ilogb(magnitude) < lowest_binade ? lowest_binade : std::ilogb(magnitude);
  // The magnitude as a multiple of the spacing in its binade: at most 2^(fraction_bits + 1), so the
  // cast is exact.
  const auto steps =
      static_cast<int>(std::nearbyint(std::ldexp(magnitude, format.fraction_bits - binade)));
  // The leading bit of `steps` carries into the exponent field: from subnormal to normal, from
  // binade to binade, and into infinity.
  return static_cast<uint16_t>(sign | (((binade - lowest_binade) << format.fraction_bits) + steps));
}

}  // namespace fusion_attention
