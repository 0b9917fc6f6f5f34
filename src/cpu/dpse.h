// The gradient of pse: every score's gradient goes to the stored element that the score read. Where
// several scores read one element (broadcast axes, compressed ALiBi) they are summed in the
// arithmetic type and rounded once. Slopes have sums of their own (slope_gradient.h).
#pragma once

#include <cstring>
#include <vector>

#include "fusion_attention/backward.h"
#include "src/cpu/scratch.h"
#include "src/cpu/slope_gradient.h"
#include "src/cpu/tile_inputs.h"

namespace fusion_attention::cpu {

template <typename T>
class PseGradient {
 public:
  PseGradient(const Job<T>& job, const ScoreView& dpse)
      : job_(job), dpse_(dpse), slopes_(job, dpse) {
    const Problem& p = job.problem;
    if (!wanted() || slopes_.wanted()) return;
    factor_.assign(static_cast<size_t>(job.rows), job.bias_after_scale ? T{1} : job.scale);
    numel_ = p.pse.batch * p.q_heads * p.pse.rows * p.pse.keys;
    across_batch_ = p.pse.batch == 1 && p.sequences() > 1;
    sums_ = across_batch_ || p.pse.kind == PseKind::kCompressed || (p.pse.rows == 1 && p.q_len > 1);
    if (sums_ && SizeOf(dpse.dtype) < static_cast<int64_t>(sizeof(T))) {
      own_ = AllocateBuffer(RoundUp(numel_, kRowPadding) * static_cast<int64_t>(sizeof(T)));
      std::memset(own_.get(), 0, static_cast<size_t>(numel_) * sizeof(T));
    }
    const int64_t bytes = numel_ * SizeOf(dpse.dtype);
    AdviseHugePages(dpse.data, bytes);
    // Without a mask every element is one score's and gets its gradient, if there are scores.
    const bool every_element_is_stored = p.mask.full && !sums_ && p.layout != Layout::kTND &&
                                         p.sequences() > 0 && p.q_len > 0 && p.score_dim() > 0;
    if (!every_element_is_stored) std::memset(dpse.data, 0, static_cast<size_t>(bytes));
  }

  bool wanted() const { return dpse_.data != nullptr; }
  // Whether pieces of different sequences, or of one (sequence, head), write the same elements and
  // so must not run at once.
  bool across_batch() const { return across_batch_; }
  bool across_rows() const { return wanted() && job_.problem.pse.kind == PseKind::kCompressed; }

  // Adds ds of one tile, times the scale where that comes after the bias; ds is [key][row].
  void Add(const Sequence& sequence, const RowIntervals& intervals, int64_t head, Span rows,
           Span keys, int64_t half, const T* ds, TileScratch<T>& tile) const {
    if (slopes_.wanted()) return slopes_.Add(sequence, head, rows, keys, half, ds, tile);
    const int64_t ld = RoundUp(job_.tile_keys, kRowPadding);
    job_.k.transpose_back(ds, rows.size(), keys.size(), factor_.data(), tile.bias_rows, ld);
    const PseRows all =
        PseRowsAt(job_.problem, dpse_.strides, sequence, intervals, head, rows, keys);
    if (!sums_ && all.even) {
      char* to = static_cast<char*>(dpse_.data) + all.element * SizeOf(dpse_.dtype);
      return job_.k.stream(tile.bias_rows, ld, rows.size(), keys.size(),
                           {to, dpse_.dtype, dpse_.strides.row, 1});
    }
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const PseRow row = PseRowAt(job_.problem, dpse_.strides, sequence, intervals, head, r, keys);
      const T* from = tile.bias_rows + (r - rows.begin) * ld;
      if (!sums_) {
        char* to = static_cast<char*>(dpse_.data) + row.element * SizeOf(dpse_.dtype);
        job_.k.store(from, ld, 1, row.keys, T{1}, {to, dpse_.dtype, 0, 1});
        continue;
      }
      T* to = (own_ != nullptr ? reinterpret_cast<T*>(own_.get()) : static_cast<T*>(dpse_.data)) +
              row.element;
      for (int64_t n = 0; n < row.keys; ++n) to[n] += from[n];
    }
  }

  void Finish() const {
    if (slopes_.wanted()) slopes_.Finish();
    if (own_ == nullptr) return;
    job_.k.store(reinterpret_cast<const T*>(own_.get()), 0, 1, numel_, T{1},
                 {dpse_.data, dpse_.dtype, 0, 1});
  }

 private:
  const Job<T>& job_;
  ScoreView dpse_;
  SlopeGradient<T> slopes_;
  std::vector<T> factor_;  // one factor per row of a block, all the same
  int64_t numel_ = 0;
  bool sums_ = false;
  bool across_batch_ = false;
  Buffer own_;  // sums of 16-bit gradients
};

}  // namespace fusion_attention::cpu
