// What both directions need to know of one query row: the keys it sees, their scores, and which of
// them dropout keeps. Masked keys do not appear at all, so nothing that they hold can reach a
// result.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "fusion_attention/forward.h"
#include "fusion_attention/problem.h"
#include "src/reference/matrix.h"

namespace fusion_attention::reference {

// One query head of one sequence.
struct HeadIndex {
  Sequence sequence;
  int64_t head = 0;
};

struct VisibleRow {
  std::vector<int64_t> keys;   // ascending
  std::vector<double> scores;  // t = (q k^T + pse) * scale, one per key
  // Of the scores and the sink; NaN if one of them is NaN.
  double maximum = -std::numeric_limits<double>::infinity();

  // Nothing to attend to: no visible key, or only scores of -inf, and no sink above that. The
  // output and all gradients are 0.
  bool Empty() const { return maximum == -std::numeric_limits<double>::infinity(); }
};

// True where every row of the sequence is 0 with statistics (0, 0): there are no keys, or there is
// nothing to compare them by.
bool HasNoScores(const Problem& problem, const Sequence& sequence);

VisibleRow ScoresOfRow(const Problem& problem, const Inputs& inputs, const HeadIndex& at,
                       const Matrix& query, const Matrix& key, int64_t row);

// The weight of (row, key) after dropout: 0 if it is dropped, whatever it was, else times 1 /
// keep_prob.
double Dropped(const Problem& problem, const Inputs& inputs, const HeadIndex& at, int64_t row,
               int64_t key, double weight);

// Where score (row, key) finds its pse, as row and key of the stored tensor.
PseElement PseElementOf(const Problem& problem, const Sequence& sequence, int64_t row, int64_t key);

}  // namespace fusion_attention::reference
