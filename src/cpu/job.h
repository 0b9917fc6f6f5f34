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

// Keys of a tile. A function of score_dim alone, never of threads, batch or layout: it decides in
// which order numbers are added, and so every bit of the result. Packed keys and values fill up to
// 128 KiB of L2, because each tile costs a pass over a block's output: half as many keys are 1.3 %
// slower forward at 64 channels, 1 to 2 % at 256 and 512; twice as many gain less than 1 %.
inline int64_t TileKeys(int64_t score_dim) {
  return score_dim <= 128 ? 128 : score_dim <= 256 ? 64 : 32;
}

inline KeepRule KeepRuleOf(const Problem& problem, const Inputs& inputs) {
  if (problem.dropout == DropoutKind::kNone) return {};
  if (problem.dropout == DropoutKind::kDropAll) return {0, 0, 0, 1};  // no word reaches 1
  const KeepThreshold threshold = KeepThresholdOf(problem.dtype, problem.keep_prob);
  return {inputs.seed, inputs.offset, threshold.low_mask, threshold.threshold};
}

template <typename T>
struct Job {
  Job(const Problem& p, const Inputs& in, const KernelTable<T>& kernels)
      : problem(p),
        inputs(in),
        k(kernels),
        mask(p, in.atten_mask, kernels.hide_masked),
        rows(kernels.block_rows),
        tile_keys(std::min(TileKeys(p.score_dim()),
                           RoundUp(std::max<int64_t>(p.kv_len, 1), kKeyPadding))),
        key_ld(RoundUp(p.score_dim(), kRowPadding)),
        value_ld(RoundUp(p.value_dim, kRowPadding)),
        scale(static_cast<T>(p.scale)),
        sign(static_cast<T>((scale > 0) - (scale < 0))),
        bias_after_scale(p.pse.kind != PseKind::kNone && p.pse.after_scale),
        score_factor(bias_after_scale ? std::abs(scale) : T{1}),
        bias_factor(bias_after_scale ? T{1} : sign),
        magnitude(bias_after_scale || scale == 0 ? T{1} : std::abs(scale)),
        keep_factor(p.dropout == DropoutKind::kNone || p.dropout == DropoutKind::kDropAll
                        ? T{1}
                        : static_cast<T>(KeepFactor(p.keep_prob))),
        keep_rule(KeepRuleOf(p, in)) {}

  const Problem& problem;
  const Inputs& inputs;
  const KernelTable<T>& k;
  MaskReader mask;
  int64_t rows;       // query rows of a block
  int64_t tile_keys;  // keys of a tile; fewer where one holds all
  int64_t key_ld;     // row strides of packed query / key and of packed value / dy rows
  int64_t value_ld;
  T scale;
  // Scores are formed as magnitude * (score_factor * (sign * q k) + bias_factor * pse), which is
  // abs(scale) * (sign * q k + sign * pse), or abs(scale) * (sign * q k) + pse where the bias comes
  // after the scale. So the largest number before the last product is the largest score for every
  // scale.
  T sign;
  bool bias_after_scale;
  T score_factor;
  T bias_factor;
  T magnitude;
  T keep_factor;  // 1 / keep_prob; 1 where every weight is dropped, so that 0 stays 0
  KeepRule keep_rule;

  int64_t BlocksOf(const Sequence& s) const { return (s.q_len + rows - 1) / rows; }
  // Without keys, or without channels, there is nothing to attend to: outputs and gradients are 0.
  bool HasScores(const Sequence& s) const { return s.kv_len > 0 && problem.score_dim() > 0; }
  int64_t KvHead(int64_t head) const { return head / problem.group(); }
  int64_t KeyWords() const { return (tile_keys + kWordBits - 1) / kWordBits; }
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

}  // namespace fusion_attention::cpu
