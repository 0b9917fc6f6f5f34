// What both directions need to know of one query row: the keys it sees, their scores with their
// bias, and which of them dropout keeps. Masked keys do not appear at all, so nothing that they
// hold can reach a result.
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
  std::vector<double> scores;  // t, one per key: scaled, with the bias
  // Of the scores and the sink; NaN if one of them is NaN.
  double maximum = -std::numeric_limits<double>::infinity();

  // Nothing to attend to: no visible key, or only scores of -inf, and no sink above that. The
  // output and all gradients are 0.
  bool Empty() const { return maximum == -std::numeric_limits<double>::infinity(); }
};

// True where every row of the sequence is 0 with statistics (0, 0): there are no keys, or there is
// nothing to compare them by.
bool HasNoScores(const Problem& problem, const Sequence& sequence);

// What scores are made of: rows [begin, begin + rows) of one head of query or key, each with its
// channels of the rope behind its own. [rows, score_dim]
Matrix ReadScoreRows(const Problem& problem, const ConstTensorView& view,
                     const ConstTensorView& rope, int64_t batch, int64_t head, int64_t begin,
                     int64_t rows);

VisibleRow ScoresOfRow(const Problem& problem, const Inputs& inputs, const HeadIndex& at,
                       const Matrix& query, const Matrix& key, int64_t row);

// The weight of (row, key) after dropout: 0 if it is dropped, whatever it was, else times 1 /
// keep_prob.
double Dropped(const Problem& problem, const Inputs& inputs, const HeadIndex& at, int64_t row,
               int64_t key, double weight);

// The bias of score (row, key) is one stored element of pse times a factor. Where that element
// lies, as row and key of the stored tensor:
PseElement PseElementOf(const Problem& problem, const Sequence& sequence, int64_t row, int64_t key);
// and the factor: 1, or for slopes minus the distance between row and key, or minus its square
// root.
double PseFactor(const Problem& problem, const Sequence& sequence, int64_t row, int64_t key);

}  // namespace fusion_attention::reference
