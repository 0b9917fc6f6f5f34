// The reference backend against closed forms, and its gradients against finite differences of its
// own forward pass. Problems are stated directly, so nothing here depends on validation.
#include "src/reference/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "src/reference/row.h"

namespace fusion_attention {
namespace {

constexpr float kFloatMax = std::numeric_limits<float>::max();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

MaskSpec MaskOf(int64_t sparse_mode, MaskSource source = MaskSource::kNone) {
  MaskSpec mask;
  mask.full = false;
  mask.sparse_mode = sparse_mode;
  mask.source = source;
  return mask;
}

// A float64 problem with contiguous [batch, head, token, channel] operands.
struct Example {
  Problem problem;
  std::vector<double> query, key, value, pse, dy;
  std::vector<uint8_t> mask, dropout_mask;
  std::vector<float> sink;
  std::vector<double> out;
  std::vector<float> max, sum;

  Strides StridesOf(int64_t heads, int64_t tokens, int64_t dim) const {
    const int64_t batch = problem.layout == Layout::kTND ? 0 : heads * tokens * dim;
    return {.batch = batch, .head = tokens * dim, .token = dim, .channel = 1};
  }
  template <typename View>
  View ViewOf(decltype(View::data) data, int64_t heads, int64_t tokens, int64_t dim) const {
    return {.data = data, .dtype = DType::kFloat64, .strides = StridesOf(heads, tokens, dim)};
  }
  ScoreStrides PseStrides() const {
    const PseSpec& p = problem.pse;
    return {.batch = p.batch == 1 ? 0 : problem.q_heads * p.rows * p.keys,
            .head = p.rows * p.keys,
            .row = p.rows == 1 ? 0 : p.keys,
            .key = 1};
  }
  Inputs InputsOf() const {
    const Problem& p = problem;
    Inputs in;
    in.query = ViewOf<ConstTensorView>(query.data(), p.q_heads, p.q_len, p.head_dim);
    in.key = ViewOf<ConstTensorView>(key.data(), p.kv_heads, p.kv_len, p.head_dim);
    in.value = ViewOf<ConstTensorView>(value.data(), p.kv_heads, p.kv_len, p.value_dim);
    if (!pse.empty()) in.pse = {pse.data(), DType::kFloat64, PseStrides()};
    if (!mask.empty()) in.atten_mask = {mask.data(), DType::kUInt8, {0, 0, p.kv_len, 1}};
    if (!sink.empty()) in.sink = sink.data();
    if (!dropout_mask.empty()) in.dropout_mask = dropout_mask.data();
    in.seed = 2;
    return in;
  }
  int64_t Batches() const { return problem.layout == Layout::kTND ? 1 : problem.batch; }

