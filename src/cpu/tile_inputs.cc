#include "src/cpu/tile_inputs.h"

#include <cmath>
#include <cstring>

namespace fusion_attention::cpu {

namespace {

// line[n] = what a slope is multiplied with where key - row + StartOffset is furthest - n. Exact
// but for the root: the integers stay below 2^42.
void FillDistances(PseDistance distance, int64_t furthest, int64_t count, double* line) {
  for (int64_t n = 0; n < count; ++n) line[n] = -std::abs(static_cast<double>(furthest - n));
  if (distance == PseDistance::kLinear) return;
  for (int64_t n = 0; n < count; ++n) line[n] = -std::sqrt(-line[n]);
}

// One line serves the whole tile, whole blocks of rows included: the bias depends on key - row.
// Returns its middle, where row == key.
template <typename T>
const T* SlopeLine(const Job<T>& job, const Sequence& sequence, int64_t head, Span rows, Span keys,
                   TileScratch<T>& tile) {
  const ConstScoreView& pse = job.inputs.pse;
  float slope;
  std::memcpy(&slope,
              static_cast<const char*>(pse.data) +
                  (sequence.batch * pse.strides.batch + head * pse.strides.head) *
                      static_cast<int64_t>(sizeof(slope)),
              sizeof(slope));
  const int64_t count = job.rows + keys.size() - 1;
  const int64_t furthest = keys.end - 1 - rows.begin + job.problem.StartOffset(sequence);
  FillDistances(job.problem.pse.distance, furthest, count, tile.distance);
  for (int64_t n = 0; n < count; ++n) tile.line[n] = static_cast<T>(slope * tile.distance[n]);
  return tile.line + keys.size() - 1;
}

// The bias of a tile that has one stored. Where it lies in whole rows of whole vectors it is read
// in place; kernels read past other ends, so those rows are packed first.
template <typename T>
SourceRows StoredBias(const Job<T>& job, const Sequence& sequence, const RowIntervals& intervals,
                      int64_t head, Span rows, Span keys, TileScratch<T>& tile) {
  const ConstScoreView& pse = job.inputs.pse;
  const PseRows stored = PseRowsAt(job.problem, pse.strides, sequence, intervals, head, rows, keys);
  const auto from = [&](int64_t element) -> const void* {
    return static_cast<const char*>(pse.data) + element * SizeOf(pse.dtype);
  };
  if (stored.even && rows.size() == job.rows && keys.size() % job.k.lanes == 0 &&
      pse.strides.key == 1) {
    return {from(stored.element), pse.dtype, pse.strides.row, 1};
  }
  const int64_t ld = RoundUp(job.tile_keys, kRowPadding);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const PseRow row = PseRowAt(job.problem, pse.strides, sequence, intervals, head, r, keys);
    job.k.pack({from(row.element), pse.dtype, 0, pse.strides.key}, 1, row.keys,
               tile.bias_rows + (r - rows.begin) * ld, ld);
  }
  return {tile.bias_rows, sizeof(T) == sizeof(float) ? DType::kFloat32 : DType::kFloat64, ld, 1};
}

}  // namespace

PseRow PseRowAt(const Problem& problem, const ScoreStrides& strides, const Sequence& sequence,
                const RowIntervals& intervals, int64_t head, int64_t row, Span keys) {
  const int64_t base = sequence.batch * strides.batch + head * strides.head;
  if (problem.pse.kind == PseKind::kDense)
    return {base + row * strides.row + keys.begin * strides.key, keys.size()};
  // A compressed pse has an element only for keys that the causal row sees.
  const PseElement element = problem.CompressedPse(sequence, row, keys.begin);
  const int64_t visible = std::clamp<int64_t>(intervals.End(row) - keys.begin, 0, keys.size());
  return {base + element.row * strides.row + element.key * strides.key, visible};
}

PseRows PseRowsAt(const Problem& problem, const ScoreStrides& strides, const Sequence& sequence,
                  const RowIntervals& intervals, int64_t head, Span rows, Span keys) {
  // The first row has the fewest keys. A compressed pse jumps back by 1024 rows now and then, which
  // the last row of a block has seen if any has.
  const PseRow first = PseRowAt(problem, strides, sequence, intervals, head, rows.begin, keys);
  const PseRow last = PseRowAt(problem, strides, sequence, intervals, head, rows.end - 1, keys);
  return {first.element, first.keys == keys.size() &&
                             last.element - first.element == (rows.size() - 1) * strides.row};
}

template <typename T>
void AddBias(const Job<T>& job, const Sequence& sequence, const RowIntervals& intervals,
             int64_t head, Span rows, Span keys, TileScratch<T>& tile, T* scores,
             std::type_identity_t<T>* tile_max) {
  if (job.problem.pse.kind == PseKind::kSlopes) {
    const T* line = SlopeLine(job, sequence, head, rows, keys, tile);
    return job.k.add_line(scores, line, keys.size(), job.score_factor, job.bias_factor, tile_max);
  }
  const SourceRows bias = StoredBias(job, sequence, intervals, head, rows, keys, tile);
  job.k.add_bias(scores, bias, keys.size(), job.score_factor, job.bias_factor, tile_max);
}

template <typename T>
void ReadKeep(const Job<T>& job, const Sequence& sequence, int64_t head, Span rows, Span keys,
              TileScratch<T>& tile) {
  const int64_t head_begin = sequence.dropout_begin + head * sequence.q_len * sequence.kv_len;
  const auto first = static_cast<uint64_t>(head_begin + rows.begin * sequence.kv_len + keys.begin);
  const auto row_stride = static_cast<uint64_t>(sequence.kv_len);
  if (job.problem.dropout == DropoutKind::kExternal) {
    ReadKeepBits(job.inputs.dropout_mask, job.problem.numels, first, row_stride, rows.size(),
                 keys.size(), job.rows, tile.keep);
  } else {
    job.k.keep_bits(first, row_stride, keys.size(), job.keep_rule, tile.keep);
  }
}

template void AddBias<float>(const Job<float>&, const Sequence&, const RowIntervals&, int64_t, Span,
                             Span, TileScratch<float>&, float*, float*);
template void AddBias<double>(const Job<double>&, const Sequence&, const RowIntervals&, int64_t,
                              Span, Span, TileScratch<double>&, double*, double*);
template void ReadKeep<float>(const Job<float>&, const Sequence&, int64_t, Span, Span,
                              TileScratch<float>&);
template void ReadKeep<double>(const Job<double>&, const Sequence&, int64_t, Span, Span,
                               TileScratch<double>&);

}  // namespace fusion_attention::cpu
