// The dropout bits against published and hand-computed vectors: a change here changes every user's
// masks.
#include "src/dropout/philox.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "fusion_attention/dropout.h"

namespace fusion_attention {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers that come with Random123.
TEST(Philox, MatchesRandom123) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, BlocksOfSeedAndOffset) {
  EXPECT_EQ(PhiloxBlock(2, 0, 0), (Words{0x6cea1ec5, 0x7f4dbfff, 0xf99450e5, 0x664593ce}));
  EXPECT_EQ(PhiloxBlock(2, 0, 1), (Words{0x12e48da7, 0x3b20d6d5, 0xf6b9713a, 0x7ec43907}));
  EXPECT_EQ(PhiloxBlock(2, 12, 0), (Words{0x4548d952, 0x366038b0, 0x5a3e6dd1, 0x0695755c}));
  EXPECT_EQ(PhiloxBlock(2, 12, 1), (Words{0x506d6f7e, 0xee2d9504, 0x00ea171d, 0x80554f6c}));
}

TEST(Philox, EveryBitOfSeedOffsetAndBlockCounts) {
  const Words base = PhiloxBlock(5, 7, 11);
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t flip = uint64_t{1} << bit;
    EXPECT_NE(PhiloxBlock(5 ^ flip, 7, 11), base) << bit;
    EXPECT_NE(PhiloxBlock(5, 7 ^ flip, 11), base) << bit;
    EXPECT_NE(PhiloxBlock(5, 7, 11 ^ flip), base) << bit;
  }
}

struct ThresholdCase {
  double keep_prob;
  uint32_t float16, bfloat16, float32;
};

TEST(KeepThreshold, Table) {
  for (const ThresholdCase& c : {ThresholdCase{0.9, 103, 13, 838861},
                                 {0.8, 205, 26, 1677722},
                                 {0.75, 256, 32, 2097152},
                                 {0.5, 512, 64, 4194304},
                                 {0.999, 2, 1, 8389},
                                 {1.0, 0, 0, 0},
                                 {1e-12, 1024, 128, 8388608}}) {
    EXPECT_EQ(KeepThresholdOf(DType::kFloat16, c.keep_prob).threshold, c.float16) << c.keep_prob;
    EXPECT_EQ(KeepThresholdOf(DType::kBFloat16, c.keep_prob).threshold, c.bfloat16) << c.keep_prob;
    EXPECT_EQ(KeepThresholdOf(DType::kFloat32, c.keep_prob).threshold, c.float32) << c.keep_prob;
    EXPECT_EQ(KeepThresholdOf(DType::kFloat64, c.keep_prob).threshold, c.float32) << c.keep_prob;
  }
  EXPECT_EQ(KeepThresholdOf(DType::kFloat16, 0.9).low_mask, 0x3FFu);
  EXPECT_EQ(KeepThresholdOf(DType::kBFloat16, 0.9).low_mask, 0x7Fu);
  EXPECT_EQ(KeepThresholdOf(DType::kFloat32, 0.9).low_mask, 0x7FFFFFu);
  EXPECT_EQ(KeepThresholdOf(DType::kFloat64, 0.9).low_mask, 0x7FFFFFu);
}

// The first 128 keep bits as hex bytes, bit k in bit k % 8 of byte k / 8.
std::string MaskHex(uint64_t seed, uint64_t offset, DType dtype) {
  const KeepThreshold keep = KeepThresholdOf(dtype, 0.9);
  std::string hex;
  for (int byte = 0; byte < 16; ++byte) {
    int bits = 0;
    for (int bit = 0; bit < 8; ++bit) bits |= Keep(seed, offset, byte * 8 + bit, keep) << bit;
    hex += "0123456789abcdef"[bits >> 4];
    hex += "0123456789abcdef"[bits & 15];
  }
  return hex;
}

TEST(Keep, KnownMasks) {
  EXPECT_EQ(MaskHex(2, 0, DType::kFloat16), "ffefffffffdfffbbffdbfdffffffbfff");
  EXPECT_EQ(MaskHex(2, 0, DType::kBFloat16), "7f7fbf9dddfeeb7bffff67ffffffffff");
  EXPECT_EQ(MaskHex(2, 0, DType::kFloat32), "fffbfb7fffffff93edff79eefefcffff");
  EXPECT_EQ(MaskHex(2, 12, DType::kFloat16), "ffffefffffffff3ef7feffeffffeff7b");
  EXPECT_EQ(MaskHex(2, 12, DType::kBFloat16), "dfffffd7fdef9fbf5fbe7ffffffff67f");
  EXPECT_EQ(MaskHex(2, 12, DType::kFloat32), "ff7ddef7fefdffffffbbffffefffeff7");
  EXPECT_EQ(MaskHex(0x123456789, 0, DType::kFloat16), "ffe7ff7ffdfffecffbdfefbfffffffbf");
  EXPECT_EQ(MaskHex(0x123456789, 0, DType::kBFloat16), "ffefffeffb7dffffffffbffdfffffddf");
  EXPECT_EQ(MaskHex(0x123456789, 0, DType::kFloat32), "fffdffffdebafeffefefdffffffff3fb");
  EXPECT_EQ(MaskHex(0x123456789, 0, DType::kFloat64), MaskHex(0x123456789, 0, DType::kFloat32));
}

TEST(DropoutMask, EqualsTheDefinitionForAnyNumberOfThreads) {
  // 0.125 is the same rate for every dtype; a ragged end is filled up to 128 bits.
  const uint64_t seed = 0xFEDCBA9876543210;
  const int64_t numels = 40000;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    const KeepThreshold keep = KeepThresholdOf(dtype, 0.875);
    for (const int count : {1, 2, 5}) {
      std::vector<uint8_t> bytes(DropoutMaskBytes(numels) + 1, 0xA5);
      ThreadPool threads(count);
      DropoutMask({.dtype = dtype,
                   .drop_prob = 0.125,
                   .seed = seed,
                   .offset = 12,
                   .numels = numels,
                   .bytes = bytes.data()},
                  threads);
      for (int64_t k = 0; k < DropoutMaskBytes(numels) * 8; ++k) {
        ASSERT_EQ((bytes[k / 8] >> (k % 8) & 1) == 1, Keep(seed, 12, k, keep)) << k;
      }
      EXPECT_EQ(bytes.back(), 0xA5);
    }
  }
}

TEST(DropoutMask, ZeroKeepsAndOneDropsAll) {
  SerialFor threads;
  for (const int64_t numels : {0, 1, 128, 129}) {
    for (const double drop_prob : {0.0, 1.0}) {
      std::vector<uint8_t> bytes(DropoutMaskBytes(numels), 0xA5);
      DropoutMask({.drop_prob = drop_prob, .seed = 3, .numels = numels, .bytes = bytes.data()},
                  threads);
      EXPECT_EQ(bytes, std::vector<uint8_t>(bytes.size(), drop_prob == 0.0 ? 0xFF : 0));
      EXPECT_EQ(bytes.size(), numels == 0 ? 0u : numels <= 128 ? 16u : 32u);
    }
  }
}

}  // namespace
}  // namespace fusion_attention
