// The backward pass on one cell: a range of query rows of one head against a range of keys. Five
// products per tile (FlashAttention-2, Dao 2023, algorithm 2): S = Q K^T and dP = dO V^T again,
// then dV += P^T dO, dK += dS^T Q, dQ += dS K.
//
// A cell adds each tile's contribution to dQ, dK and dV on its own, in ascending order of keys (dQ,
// of each half of a chunk) and of heads, descending order of rows (dK, dV). So the bits of a
// gradient do not depend on how a head is cut into cells, only on the order of the cells of one row
// or one column.
#pragma once

#include <algorithm>
#include <cfloat>

#include "fusion_attention/backward.h"
#include "src/cpu/dpse.h"
#include "src/cpu/dq_sums.h"
#include "src/cpu/job.h"
#include "src/cpu/key_tile.h"
#include "src/cpu/ropes.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

template <typename T, typename Operand>
struct CellScratch {
  CellScratch(Arena& arena, const Job<T>& job, const ProductTable<T, Operand>& products,
              int64_t blocks)
      : tile(arena, job), keys(arena, job, products) {
    const int64_t tile_size = (job.tile_keys + kKeyPadding) * job.rows;
    const int64_t rows = blocks * job.rows;
    p = arena.Take<T>(tile_size);
    ds = arena.Take<T>(tile_size);
    operands = arena.Take<Operand>(kGradientTiles<T, Operand> * tile_size);
    packed = arena.Take<Operand>(
        kPlainOperands<T, Operand> ? 0 : job.rows * (job.key_ld + job.value_ld));
    q = arena.Take<Operand>(rows * job.key_ld);
    dy = arena.Take<Operand>(rows * job.value_ld);
    qt = arena.Take<Operand>(rows * job.key_ld);
    dyt = arena.Take<Operand>(rows * job.value_ld);
    dq = arena.Take<T>(rows * job.key_ld);
    dq_second = arena.Take<T>(rows * job.key_ld);
    out = arena.Take<T>(job.rows * job.value_ld);
    dout = arena.Take<T>(kPlainOperands<T, Operand> ? 0 : job.rows * job.value_ld);
    max = arena.Take<T>(rows);
    weight = arena.Take<T>(rows);
    delta = arena.Take<T>(rows);
    finite = arena.Take<bool>(blocks);
    blind = arena.Take<bool>(blocks);
  }
  TileScratch<T> tile;
  KeyTile<T, Operand> keys;
  T *p, *ds;                // one tile of scores
  Operand* operands;        // p and ds as operands, where they are not that as they are
  Operand* packed;          // one block of q and dy, where plain rows are no summands
  Operand *q, *dy;          // the cell's rows as summands,
  Operand *qt, *dyt;        // transposed by block,
  T *dq, *dq_second;        // and their sums (dq_sums.h)
  T *out, *dout;            // one block, for delta; dout only where dy holds no plain rows
  T *max, *weight, *delta;  // dropout's factor is in weight, and divided out of delta
  bool* finite;             // per block: no NaN or infinity in q and dy
  bool* blind;              // per block: some row has no weights at all
};

template <typename T, typename Operand>
class CellPass {
 public:
  using Products = ProductTable<T, Operand>;
  using Scratch = CellScratch<T, Operand>;

  // `deltas` holds delta of every row from its first cell on, so that those that continue its sum
  // of dQ need not read the output: null where none does.
  CellPass(const Job<T>& job, const Products& products, const BackwardArgs& args, T* deltas,
           const PseGradient<T>& dpse)
      : job_(job), products_(products), args_(args), deltas_(deltas), dpse_(dpse) {}

  // Adds to s.dq and s.dq_second; dk and dv: the cell's keys, packed.
  void Run(const Cell& cell, Scratch& s, T* dk, T* dv) const {
    const RowIntervals intervals = job_.problem.IntervalsOf(cell.sequence);
    if (cell.rows.size() == 0 || !job_.HasScores(cell.sequence)) return;
    const Span seen{std::max(cell.keys.begin, intervals.Begin(cell.rows.begin)),
                    std::min(cell.keys.end, intervals.End(cell.rows.end - 1))};
    if (seen.begin >= seen.end) return;
    for (int64_t b = 0; b * job_.rows < cell.rows.size(); ++b) LoadBlock(cell, b, s);
    for (int64_t half = cell.halves.begin; half < cell.halves.end; ++half) {
      for (int64_t first = seen.begin / job_.tile_keys * job_.tile_keys; first < seen.end;
           first += job_.tile_keys) {
        if (cell.chunk.HalfOf(first) != half) continue;
        RunKeys(cell, intervals, {first, std::min(first + job_.tile_keys, cell.keys.end)}, s, dk,
                dv);
      }
    }
  }

