// Job: one call on the CPU backend, as both directions see it: the problem, the caller's inputs,
// the kernels, and the few numbers that follow from them. T is the arithmetic type: float, or
// double for float64 inputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "fusion_attention/forward.h"
#include "src/cpu/kernels/kernel_table.h"
#include "src/cpu/tile_bits.h"
#include "src/dropout/philox.h"

namespace fusion_attention::cpu {

// The tile shape is a function of head_dim and the target alone, never of threads, batch or layout:
// it decides in which order numbers are added, and so every bit of the result. A tile's keys and
// values should fit L1 beside its scores: 64 keys x 64 channels x 4 bytes = 16 KiB.
inline int64_t TileKeys(int64_t head_dim) {
  return head_dim <= 128 ? 64 : head_dim <= 256 ? 32 : 16;
}

KeepRule KeepRuleOf(const Problem& problem, const Inputs& inputs);

template <typename T>
struct Job {
  Job(const Problem& p, const Inputs& in, const KernelTable<T>& kernels)
      : problem(p),
        inputs(in),
        k(kernels),
        mask(p, in.atten_mask),
        rows(kernels.block_rows),
        tile_keys(TileKeys(p.head_dim)),
        key_ld(RoundUp(p.head_dim, kRowPadding)),
        value_ld(RoundUp(p.value_dim, kRowPadding)),
        scale(static_cast<T>(p.scale)),
        sign(scale > 0   ? T{1}
             : scale < 0 ? T{-1}
                         : T{0}),
        magnitude(scale == 0 ? T{1} : std::abs(scale)),
        keep_factor(p.dropout == DropoutKind::kNone || p.dropout == DropoutKind::kDropAll
                        ? T{1}
                        : static_cast<T>(KeepFactor(p.keep_prob))),
        keep_rule(p.dropout == DropoutKind::kNone ? KeepRule{} : KeepRuleOf(p, in)) {}

  const Problem& problem;
  const Inputs& inputs;
  const KernelTable<T>& k;
  MaskReader mask;
  int64_t rows;       // query rows of a block
  int64_t tile_keys;  // keys of a tile
  int64_t key_ld;     // row strides of packed query / key and of packed value / dy rows
  int64_t value_ld;
  T scale;
  // scores are formed as magnitude * (sign * q k + sign * pse), so that the largest raw score is
  // the largest scaled one for every scale.
  T sign;
  T magnitude;
  T keep_factor;  // 1 / keep_prob; 1 where every weight is dropped, so that 0 stays 0
  KeepRule keep_rule;

  int64_t BlocksOf(const Sequence& s) const { return (s.q_len + rows - 1) / rows; }
  int64_t KvHead(int64_t head) const { return head / problem.group(); }
  int64_t KeyGroups() const { return (tile_keys + 31) / 32; }
};

// Rows [begin, ...) of a (sequence, head) of a tensor.
template <typename Void>
BasicRows<Void> RowsAt(const BasicTensorView<Void>& view, int64_t batch, int64_t head,
                       int64_t token) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  const int64_t element =
      batch * view.strides.batch + head * view.strides.head + token * view.strides.token;
  return {static_cast<Byte*>(view.data) + element * SizeOf(view.dtype), view.dtype,
          view.strides.token, view.strides.channel};
}

// Scratch of the score stage, which both directions share: bits, bias and dropout of one tile.
template <typename T>
struct TileScratch {
  template <typename A>
  TileScratch(A& arena, const Job<T>& job)
      : visible(arena.template Take<BitWord>(job.KeyGroups() * job.rows)),
        keep(arena.template Take<BitWord>(job.KeyGroups() * job.rows)),
        first(arena.template Take<uint64_t>(job.rows)),
        bias_rows(arena.template Take<T>(job.problem.pse.kind == PseKind::kNone
                                             ? 0
                                             : job.rows * RoundUp(job.tile_keys, kRowPadding))),
        bias(arena.template Take<T>(job.problem.pse.kind == PseKind::kNone
                                        ? 0
                                        : job.rows * RoundUp(job.tile_keys, kRowPadding))) {}
  BitWord* visible;
  BitWord* keep;
  uint64_t* first;
  T* bias_rows;  // [row][key]
  T* bias;       // [key][row]
};

// Where in the tensor pse (and dpse) a row of a tile begins: element index of (row, first key),
// keys apart by strides.key, and how many keys from there may be touched.
struct PseRow {
  int64_t element;
  int64_t keys;
};
PseRow PseRowAt(const Problem& problem, const ScoreStrides& strides, const Sequence& sequence,
                const RowIntervals& intervals, int64_t head, int64_t row, Span keys);

// bias[key][row] = pse of the tile.
template <typename T>
void ReadBias(const Job<T>& job, const Sequence& sequence, const RowIntervals& intervals,
              int64_t head, Span rows, Span keys, TileScratch<T>& tile);

// The keep bits of the tile, from Philox or from the caller's mask.
template <typename T>
void ReadKeep(const Job<T>& job, const Sequence& sequence, int64_t head, Span rows, Span keys,
              TileScratch<T>& tile);

}  // namespace fusion_attention::cpu
