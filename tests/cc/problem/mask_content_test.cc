// ValidateCompressedMask: tells the canonical pattern from the mistakes that people make, whatever
// the strides.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/cc/problem/calls.h"

namespace fusion_attention {
namespace {

constexpr int64_t kSize = 2048;
constexpr int64_t kPrefixRows = 3072;

bool Canonical(int64_t row, int64_t key) { return row < kSize ? key > row : key >= 1024; }

std::vector<uint8_t> Fill(bool (*masked)(int64_t row, int64_t key)) {
  std::vector<uint8_t> bytes(kPrefixRows * kSize);
  for (int64_t row = 0; row < kPrefixRows; ++row) {
    for (int64_t key = 0; key < kSize; ++key) bytes[row * kSize + key] = masked(row, key);
  }
  return bytes;
}

Problem ProblemOf(int64_t sparse_mode) {
  Problem problem;
  problem.mask.full = false;
  problem.mask.sparse_mode = sparse_mode;
  return problem;
}

std::string Verdict(const std::vector<uint8_t>& bytes, int64_t sparse_mode) {
  return ValidateCompressedMask(ProblemOf(sparse_mode), bytes.data(), kSize, 1).message();
}

TEST(MaskContentTest, AcceptsTheCanonicalPattern) {
  const std::vector<uint8_t> bytes = Fill(Canonical);
  for (const int64_t mode : {2, 3, 4, 6, 7, 8}) EXPECT_EQ(Verdict(bytes, mode), "");
}

TEST(MaskContentTest, AcceptsAnyNonZeroByte) {
  std::vector<uint8_t> bytes = Fill(Canonical);
  for (uint8_t& byte : bytes) byte *= 255;
  EXPECT_EQ(Verdict(bytes, 6), "");
}

TEST(MaskContentTest, FollowsStrides) {
  // Stored column by column, from the far end.
  std::vector<uint8_t> bytes(kSize * kSize);
  for (int64_t row = 0; row < kSize; ++row) {
    for (int64_t key = 0; key < kSize; ++key) {
      bytes[(kSize - 1 - key) * kSize + (kSize - 1 - row)] = Canonical(row, key);
    }
  }
  const uint8_t* first = bytes.data() + kSize * kSize - 1;
  EXPECT_TRUE(ValidateCompressedMask(ProblemOf(2), first, -1, -kSize).ok());
  EXPECT_FALSE(ValidateCompressedMask(ProblemOf(2), bytes.data(), 1, kSize).ok());
}

struct Mistake {
  bool (*masked)(int64_t row, int64_t key);
  const char* hint;
};

TEST(MaskContentTest, NamesTheMistake) {
  const Mistake mistakes[] = {
      {[](int64_t, int64_t) { return false; }, "all False"},
      {[](int64_t, int64_t) { return true; }, "all True"},
      {[](int64_t row, int64_t key) { return !Canonical(row, key); }, "inverted"},
      {[](int64_t row, int64_t key) { return key < row; }, "transposed"},
      {[](int64_t row, int64_t key) { return key >= row; }, "masks the diagonal"},
      {[](int64_t row, int64_t key) { return key > row + 1; }, "Pass torch.triu"},
  };
  for (const Mistake& mistake : mistakes) {
    const std::vector<uint8_t> bytes = Fill(mistake.masked);
    for (const int64_t mode : {2, 3, 4, 6, 7, 8}) {
      const std::string verdict = Verdict(bytes, mode);
      EXPECT_EQ(
          verdict.rfind("npu_fusion_attention: expected atten_mask to be triu(ones(2048, 2048), 1) "
                        "in sparse_mode 2, 3, 4, 6, 7 and 8, but got atten_mask[",
                        0),
          0U)
          << verdict;
      EXPECT_NE(verdict.find(mistake.hint), std::string::npos) << verdict;
      EXPECT_LE(verdict.size(), 400U);
    }
  }
}

TEST(MaskContentTest, ChecksTheRectangleOfMode6) {
  for (const auto masked :
       {+[](int64_t row, int64_t key) { return row < kSize && key > row; },
        +[](int64_t row, int64_t key) { return row >= kSize || key > row; },
        +[](int64_t row, int64_t key) { return row < kSize ? key > row : key < 1024; }}) {
    const std::vector<uint8_t> bytes = Fill(masked);
    EXPECT_EQ(Verdict(bytes, 2), "");
    EXPECT_NE(Verdict(bytes, 6).find("in rows 2048 to 3071 to be 1024 zeros, then 1024 ones"),
              std::string::npos);
  }
}

TEST(MaskContentTest, LeavesFullMasksAlone) {
  Problem dense = ProblemOf(1);
  dense.mask.source = MaskSource::kDense;
  const uint8_t byte = 1;
  EXPECT_TRUE(ValidateCompressedMask(dense, &byte, 0, 0).ok());
  Problem full = ProblemOf(2);
  full.mask.full = true;
  EXPECT_TRUE(ValidateCompressedMask(full, &byte, 0, 0).ok());
  // [0, 1, 2048, 2048] of an empty batch has no bytes.
  EXPECT_TRUE(ValidateCompressedMask(ProblemOf(2), nullptr, kSize, 1).ok());
}

}  // namespace
}  // namespace fusion_attention
