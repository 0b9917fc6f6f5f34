// Small float64 problems for the tests of the reference backend, stated directly, so that nothing
// depends on validation. Knows how to run both directions on contiguous operands.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "src/reference/reference.h"

namespace fusion_attention {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline MaskSpec MaskOf(int64_t sparse_mode, MaskSource source = MaskSource::kNone) {
  MaskSpec mask;
  mask.full = false;
  mask.sparse_mode = sparse_mode;
  mask.source = source;
  return mask;
}

// For `batch` sequences, or 1 for all.
inline PseSpec SlopesOf(PseDistance distance, int64_t batch) {
  return {.kind = PseKind::kSlopes,
          .after_scale = true,
          .distance = distance,
          .batch = batch,
          .rows = 1,
          .keys = 1};
}

// A float64 problem with contiguous [batch, head, token, channel] operands.
struct Example {
  Problem problem;
  std::vector<double> query, key, value, query_rope, key_rope, pse, dy;
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
    in.query_rope = ViewOf<ConstTensorView>(query_rope.data(), p.q_heads, p.q_len, p.rope_dim);
    in.key_rope = ViewOf<ConstTensorView>(key_rope.data(), p.kv_heads, p.kv_len, p.rope_dim);
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
  std::vector<double> dq, dk, dv, dq_rope, dk_rope, dpse;
  std::vector<float> dsink;
};

inline Gradients BackwardOf(const Example& e) {
  const Problem& p = e.problem;
  const auto like = [](const std::vector<double>& operand) {
    return std::vector<double>(operand.size(), kNan);
  };
  Gradients g = {.dq = like(e.query),
                 .dk = like(e.key),
                 .dv = like(e.value),
                 .dq_rope = like(e.query_rope),
                 .dk_rope = like(e.key_rope),
                 .dpse = like(e.pse),
                 .dsink = std::vector<float>(e.sink.size())};
  BackwardArgs args;
  args.inputs = e.InputsOf();
  args.dy = e.ViewOf<ConstTensorView>(e.dy.data(), p.q_heads, p.q_len, p.value_dim);
  args.attention_in = e.ViewOf<ConstTensorView>(e.out.data(), p.q_heads, p.q_len, p.value_dim);
  args.softmax_max = e.max.data();
  args.softmax_sum = e.sum.data();
  args.dq = e.ViewOf<TensorView>(g.dq.data(), p.q_heads, p.q_len, p.head_dim);
  args.dk = e.ViewOf<TensorView>(g.dk.data(), p.kv_heads, p.kv_len, p.head_dim);
  args.dv = e.ViewOf<TensorView>(g.dv.data(), p.kv_heads, p.kv_len, p.value_dim);
  args.dq_rope = e.ViewOf<TensorView>(g.dq_rope.data(), p.q_heads, p.q_len, p.rope_dim);
  args.dk_rope = e.ViewOf<TensorView>(g.dk_rope.data(), p.kv_heads, p.kv_len, p.rope_dim);
  if (!g.dpse.empty()) args.dpse = {g.dpse.data(), DType::kFloat64, e.PseStrides()};
  if (!g.dsink.empty()) args.dsink = g.dsink.data();
  reference::Backward(p, args);
  return g;
}

// Numbers in (-1, 1) that look random: the same on every machine.
inline std::vector<double> Numbers(int64_t count, double phase) {
  std::vector<double> numbers(count);
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = 2 * std::fmod(std::fabs(std::sin(phase + 12.9898 * i)) * 43758.5453, 1.0) - 1;
  }
  return numbers;
}

inline Example MakeExample(Problem p) {
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
  e.query_rope = Numbers(batches * p.q_heads * p.q_len * p.rope_dim, 9);
  e.key_rope = Numbers(batches * p.kv_heads * p.kv_len * p.rope_dim, 10);
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

inline Problem SmallProblem() {
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

inline Problem PackedProblem() {
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

}  // namespace fusion_attention
