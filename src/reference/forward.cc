// The forward pass, for every query row i of every head, q and k with the channels of their ropes:
//   t_ij = (q_i . k_j + bias_ij) * scale       for the visible keys j, with pse_type 1, or
//          q_i . k_j * scale + bias_ij         with pse_type 0, 2 and 3
//   m_i  = max(max_j t_ij, sink)
//   l_i  = sum_j exp(t_ij - m_i) + exp(sink - m_i)
//   o_i  = sum_j drop_ij * exp(t_ij - m_i) * v_j / l_i
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/reference/reference.h"
#include "src/reference/row.h"

namespace fusion_attention::reference {
namespace {

struct RowResult {
  float max = 0;
  float sum = 0;
};

// Computes one row; `out` [value_dim] holds zeros on entry.
RowResult AttendRow(const Problem& problem, const Inputs& inputs, const HeadIndex& at,
                    const VisibleRow& visible, const Matrix& value, int64_t row, double* out) {
  if (visible.Empty()) {
    return {-std::numeric_limits<float>::max(), problem.MaskedRowSum(at.sequence)};
  }
  // The maximum as it is reported, so that the reported pair is one normaliser exactly.
  const auto max = static_cast<float>(visible.maximum);
  double sum = problem.has_sink ? std::exp(inputs.sink[at.head] - double{max}) : 0;
  for (size_t n = 0; n < visible.keys.size(); ++n) {
    const int64_t j = visible.keys[n];
    const double weight = std::exp(visible.scores[n] - max);
    sum += weight;
    const double dropped = Dropped(problem, inputs, at, row, j, weight);
    for (int64_t c = 0; c < problem.value_dim; ++c) out[c] += dropped * value.Row(j)[c];
  }
  for (int64_t c = 0; c < problem.value_dim; ++c) out[c] /= sum;
  return {max, static_cast<float>(sum)};
}

// Rows that belong to no sequence are 0, statistics included.
void FillZero(const Problem& problem, const ForwardArgs& args) {
  const int64_t batches = problem.layout == Layout::kTND ? 1 : problem.batch;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t h = 0; h < problem.q_heads; ++h) {
      ZeroRows(args.out, b, h, problem.q_len, problem.value_dim);
    }
  }
  const int64_t floats = batches * problem.q_heads * problem.q_len * kStatisticsCopies;
  std::fill_n(args.softmax_max, floats, 0.0f);
  std::fill_n(args.softmax_sum, floats, 0.0f);
}

void AttendHead(const Problem& problem, const ForwardArgs& args, const HeadIndex& at,
                const Matrix& key, const Matrix& value) {
  const Sequence& s = at.sequence;
  const Matrix query = ReadScoreRows(problem, args.inputs.query, args.inputs.query_rope, s.batch,
                                     at.head, s.q_begin, s.q_len);
  Matrix out(s.q_len, problem.value_dim);
  for (int64_t row = 0; row < s.q_len; ++row) {
    const VisibleRow visible = ScoresOfRow(problem, args.inputs, at, query, key, row);
    const RowResult result = AttendRow(problem, args.inputs, at, visible, value, row, out.Row(row));
    const int64_t index = problem.StatisticsIndex(s, at.head, row);
    std::fill_n(args.softmax_max + index, kStatisticsCopies, result.max);
    std::fill_n(args.softmax_sum + index, kStatisticsCopies, result.sum);
  }
  WriteRows(out, args.out, s.batch, at.head, s.q_begin);
}

}  // namespace

void Forward(const Problem& problem, const ForwardArgs& args) {
  FillZero(problem, args);
  for (int64_t n = 0; n < problem.sequences(); ++n) {
    const Sequence s = problem.SequenceAt(n);
    if (HasNoScores(problem, s)) continue;
    for (int64_t kv_head = 0; kv_head < problem.kv_heads; ++kv_head) {
      const Matrix key = ReadScoreRows(problem, args.inputs.key, args.inputs.key_rope, s.batch,
                                       kv_head, s.kv_begin, s.kv_len);
      const Matrix value =
          ReadRows(args.inputs.value, s.batch, kv_head, s.kv_begin, s.kv_len, problem.value_dim);
      for (int64_t g = 0; g < problem.group(); ++g) {
        AttendHead(problem, args, {s, kv_head * problem.group() + g}, key, value);
      }
    }
  }
}

}  // namespace fusion_attention::reference
