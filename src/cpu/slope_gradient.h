// The gradient of slopes: a slope is multiplied with a distance for every score of a head and added
// after the scale, so its gradient is the sum of dS times that distance: a sum so long that it is
// formed in double.
//
// Each query row has a sum of its own for each half of the keys (backward_columns.h): the tiles of
// a half run in ascending order under every schedule, and no two of them at once. The sums are
// added up in a fixed order at the end. Two doubles for each row are half of one statistics tensor.
#pragma once

#include <cstring>
#include <vector>

#include "fusion_attention/backward.h"
#include "src/cpu/scratch.h"
#include "src/cpu/tile_inputs.h"

namespace fusion_attention::cpu {

template <typename T>
class SlopeGradient {
 public:
  SlopeGradient(const Job<T>& job, const ScoreView& dpse) : job_(job), dpse_(dpse) {
    if (!wanted()) return;
    const Problem& p = job.problem;
    const int64_t rows = (p.layout == Layout::kTND ? 1 : p.batch) * p.q_heads * p.q_len;
    const int64_t bytes = rows * 2 * static_cast<int64_t>(sizeof(double));
    memory_ = AllocateBuffer(bytes);
    std::memset(memory_.get(), 0, static_cast<size_t>(bytes));
  }

  bool wanted() const { return dpse_.data != nullptr && job_.problem.pse.kind == PseKind::kSlopes; }

  // Adds one tile, whose distances AddBias() has left in `tile`; ds is [key][row].
  void Add(const Sequence& sequence, int64_t head, Span rows, Span keys, int64_t half, const T* ds,
           TileScratch<T>& tile) const {
    job_.k.line_products(ds, tile.distance + keys.size() - 1, keys.size(), tile.distance_sums);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      RowSums(sequence, head, r)[half] += tile.distance_sums[r - rows.begin];
    }
  }

  // Slopes without a batch axis collect over the sequences, in ascending order.
  void Finish() const {
    const Problem& p = job_.problem;
    std::vector<double> slopes(static_cast<size_t>(p.pse.batch * p.q_heads));
    for (int64_t i = 0; i < p.sequences(); ++i) {
      const Sequence s = p.SequenceAt(i);
      for (int64_t head = 0; head < p.q_heads; ++head) {
        double sum = 0;
        for (int64_t row = 0; row < s.q_len; ++row) {
          const double* halves = RowSums(s, head, row);
          sum += halves[0] + halves[1];
        }
        slopes[static_cast<size_t>(s.batch * dpse_.strides.batch + head * dpse_.strides.head)] +=
            sum;
      }
    }
    for (size_t n = 0; n < slopes.size(); ++n) {
      static_cast<float*>(dpse_.data)[n] = static_cast<float>(slopes[n]);
    }
  }

 private:
  double* RowSums(const Sequence& sequence, int64_t head, int64_t row) const {
    return reinterpret_cast<double*>(memory_.get()) +
           2 * job_.problem.RowIndex(sequence, head, row);
  }

  const Job<T>& job_;
  ScoreView dpse_;
  Buffer memory_;
};

}  // namespace fusion_attention::cpu
