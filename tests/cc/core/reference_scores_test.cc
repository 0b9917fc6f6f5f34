// What the reference backend adds to the scores: the four kinds of pse, and ropes.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/cc/core/reference_example.h"

namespace fusion_attention {
namespace {

TEST(Reference, PseTypeZeroIsNotScaled) {
  Problem p = SmallProblem();
  p.batch = p.q_len = p.head_dim = p.value_dim = 1;
  p.kv_len = 2;
  p.scale = 0.5;
  p.pse = {.kind = PseKind::kDense, .after_scale = true, .batch = 1, .rows = 1, .keys = 2};
  Example e = MakeExample(p);
  e.query = {2};
  e.key = {1, 3};
  e.pse = {4, -1};  // t = 2 / 2 + 4 = 5 and 6 / 2 - 1 = 2
  e.value = {10, 20};
  e.Forward();
  EXPECT_EQ(e.max[0], 5);
  EXPECT_EQ(e.sum[0], static_cast<float>(1 + std::exp(-3)));
  EXPECT_DOUBLE_EQ(e.out[0], (10 + 20 * std::exp(-3)) / (1 + std::exp(-3)));
}

// Slopes of one row and four keys whose scores are the biases alone.
std::vector<double> BiasesBySlope(PseDistance distance, double slope, int64_t start_offset) {
  Problem p = SmallProblem();
  p.batch = p.head_dim = p.value_dim = 1;
  p.scale = 0.25;  // does not touch the bias
  p.pse = SlopesOf(distance, 1);
  p.pse.start_offset = start_offset;
  Example e = MakeExample(p);
  e.query.assign(3, 0);
  e.pse = {slope};
  std::vector<double> biases;
  for (int key = 0; key < 4; ++key) {
    e.value = {0, 0, 0, 0};
    e.value[key] = 1;
    e.Forward();
    biases.push_back(std::log(e.out[1] * e.sum[8]) + e.max[8]);  // of row 1
  }
  return biases;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-6) << i;
}

TEST(Reference, SlopesTimesTheDistanceFromTheTopLeftCorner) {
  ExpectNear(BiasesBySlope(PseDistance::kLinear, 0.5, 0), {-0.5, 0, -0.5, -1});
  ExpectNear(BiasesBySlope(PseDistance::kLinear, -0.5, 0), {0.5, 0, 0.5, 1});
  ExpectNear(BiasesBySlope(PseDistance::kSquareRoot, 3, 0), {-3, 0, -3, -3 * std::sqrt(2)});
}

TEST(Reference, StartOffsetMovesTheZeroLine) {
  ExpectNear(BiasesBySlope(PseDistance::kLinear, 0.5, 3), {-1, -1.5, -2, -2.5});
  ExpectNear(BiasesBySlope(PseDistance::kLinear, 0.5, -2), {-1.5, -1, -0.5, 0});
  ExpectNear(BiasesBySlope(PseDistance::kSquareRoot, 1, -2), {-std::sqrt(3), -std::sqrt(2), -1, 0});
}

// The gradient of a slope is the sum of dS * -distance over everything that it serves.
TEST(Reference, SlopeGradientByHand) {
  Problem p = SmallProblem();
  p.batch = p.q_len = p.head_dim = p.value_dim = 1;
  p.kv_len = 2;
  p.scale = 0.25;  // is not part of the gradient
  p.pse = SlopesOf(PseDistance::kLinear, 1);
  p.pse.start_offset = 1;  // distances 1 and 2
  Example e = MakeExample(p);
  e.query = {0};
  e.pse = {std::log(2)};  // weights 2/3 and 1/3
  e.value = {6, 3};       // output 5
  e.dy = {1};
  e.Forward();
  EXPECT_DOUBLE_EQ(e.out[0], 5);
  // dS = 2/3 (6 - 5) and 1/3 (3 - 5)
  EXPECT_NEAR(BackwardOf(e).dpse[0], -1 * (2.0 / 3) - 2 * (-2.0 / 3), 1e-7);
}

// Ropes are channels of query and key that value does not have.
TEST(Reference, RopesAreFurtherChannels) {
  Problem p = SmallProblem();
  p.rope_dim = 2;
  Example e = MakeExample(p);
  Problem wide = p;
  wide.head_dim = 5;
  wide.rope_dim = 0;
  Example w = MakeExample(wide);
  w.value = e.value;
  w.dy = e.dy;
  const auto join = [](const std::vector<double>& left, const std::vector<double>& right) {
    std::vector<double> both;
    for (size_t token = 0; token < left.size() / 3; ++token) {
      both.insert(both.end(), left.begin() + token * 3, left.begin() + token * 3 + 3);
      both.insert(both.end(), right.begin() + token * 2, right.begin() + token * 2 + 2);
    }
    return both;
  };
  w.query = join(e.query, e.query_rope);
  w.key = join(e.key, e.key_rope);
  e.Forward();
  w.Forward();
  EXPECT_EQ(e.out, w.out);
  EXPECT_EQ(e.max, w.max);
  EXPECT_EQ(e.sum, w.sum);
  const Gradients g = BackwardOf(e), expected = BackwardOf(w);
  EXPECT_EQ(join(g.dq, g.dq_rope), expected.dq);
  EXPECT_EQ(join(g.dk, g.dk_rope), expected.dk);
  EXPECT_EQ(g.dv, expected.dv);
}

}  // namespace
}  // namespace fusion_attention