 private:
  Span RowsOfBlock(const Cell& cell, int64_t b) const {
    const int64_t begin = cell.rows.begin + b * job_.rows;
    return {begin, std::min(begin + job_.rows, cell.rows.end)};
  }

  void LoadBlock(const Cell& cell, int64_t b, Scratch& s) const {
    const Problem& p = job_.problem;
    const Span rows = RowsOfBlock(cell, b);
    const int64_t token = cell.sequence.q_begin + rows.begin;
    const int64_t at = b * job_.rows;
    // Plain rows are summands where they lie; others are packed only to be made some.
    constexpr bool kPlain = kPlainOperands<T, Operand>;
    Operand* q = kPlain ? s.q + at * job_.key_ld : s.packed;
    Operand* dy = kPlain ? s.dy + at * job_.value_ld : s.packed + job_.rows * job_.key_ld;
    const RopedRows<const void> query =
        RowsAt(Query(args_.inputs), cell.sequence.batch, cell.head, token);
    const SourceRows gradient = RowsAt(args_.dy, cell.sequence.batch, cell.head, token);
    const bool finite_q = PackRoped(job_, products_.pack, query, rows.size(), q);
    const bool finite_dy = products_.pack(gradient, rows.size(), p.value_dim, dy, job_.value_ld);
    s.finite[b] = finite_q && finite_dy;
    products_.transpose(q, job_.key_ld, rows.size(), p.score_dim(), job_.sign,
                        s.qt + at * job_.key_ld);
    products_.transpose(dy, job_.value_ld, rows.size(), p.value_dim, T{1},
                        s.dyt + at * job_.value_ld);
    products_.summands(q, job_.key_ld, rows.size(), s.q + at * job_.key_ld);
    products_.summands(dy, job_.value_ld, rows.size(), s.dy + at * job_.value_ld);
    const bool kept = deltas_ != nullptr && cell.RunsFirst();
    const bool first = cell.first_keys || !kept;
    if (first) FindDeltas(cell, rows, gradient, dy, s, s.delta + at);
    s.blind[b] = false;
    for (int64_t r = 0; r < rows.size(); ++r) {
      const int64_t row = p.RowIndex(cell.sequence, cell.head, rows.begin + r);
      s.max[at + r] = static_cast<T>(args_.softmax_max[row * kStatisticsCopies]);
      // With the factor of dropout in each row's weight, P (keep dP factor - delta) is
      // P factor (keep dP - delta / factor): nothing is left to multiply a pair with.
      s.weight[at + r] =
          job_.keep_factor / static_cast<T>(args_.softmax_sum[row * kStatisticsCopies]);
      if (first) s.delta[at + r] /= job_.keep_factor;
      if (kept) {
        if (first) deltas_[row] = s.delta[at + r];
        s.delta[at + r] = deltas_[row];
      }
      s.blind[b] |= IsBlind(s.max[at + r]);
    }
  }

  // delta = rowsum(dO * O) of a block, from its rows in the arithmetic type.
  void FindDeltas(const Cell& cell, Span rows, const SourceRows& gradient,
                  [[maybe_unused]] const Operand* dy, Scratch& s, T* delta) const {
    const KernelTable<T>& k = job_.k;
    const int64_t channels = job_.problem.value_dim;
    const int64_t token = cell.sequence.q_begin + rows.begin;
    k.pack(RowsAt(args_.attention_in, cell.sequence.batch, cell.head, token), rows.size(), channels,
           s.out, job_.value_ld);
    const T* dout = s.dout;
    if constexpr (kPlainOperands<T, Operand>) {
      dout = dy;
    } else {
      k.pack(gradient, rows.size(), channels, s.dout, job_.value_ld);
    }
    k.deltas(s.out, dout, job_.value_ld, rows.size(), channels, delta);
  }

  // What the forward pass reports for a row that sees no key, or whose visible scores all are -inf.
  static bool IsBlind(T max) { return max == static_cast<T>(-FLT_MAX); }

  // A blind row counts as fully masked also where its scores are visible, so that a NaN of its dy
  // meets no weight of 0.
  void HideBlindRows(int64_t b, int64_t rows, VisibleTile& tile, Scratch& s) const {
    const int64_t words = (tile.keys.size() + kWordBits - 1) / kWordBits;
    if (!tile.partial) std::fill_n(s.tile.visible, words * job_.rows, ~BitWord{0});
    tile.partial = true;
    for (int64_t r = 0; r < rows; ++r) {
      if (!IsBlind(s.max[b * job_.rows + r])) continue;
      for (int64_t w = 0; w < words; ++w) s.tile.visible[w * job_.rows + r] = 0;
    }
  }

