#include "src/cpu/tile_inputs.h"

#include <cstring>

namespace fusion_attention::cpu {

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

template <typename T>
void ReadBias(const Job<T>& job, const Sequence& sequence, const RowIntervals& intervals,
              int64_t head, Span rows, Span keys, TileScratch<T>& tile) {
  const ConstScoreView& pse = job.inputs.pse;
  const int64_t ld = RoundUp(job.tile_keys, kRowPadding);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const PseRow row = PseRowAt(job.problem, pse.strides, sequence, intervals, head, r, keys);
    const char* data = static_cast<const char*>(pse.data) + row.element * SizeOf(pse.dtype);
    job.k.pack({data, pse.dtype, 0, pse.strides.key}, 1, row.keys,
               tile.bias_rows + (r - rows.begin) * ld, ld);
  }
  job.k.transpose(tile.bias_rows, ld, rows.size(), keys.size(), T{1}, tile.bias);
}

template <typename T>
void ReadKeep(const Job<T>& job, const Sequence& sequence, int64_t head, Span rows, Span keys,
              TileScratch<T>& tile) {
  std::memset(tile.first, 0, static_cast<size_t>(job.rows) * sizeof(uint64_t));
  const uint64_t head_begin =
      static_cast<uint64_t>(sequence.dropout_begin + head * sequence.q_len * sequence.kv_len);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    tile.first[r - rows.begin] =
        head_begin + static_cast<uint64_t>(r * sequence.kv_len + keys.begin);
  }
  if (job.problem.dropout == DropoutKind::kExternal) {
    ReadKeepBits(job.inputs.dropout_mask, job.problem.numels, tile.first, rows.size(), keys.size(),
                 job.rows, tile.keep);
  } else {
    job.k.keep_bits(tile.first, keys.size(), job.keep_rule, tile.keep);
  }
}

template void ReadBias<float>(const Job<float>&, const Sequence&, const RowIntervals&, int64_t,
                              Span, Span, TileScratch<float>&);
template void ReadBias<double>(const Job<double>&, const Sequence&, const RowIntervals&, int64_t,
                               Span, Span, TileScratch<double>&);
template void ReadKeep<float>(const Job<float>&, const Sequence&, int64_t, Span, Span,
                              TileScratch<float>&);
template void ReadKeep<double>(const Job<double>&, const Sequence&, int64_t, Span, Span,
                               TileScratch<double>&);

}  // namespace fusion_attention::cpu
