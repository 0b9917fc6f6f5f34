// What a tile reads besides query, key and value: its pse and its dropout bits.
#pragma once

#include <type_traits>

#include "src/cpu/job.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

// Scratch of the score stage, which both directions share: bits, bias and dropout of one tile.
template <typename T>
struct TileScratch {
  TileScratch(Arena& arena, const Job<T>& job)
      : visible(arena.Take<BitWord>(job.KeyWords() * job.rows)),
        keep(arena.Take<BitWord>(job.KeyWords() * job.rows)) {
    const PseKind kind = job.problem.pse.kind;
    const int64_t tile = kind == PseKind::kDense || kind == PseKind::kCompressed
                             ? job.rows * RoundUp(job.tile_keys, kRowPadding)
                             : 0;
    const int64_t line_values = kind == PseKind::kSlopes ? job.rows + job.tile_keys : 0;
    bias_rows = arena.Take<T>(tile);
    line = arena.Take<T>(line_values);
    distance = arena.Take<double>(line_values);
    distance_sums = arena.Take<double>(kind == PseKind::kSlopes ? job.rows : 0);
  }
  BitWord* visible;
  BitWord* keep;
  T* bias_rows;           // stored bias, or its gradient: [row][key]
  T* line;                // slopes: the bias
  double* distance;       // slopes: what the bias is a multiple of
  double* distance_sums;  // slopes: [row]
};

// Where in the tensor pse (and dpse) a row of a tile begins: element index of (row, first key),
// keys apart by strides.key, and how many keys from there may be touched.
struct PseRow {
  int64_t element;
  int64_t keys;
};
PseRow PseRowAt(const Problem& problem, const ScoreStrides& strides, const Sequence& sequence,
                const RowIntervals& intervals, int64_t head, int64_t row, Span keys);

// The same for all rows of a block: where its first row begins, and whether the others follow
// strides.row apart, all of them with all keys.
struct PseRows {
  int64_t element;
  bool even;
};
PseRows PseRowsAt(const Problem& problem, const ScoreStrides& strides, const Sequence& sequence,
                  const RowIntervals& intervals, int64_t head, Span rows, Span keys);

// Adds the pse of the tile to its scores, as the kernels' add_bias does. Slopes: leaves
// `tile.distance` for the gradient.
template <typename T>
void AddBias(const Job<T>& job, const Sequence& sequence, const RowIntervals& intervals,
             int64_t head, Span rows, Span keys, TileScratch<T>& tile, T* scores,
             std::type_identity_t<T>* tile_max);

// The keep bits of the tile, from Philox or from the caller's mask.
template <typename T>
void ReadKeep(const Job<T>& job, const Sequence& sequence, int64_t head, Span rows, Span keys,
              TileScratch<T>& tile);

}  // namespace fusion_attention::cpu