  void RunKeys(const Cell& cell, const RowIntervals& intervals, Span keys, Scratch& s, T* dk,
               T* dv) const {
    bool loaded = false;
    for (int64_t b = (cell.rows.size() + job_.rows - 1) / job_.rows; b-- > 0;) {
      const Span rows = RowsOfBlock(cell, b);
      VisibleTile tile = job_.mask.Look(cell.sequence, intervals, cell.head, rows, keys, job_.rows,
                                        s.tile.visible);
      if (tile.keys.size() == 0) continue;
      if (s.blind[b]) HideBlindRows(b, rows.size(), tile, s);
      if (!loaded) s.keys.LoadBackward(cell.sequence, job_.KvHead(cell.head), keys);
      loaded = true;
      ScoreStage(cell, intervals, rows, b, tile, s);
      const int64_t from_cell = tile.keys.begin - cell.keys.begin;
      T* dq = cell.chunk.HalfOf(keys.begin) == 0 ? s.dq : s.dq_second;
      GradientStage(rows.size(), b, tile, s, dq + b * job_.rows * job_.key_ld,
                    dk + from_cell * job_.key_ld, dv + from_cell * job_.value_ld);
    }
  }

  // p = dropped probabilities and ds = gradients of the scaled scores, for one tile.
  void ScoreStage(const Cell& cell, const RowIntervals& intervals, Span rows, int64_t b,
                  const VisibleTile& tile, Scratch& s) const {
    const Problem& p = job_.problem;
    const KernelTable<T>& k = job_.k;
    const int64_t at = b * job_.rows;
    const int64_t count = tile.keys.size();
    const BitWord* visible = tile.partial ? s.tile.visible : nullptr;
    products_.scores(s.qt + at * job_.key_ld, s.keys.KeyRows(tile.keys.begin), job_.key_ld,
                     tile.reach, p.score_dim(), s.p, nullptr);
    if (p.pse.kind != PseKind::kNone) {
      AddBias(job_, cell.sequence, intervals, cell.head, rows, tile.keys, s.tile, s.p, nullptr);
    }
    k.probabilities(s.p, count, job_.magnitude, s.max + at, s.weight + at, visible);
    const Operand* dyt = s.dyt + at * job_.value_ld;
    const Operand* value = s.keys.ValueRows(tile.keys.begin);
    const BitWord* keep = nullptr;
    if (p.dropout != DropoutKind::kNone) {
      ReadKeep(job_, cell.sequence, cell.head, rows, tile.keys, s.tile);
      keep = s.tile.keep;
    }
    if (tile.partial) {
      products_.scores(dyt, value, job_.value_ld, tile.reach, p.value_dim, s.ds, nullptr);
      k.score_gradients(s.p, s.ds, count, s.delta + at, visible, keep);
    } else {
      products_.gradient_of_scores(dyt, value, job_.value_ld, tile.reach, p.value_dim, s.p,
                                   s.delta + at, keep, s.ds);
    }
    if (dpse_.wanted()) {
      dpse_.Add(cell.sequence, intervals, cell.head, rows, tile.keys,
                cell.chunk.HalfOf(tile.keys.begin), s.ds, s.tile);
    }
  }

  void GradientStage(int64_t rows, int64_t b, const VisibleTile& tile, Scratch& s, T* dq, T* dk,
                     T* dv) const {
    const Products& product = products_;
    const int64_t at = b * job_.rows;
    const int64_t keys = tile.keys.size();
    const GradientOperands<Operand> a =
        product.gradient_operands(s.p, s.ds, keys, rows, s.operands);
    const Operand* q = s.q + at * job_.key_ld;
    const Operand* dy = s.dy + at * job_.value_ld;
    const Operand* key = s.keys.KeySummands(tile.keys.begin);
    const BitWord* visible = s.tile.visible;
    if (tile.partial && !s.finite[b]) {
      product.gradient_of_keys_visible(a.p, keys, rows, dy, job_.value_ld, visible, dv);
      product.gradient_of_keys_visible(a.ds, keys, rows, q, job_.key_ld, visible, dk);
    } else {
      product.gradient_of_keys(a.p, tile.reach, rows, dy, job_.value_ld, dv);
      product.gradient_of_keys(a.ds, tile.reach, rows, q, job_.key_ld, dk);
    }
    if (tile.partial && !s.keys.finite_keys()) {
      product.gradient_of_rows_visible(a.ds_over_keys, keys, rows, key, job_.key_ld, visible, dq);
    } else {
      product.gradient_of_rows(a.ds_over_keys, tile.reach, rows, key, job_.key_ld, dq);
    }
  }

  const Job<T>& job_;
  const Products& products_;
  const BackwardArgs& args_;
  T* deltas_;
  const PseGradient<T>& dpse_;
};

}  // namespace fusion_attention::cpu
