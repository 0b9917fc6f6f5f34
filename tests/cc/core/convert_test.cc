// float16 and bfloat16 over all their values, and over all roundings between neighbouring values.
#include "src/base/convert.h"

#include <gtest/gtest.h>

namespace fusion_attention {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Convert : public testing::TestWithParam<SmallFloat> {};

TEST_P(Convert, EveryValueRoundTrips) {
  const SmallFloat format = GetParam();
  for (int bits = 0; bits < 0x10000; ++bits) {
    const double value = Widen(format, static_cast<uint16_t>(bits));
    const bool is_nan = (bits & 0x7FFF) > format.Infinity();
    ASSERT_EQ(std::isnan(value), is_nan) << bits;
    ASSERT_EQ(std::signbit(value), bits >= 0x8000) << bits;
    const int quiet_nan = (bits & 0x8000) | format.Infinity() | 1 << (format.fraction_bits - 1);
    ASSERT_EQ(Narrow(format, value), is_nan ? quiet_nan : bits) << bits;
  }
}

TEST_P(Convert, ValuesAscendWithTheirBits) {
  const SmallFloat format = GetParam();
  for (int bits = 0; bits < format.Infinity(); ++bits) {
    ASSERT_LT(Widen(format, bits), Widen(format, bits + 1)) << bits;
  }
}

// Between every two neighbours, the value after the last included: below the middle goes down,
// above goes up, the middle goes to even bits.
TEST_P(Convert, RoundsToNearestEven) {
  const SmallFloat format = GetParam();
  const double overflow = std::ldexp(1.0, format.Bias() + 1);
  for (int bits = 0; bits < format.Infinity(); ++bits) {
    const double low = Widen(format, bits);
    const double high = bits + 1 == format.Infinity() ? overflow : Widen(format, bits + 1);
    const double middle = (low + high) / 2;
    const int even = bits % 2 == 0 ? bits : bits + 1;
    for (const int sign : {0, 0x8000}) {
      const double s = sign == 0 ? 1 : -1;
      ASSERT_EQ(Narrow(format, s * std::nextafter(middle, 0)), sign | bits) << bits;
      ASSERT_EQ(Narrow(format, s * middle), sign | even) << bits;
      ASSERT_EQ(Narrow(format, s * std::nextafter(middle, kInfinity)), sign | (bits + 1)) << bits;
    }
  }
}

TEST_P(Convert, Extremes) {
  const SmallFloat format = GetParam();
  EXPECT_EQ(Narrow(format, 1e300), format.Infinity());
  EXPECT_EQ(Narrow(format, -1e300), 0x8000 | format.Infinity());
  EXPECT_EQ(Narrow(format, kInfinity), format.Infinity());
  EXPECT_EQ(Narrow(format, 1e-300), 0);
  EXPECT_EQ(Narrow(format, -1e-300), 0x8000);
  EXPECT_EQ(Narrow(format, std::numeric_limits<double>::denorm_min()), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, Convert, testing::Values(kFloat16Format, kBFloat16Format));

TEST(Convert, BFloat16IsTheUpperHalfOfFloat32) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto expected = std::bit_cast<float>(bits << 16);
    if (std::isnan(expected)) continue;
    ASSERT_EQ(Widen(kBFloat16Format, static_cast<uint16_t>(bits)), expected) << bits;
  }
}

TEST(Convert, KnownFloat16Values) {
  EXPECT_EQ(Widen(kFloat16Format, 0x3C00), 1.0);
  EXPECT_EQ(Widen(kFloat16Format, 0x3555), 0.333251953125);
  EXPECT_EQ(Widen(kFloat16Format, 0x7BFF), 65504.0);
  EXPECT_EQ(Widen(kFloat16Format, 0x0400), std::ldexp(1.0, -14));
  EXPECT_EQ(Widen(kFloat16Format, 0x0001), std::ldexp(1.0, -24));
}

}  // namespace
}  // namespace fusion_attention
