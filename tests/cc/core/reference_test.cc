// The reference backend against closed forms.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/cc/core/reference_example.h"

namespace fusion_attention {
namespace {

constexpr float kFloatMax = std::numeric_limits<float>::max();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(Reference, TwoKeysByHand) {
  Problem p = SmallProblem();
  p.batch = p.q_len = p.head_dim = p.value_dim = 1;
  p.kv_len = 2;
  p.scale = -0.5;
  Example e = MakeExample(p);
  e.query = {2};
  e.key = {3, -1};  // t = -3, 1
  e.value = {10, 20};
  e.Forward();
  const double w = std::exp(-4);
  EXPECT_EQ(e.max, std::vector<float>(8, 1.0f));
  EXPECT_EQ(e.sum, std::vector<float>(8, static_cast<float>(1 + w)));
  EXPECT_DOUBLE_EQ(e.out[0], (10 * w + 20) / (1 + w));
}

TEST(Reference, PseIsScaledAndSinkIsNot) {
  Problem p = SmallProblem();
  p.batch = p.q_len = p.kv_len = p.head_dim = p.value_dim = 1;
  p.scale = 0.5;
  p.pse = {.kind = PseKind::kDense, .batch = 1, .rows = 1, .keys = 1};
  p.has_sink = true;
  Example e = MakeExample(p);
  e.query = {2};
  e.key = {1};
  e.pse = {4};  // t = (2 + 4) / 2 = 3
  e.sink = {5};
  e.value = {10};
  e.Forward();
  EXPECT_EQ(e.max[0], 5);
  EXPECT_EQ(e.sum[0], static_cast<float>(1 + std::exp(-2)));
  EXPECT_DOUBLE_EQ(e.out[0], 10 * std::exp(-2) / (1 + std::exp(-2)));
}

TEST(Reference, ScaleZeroAveragesTheVisibleKeys) {
  Problem p = SmallProblem();
  p.scale = 0;
  p.mask = MaskOf(2);
  Example e = MakeExample(p);
  e.Forward();
  for (int row = 0; row < 3; ++row) {
    double mean = 0;
    for (int key = 0; key <= row; ++key) mean += e.value[key * 2] / (row + 1);
    EXPECT_NEAR(e.out[row * 2], mean, 1e-15);
    EXPECT_EQ(e.max[row * 8], 0);
    EXPECT_EQ(e.sum[row * 8], row + 1);
  }
}

TEST(Reference, ARowWithoutKeysIsZero) {
  Problem p = SmallProblem();
  p.mask = MaskOf(2, MaskSource::kDense);
  for (const bool invalid_row_mode : {false, true}) {
    p.invalid_row_mode = invalid_row_mode;
    Example e = MakeExample(p);
    e.mask = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};  // row 0 sees key 0 at most
    e.query[0] = e.dy[1] = kNan;
    e.Forward();
    EXPECT_EQ(e.out[0], 0);
    EXPECT_EQ(e.out[1], 0);
    EXPECT_EQ(e.max[0], -kFloatMax);
    EXPECT_EQ(e.sum[7], invalid_row_mode ? kFloatMax : 4);
    EXPECT_GT(e.max[8], -kFloatMax);
    const Gradients g = BackwardOf(e);
    for (int c = 0; c < 3; ++c) EXPECT_EQ(g.dq[c], 0);
    for (const auto* gradient : {&g.dq, &g.dk, &g.dv}) {
      for (double x : *gradient) EXPECT_TRUE(std::isfinite(x));
    }
  }
}

TEST(Reference, OnlyScoresOfMinusInfinityCountAsNoKeys) {
  Problem p = SmallProblem();
  p.pse = {.kind = PseKind::kDense, .batch = 1, .rows = 1, .keys = 4};
  Example e = MakeExample(p);
  e.pse.assign(4, -kInf);
  e.Forward();
  EXPECT_EQ(e.out, std::vector<double>(e.out.size(), 0));
  EXPECT_EQ(e.max, std::vector<float>(e.max.size(), -kFloatMax));
  EXPECT_EQ(e.sum, std::vector<float>(e.sum.size(), 4));
  EXPECT_EQ(BackwardOf(e).dq, std::vector<double>(e.query.size(), 0));
}

TEST(Reference, ASinkAloneTakesAllWeight) {
  Problem p = SmallProblem();
  p.has_sink = true;
  p.mask = MaskOf(1, MaskSource::kDense);
  Example e = MakeExample(p);
  e.mask.assign(12, 1);
  e.dy[0] = kNan;
  e.Forward();
  EXPECT_EQ(e.out, std::vector<double>(e.out.size(), 0));
  EXPECT_EQ(e.max, std::vector<float>(e.max.size(), e.sink[0]));
  EXPECT_EQ(e.sum, std::vector<float>(e.sum.size(), 1));
  const Gradients g = BackwardOf(e);
  EXPECT_EQ(g.dsink, std::vector<float>(1, 0));
  EXPECT_EQ(g.dv, std::vector<double>(e.value.size(), 0));
}

TEST(Reference, NothingOutsideTheSequences) {
  Example e = MakeExample(PackedProblem());
  e.Forward();
  const auto is_zero = [&](int token) {
    return e.out[token * 2] == 0 && e.max[token * 8] == 0 && e.sum[token * 8] == 0;
  };
  for (int token : {0, 1, 3, 4, 5}) EXPECT_FALSE(is_zero(token)) << token;
  for (int token : {2, 6, 7}) EXPECT_TRUE(is_zero(token)) << token;  // no keys, no sequence
  const Gradients g = BackwardOf(e);
  for (int c = 0; c < 3; ++c) {
    EXPECT_EQ(g.dk[3 * 3 + c], 0);  // key 3 belongs to a sequence without rows
    EXPECT_EQ(g.dk[8 * 3 + c], 0);  // key 8 to none
    EXPECT_NE(g.dk[4 * 3 + c], 0);
  }
}

TEST(Reference, NanReachesExactlyTheRowsThatSeeIt) {
  Problem p = SmallProblem();
  p.mask = MaskOf(2);
  Example e = MakeExample(p);
  e.value[2 * 2 + 1] = kNan;  // key 2, channel 1: rows from 2 on
  e.key[3 * 3] = kNan;        // key 3: no row
  e.Forward();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(std::isnan(e.out[i]), i == 5) << i;
  const Gradients g = BackwardOf(e);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(std::isnan(g.dq[i]), i >= 6) << i;
  for (int i = 0; i < 12; ++i) EXPECT_EQ(std::isnan(g.dk[i]), i < 9) << i;
}

TEST(Reference, DroppedWeightsStayInTheSum) {
  Problem p = SmallProblem();
  p.scale = 0;
  p.keep_prob = 0.5;
  p.numels = 24;
  p.dropout = DropoutKind::kExternal;
  Example e = MakeExample(p);
  e.dropout_mask = {0x05, 0x00, 0x00};  // row 0 keeps keys 0 and 2
  e.Forward();
  EXPECT_EQ(e.sum[0], 4);
  EXPECT_DOUBLE_EQ(e.out[0], 2 * (e.value[0] + e.value[4]) / 4);
  EXPECT_EQ(e.out[2], 0);
  e.problem.dropout = DropoutKind::kDropAll;
  e.Forward();
  EXPECT_EQ(e.sum[0], 4);
  EXPECT_EQ(e.out, std::vector<double>(e.out.size(), 0));
}

}  // namespace
}  // namespace fusion_attention
