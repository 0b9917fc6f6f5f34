// Masks, pse, sink and dropout of the reference backend, one score at a time.
#include "src/reference/row.h"

#include <cmath>

#include "src/dropout/philox.h"

namespace fusion_attention::reference {
namespace {

int64_t ElementIndex(const ScoreStrides& strides, int64_t batch, int64_t head, int64_t row,
                     int64_t key) {
  return batch * strides.batch + head * strides.head + row * strides.row + key * strides.key;
}

bool Masked(const Problem& problem, const Inputs& inputs, const HeadIndex& at, int64_t row,
            int64_t key) {
  if (problem.mask.source == MaskSource::kNone) return false;
  const auto* bytes = static_cast<const uint8_t*>(inputs.atten_mask.data);
  return bytes[ElementIndex(inputs.atten_mask.strides, at.sequence.batch, at.head, row, key)] != 0;
}

double Bias(const Problem& problem, const Inputs& inputs, const HeadIndex& at, int64_t row,
            int64_t key) {
  if (problem.pse.kind == PseKind::kNone) return 0;
  const PseElement e = PseElementOf(problem, at.sequence, row, key);
  return PseFactor(problem, at.sequence, row, key) *
         Load(inputs.pse.data, inputs.pse.dtype,
              ElementIndex(inputs.pse.strides, at.sequence.batch, at.head, e.row, e.key));
}

// A maximum that keeps NaN.
double Maximum(double a, double b) { return b > a || std::isnan(b) ? b : a; }

bool Keeps(const Problem& problem, const Inputs& inputs, const HeadIndex& at, int64_t row,
           int64_t key) {
  const Sequence& s = at.sequence;
  const int64_t element = s.dropout_begin + (at.head * s.q_len + row) * s.kv_len + key;
  switch (problem.dropout) {
    case DropoutKind::kNone:
      return true;
    case DropoutKind::kDropAll:
      return false;
    case DropoutKind::kPhilox:
      return Keep(inputs.seed, inputs.offset, element,
                  KeepThresholdOf(problem.dtype, problem.keep_prob));
    case DropoutKind::kExternal:
      return (inputs.dropout_mask[element / 8] >> (element % 8) & 1) != 0;
  }
  return true;
}

}  // namespace

bool HasNoScores(const Problem& problem, const Sequence& sequence) {
  return sequence.kv_len == 0 || problem.score_dim() == 0;
}

PseElement PseElementOf(const Problem& problem, const Sequence& sequence, int64_t row,
                        int64_t key) {
  if (problem.pse.kind == PseKind::kCompressed) return problem.CompressedPse(sequence, row, key);
  if (problem.pse.kind == PseKind::kSlopes) return {.row = 0, .key = 0};
  return {.row = problem.pse.rows == 1 ? 0 : row, .key = key};
}

double PseFactor(const Problem& problem, const Sequence& sequence, int64_t row, int64_t key) {
  if (problem.pse.kind != PseKind::kSlopes) return 1;
  const auto distance = std::fabs(static_cast<double>(key - row + problem.StartOffset(sequence)));
  return problem.pse.distance == PseDistance::kLinear ? -distance : -std::sqrt(distance);
}

Matrix ReadScoreRows(const Problem& problem, const ConstTensorView& view,
                     const ConstTensorView& rope, int64_t batch, int64_t head, int64_t begin,
                     int64_t rows) {
  return Beside(ReadRows(view, batch, head, begin, rows, problem.head_dim),
                ReadRows(rope, batch, head, begin, rows, problem.rope_dim));
}

VisibleRow ScoresOfRow(const Problem& problem, const Inputs& inputs, const HeadIndex& at,
                       const Matrix& query, const Matrix& key, int64_t row) {
  const RowIntervals intervals = problem.IntervalsOf(at.sequence);
  VisibleRow visible;
  for (int64_t j = intervals.Begin(row); j < intervals.End(row); ++j) {
    if (Masked(problem, inputs, at, row, j)) continue;
    const double product = Dot(query.Row(row), key.Row(j), problem.score_dim());
    const double bias = Bias(problem, inputs, at, row, j);
    const double score =
        problem.pse.after_scale ? product * problem.scale + bias : (product + bias) * problem.scale;
    visible.keys.push_back(j);
    visible.scores.push_back(score);
    visible.maximum = Maximum(visible.maximum, score);
  }
  if (problem.has_sink) visible.maximum = Maximum(visible.maximum, inputs.sink[at.head]);
  return visible;
}

double Dropped(const Problem& problem, const Inputs& inputs, const HeadIndex& at, int64_t row,
               int64_t key, double weight) {
  if (problem.dropout == DropoutKind::kNone) return weight;
  return Keeps(problem, inputs, at, row, key) ? weight * KeepFactor(problem.keep_prob) : 0;
}

}  // namespace fusion_attention::reference
