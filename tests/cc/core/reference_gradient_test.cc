// The gradients of the reference backend against finite differences of its forward pass.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/cc/core/reference_example.h"

namespace fusion_attention {
namespace {

// d loss / d x, by central differences.
template <typename T>
void ExpectGradient(Example e, std::vector<T> Example::*operand, const std::vector<T>& gradient,
                    const char* name) {
  constexpr double kStep = 1.0 / 4096;
  ASSERT_EQ((e.*operand).size(), gradient.size()) << name;
  for (size_t i = 0; i < gradient.size(); ++i) {
    const T x = (e.*operand)[i];
    (e.*operand)[i] = static_cast<T>(x + kStep);
    const double up = e.Loss();
    (e.*operand)[i] = static_cast<T>(x - kStep);
    const double down = e.Loss();
    (e.*operand)[i] = x;
    EXPECT_NEAR(gradient[i], (up - down) / (2 * kStep), 1e-6) << name << " " << i;
  }
}

struct GradientCase {
  const char* name;
  Problem problem;
};

Problem With(Problem p, const std::function<void(Problem&)>& change) {
  change(p);
  return p;
}

std::vector<GradientCase> GradientCases() {
  const auto dense = [](const std::function<void(Problem&)>& change) {
    return With(SmallProblem(), change);
  };
  return {
      {"plain", SmallProblem()},
      {"negative_scale", dense([](Problem& p) { p.scale = -1.5; })},
      {"group", dense([](Problem& p) { p.q_heads = 6, p.kv_heads = 2; })},
      {"band", dense([](Problem& p) { p.mask = MaskOf(4), p.mask.pre_tockens = 1; })},
      {"dense_mask", dense([](Problem& p) { p.mask = MaskOf(1, MaskSource::kDense); })},
      {"pse", dense([](Problem& p) {
         p.pse = {.kind = PseKind::kDense, .batch = 2, .rows = 3, .keys = 4};
       })},
      {"broadcast_pse", dense([](Problem& p) {
         p.pse = {.kind = PseKind::kDense, .batch = 1, .rows = 1, .keys = 4};
       })},
      {"pse_after_scale", dense([](Problem& p) {
         p.pse = {.kind = PseKind::kDense, .after_scale = true, .batch = 1, .rows = 3, .keys = 4};
       })},
      {"slopes",
       dense([](Problem& p) { p.q_heads = 2, p.pse = SlopesOf(PseDistance::kLinear, 2); })},
      {"shared_slopes", dense([](Problem& p) {
         p.q_heads = 2, p.pse = SlopesOf(PseDistance::kLinear, 1), p.pse.start_offset = 2;
       })},
      {"square_root_slopes", dense([](Problem& p) {
         p.q_heads = 2, p.pse = SlopesOf(PseDistance::kSquareRoot, 2), p.pse.start_offset = -7;
       })},
      {"ropes", dense([](Problem& p) { p.q_heads = 4, p.kv_heads = 2, p.rope_dim = 2; })},
      {"ropes_and_slopes", dense([](Problem& p) {
         p.rope_dim = 4, p.pse = SlopesOf(PseDistance::kLinear, 1), p.has_sink = true;
         p.mask = MaskOf(1, MaskSource::kDense);
       })},
      {"packed_ropes", With(PackedProblem(), [](Problem& p) { p.rope_dim = 1; })},
      {"packed_slopes", With(PackedProblem(),
                             [](Problem& p) {
                               p.pse = SlopesOf(PseDistance::kSquareRoot, 4);
                               p.mask = MaskOf(3);
                             })},
      {"philox", dense([](Problem& p) { p.dropout = DropoutKind::kPhilox, p.keep_prob = 0.6; })},
      {"external", dense([](Problem& p) {
         p.dropout = DropoutKind::kExternal, p.keep_prob = 0.6, p.numels = 24;
       })},
      {"sink", dense([](Problem& p) { p.has_sink = true, p.q_heads = 2; })},
      {"packed", PackedProblem()},
      {"packed_causal", With(PackedProblem(),
                             [](Problem& p) {
                               p.mask = MaskOf(3);
                               p.q_heads = 2, p.has_sink = true, p.dropout = DropoutKind::kPhilox,
                               p.keep_prob = 0.5;
                               for (Sequence& s : p.packed) s.dropout_begin *= 2;
                             })},
  };
}

class ReferenceGradient : public testing::TestWithParam<GradientCase> {};

TEST_P(ReferenceGradient, MatchesFiniteDifferences) {
  Example e = MakeExample(GetParam().problem);
  e.Forward();
  const Gradients g = BackwardOf(e);
  ExpectGradient(e, &Example::query, g.dq, "dq");
  ExpectGradient(e, &Example::key, g.dk, "dk");
  ExpectGradient(e, &Example::value, g.dv, "dv");
  ExpectGradient(e, &Example::query_rope, g.dq_rope, "dq_rope");
  ExpectGradient(e, &Example::key_rope, g.dk_rope, "dk_rope");
  ExpectGradient(e, &Example::pse, g.dpse, "dpse");
  ExpectGradient(e, &Example::sink, g.dsink, "dsink");
}

TEST_P(ReferenceGradient, AcceptsAnyPairOfTheSameNormaliser) {
  Example e = MakeExample(GetParam().problem);
  e.Forward();
  const Gradients expected = BackwardOf(e);
  for (size_t i = 0; i < e.max.size(); ++i) {
    if (e.sum[i] == 0) continue;  // rows of no sequence
    e.max[i] += std::log(e.sum[i]);
    e.sum[i] = 1;
  }
  const Gradients g = BackwardOf(e);
  for (size_t i = 0; i < g.dq.size(); ++i) EXPECT_NEAR(g.dq[i], expected.dq[i], 1e-6);
  for (size_t i = 0; i < g.dv.size(); ++i) EXPECT_NEAR(g.dv[i], expected.dv[i], 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Cases, ReferenceGradient, testing::ValuesIn(GradientCases()),
                         [](const auto& info) { return std::string(info.param.name); });

// Every score of a compressed bias adds to the stored element that it read.
TEST(Reference, CompressedPseGradient) {
  Problem p = SmallProblem();
  p.batch = 1;
  p.q_len = p.kv_len = 1030;
  p.head_dim = p.value_dim = 1;
  p.mask = MaskOf(2);
  p.pse = {.kind = PseKind::kCompressed, .batch = 1, .rows = 1024, .keys = 1030};
  Example e = MakeExample(p);
  e.Forward();
  const Gradients g = BackwardOf(e);
  // Key 6 of stored row 0 is read by its own row 6 and, on the same diagonal, by row 0 and key 0;
  // the last row is read by itself alone.
  for (const int64_t element : {int64_t{6}, int64_t{1023} * 1030 + 1029, int64_t{3} * 1030 + 7}) {
    constexpr double kStep = 1.0 / 1024;
    Example moved = e;
    moved.pse[element] += kStep;
    const double up = moved.Loss();
    moved.pse[element] -= 2 * kStep;
    EXPECT_NEAR(g.dpse[element], (up - moved.Loss()) / (2 * kStep), 1e-6) << element;
    EXPECT_NE(g.dpse[element], 0) << element;
  }
}

}  // namespace
}  // namespace fusion_attention