  void Forward() {
    const Problem& p = problem;
    out.assign(Batches() * p.q_heads * p.q_len * p.value_dim, kNan);
    max.assign(Batches() * p.q_heads * p.q_len * 8, -1);
    sum.assign(max.size(), -1);
    reference::Forward(p, {.inputs = InputsOf(),
                           .out = ViewOf<TensorView>(out.data(), p.q_heads, p.q_len, p.value_dim),
                           .softmax_max = max.data(),
                           .softmax_sum = sum.data()});
  }
  double Loss() {
    Forward();
    double loss = 0;
    for (size_t i = 0; i < out.size(); ++i) loss += out[i] * dy[i];
    return loss;
  }
};

struct Gradients {
  std::vector<double> dq, dk, dv, dpse;
  std::vector<float> dsink;
};

Gradients BackwardOf(const Example& e) {
  const Problem& p = e.problem;
  Gradients g = {std::vector<double>(e.query.size(), kNan), std::vector<double>(e.key.size(), kNan),
                 std::vector<double>(e.value.size(), kNan), std::vector<double>(e.pse.size(), kNan),
                 std::vector<float>(e.sink.size())};
  BackwardArgs args;
  args.inputs = e.InputsOf();
  args.dy = e.ViewOf<ConstTensorView>(e.dy.data(), p.q_heads, p.q_len, p.value_dim);
  args.attention_in = e.ViewOf<ConstTensorView>(e.out.data(), p.q_heads, p.q_len, p.value_dim);
  args.softmax_max = e.max.data();
  args.softmax_sum = e.sum.data();
  args.dq = e.ViewOf<TensorView>(g.dq.data(), p.q_heads, p.q_len, p.head_dim);
  args.dk = e.ViewOf<TensorView>(g.dk.data(), p.kv_heads, p.kv_len, p.head_dim);
  args.dv = e.ViewOf<TensorView>(g.dv.data(), p.kv_heads, p.kv_len, p.value_dim);
  if (!g.dpse.empty()) args.dpse = {g.dpse.data(), DType::kFloat64, e.PseStrides()};
  if (!g.dsink.empty()) args.dsink = g.dsink.data();
  reference::Backward(p, args);
  return g;
}

// Numbers in (-1, 1) that look random: the same on every machine.
std::vector<double> Numbers(int64_t count, double phase) {
  std::vector<double> numbers(count);
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = 2 * std::fmod(std::fabs(std::sin(phase + 12.9898 * i)) * 43758.5453, 1.0) - 1;
  }
  return numbers;
}

Example MakeExample(Problem p) {
  p.dtype = DType::kFloat64;
  Example e;
  e.problem = p;
  const int64_t batches = e.Batches();
  e.query = Numbers(batches * p.q_heads * p.q_len * p.head_dim, 1);
  e.key = Numbers(batches * p.kv_heads * p.kv_len * p.head_dim, 2);
  e.value = Numbers(batches * p.kv_heads * p.kv_len * p.value_dim, 3);
  e.dy = Numbers(batches * p.q_heads * p.q_len * p.value_dim, 4);
  if (p.pse.kind != PseKind::kNone) {
    e.pse = Numbers(p.pse.batch * p.q_heads * p.pse.rows * p.pse.keys, 5);
  }
  if (p.mask.source == MaskSource::kDense) {
    for (double x : Numbers(p.q_len * p.kv_len, 6)) e.mask.push_back(x > 0.3 ? 7 : 0);
  }
  if (p.dropout == DropoutKind::kExternal) {
    for (double x : Numbers((p.numels + 7) / 8, 7)) e.dropout_mask.push_back(128 + 127 * x);
  }
  if (p.has_sink) {
    for (double x : Numbers(p.q_heads, 8)) e.sink.push_back(static_cast<float>(x));
  }
  return e;
}

Problem SmallProblem() {
  Problem p;
  p.batch = 2;
  p.q_heads = p.kv_heads = 1;
  p.q_len = 3;
  p.kv_len = 4;
  p.head_dim = 3;
  p.value_dim = 2;
  p.scale = 0.7;
  return p;
}

Problem PackedProblem() {
  Problem p = SmallProblem();
  p.layout = Layout::kTND;
  p.q_len = 8;  // the last two tokens belong to no sequence
  p.kv_len = 9;
  p.packed = {
      {.batch = 0, .q_len = 2, .kv_len = 3},
      {.batch = 1, .q_begin = 2, .q_len = 1, .kv_begin = 3, .dropout_begin = 6},
      {.batch = 2, .q_begin = 3, .kv_begin = 3, .kv_len = 1, .dropout_begin = 6},
      {.batch = 3, .q_begin = 3, .q_len = 3, .kv_begin = 4, .kv_len = 4, .dropout_begin = 6}};
  p.batch = 4;
  return p;
}

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
  p.pse = {PseKind::kDense, 1, 1, 1};
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
  p.pse = {PseKind::kDense, 1, 1, 4};
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
         p.pse = {PseKind::kDense, 2, 3, 4};
       })},
      {"broadcast_pse", dense([](Problem& p) {
         p.pse = {PseKind::kDense, 1, 1, 4};
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
  p.pse = {PseKind::kCompressed, 1, 1024, 1030};
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
