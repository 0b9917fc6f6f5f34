// dQ between the cells of its rows. A cell of keys adds to what the one before has left: in the
// output itself where that has the arithmetic type, else in a private copy. The second half of a
// chunk (backward_columns.h) has a sum of its own, which joins dQ when both are complete.
#pragma once

#include <algorithm>
#include <type_traits>

#include "fusion_attention/backward.h"
#include "src/cpu/backward_columns.h"
#include "src/cpu/job.h"
#include "src/cpu/ropes.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

// Which part of the problem a cell is.
struct Cell {
  Sequence sequence;
  int64_t head;
  Span rows;
  Chunk chunk;
  Span keys;
  Span halves;        // whose tiles of `keys` it runs
  bool first_keys;    // no earlier cell has added to these rows of dQ,
  bool last_keys;     // no later one will
  bool first_second;  // the same of the sum of the chunk's second half
  bool last_second;

  bool RunsFirst() const { return halves.begin == 0; }
  bool RunsSecond() const { return halves.end == 2; }
};

template <typename T>
class QuerySums {
 public:
  QuerySums(const Job<T>& job, const BackwardArgs& args, const BackwardColumns& columns)
      : job_(job), out_{args.dq, args.dq_rope}, carry_(out_) {
    if (columns.carries() && SizeOf(args.dq.dtype) != kSize) carry_ = Allocate(carry_memory_);
    if (columns.carries_second()) second_carry_ = Allocate(second_memory_);
  }

  // Packed sums of the cell's rows, as the cells before it have left them.
  void Load(const Cell& cell, T* first, T* second) const {
    if (cell.RunsFirst()) Load(cell, cell.first_keys, carry_, first);
    if (cell.RunsSecond()) Load(cell, cell.first_second, second_carry_, second);
  }

  // Leaves them to the cells after it. Where another cell has run the first half, it is done.
  void Store(const Cell& cell, T* first, T* second) const {
    if (cell.RunsSecond() && !cell.last_second) return Store(cell, second, T{1}, second_carry_);
    if (cell.RunsSecond()) {
      if (!cell.RunsFirst()) Load(cell, false, carry_, first);
      job_.k.add(second, cell.rows.size() * job_.key_ld, first);
    }
    cell.last_keys ? Store(cell, first, job_.scale, out_) : Store(cell, first, T{1}, carry_);
  }

 private:
  static constexpr auto kSize = static_cast<int64_t>(sizeof(T));

  RopedView<void> Allocate(Buffer& memory) const {
    constexpr DType kType = std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32;
    const Problem& p = job_.problem;
    const bool packed = p.layout == Layout::kTND;
    const int64_t head = p.q_len * p.score_dim();
    memory = AllocateBuffer((packed ? 1 : p.batch) * p.q_heads * head * kSize);
    T* own = reinterpret_cast<T*>(memory.get());
    T* rope = p.rope_dim > 0 ? own + p.head_dim : nullptr;
    const Strides strides{packed ? 0 : p.q_heads * head, head, p.score_dim(), 1};
    return {{own, kType, strides}, {rope, kType, strides}};
  }

  void Load(const Cell& cell, bool from_zero, const RopedView<void>& from, T* sums) const {
    if (from_zero) {
      std::fill_n(sums, cell.rows.size() * job_.key_ld, T{0});
    } else {
      const RopedView<const void> source{AsConst(from.own), AsConst(from.rope)};
      PackRoped(job_, job_.k.pack, RowsOf(cell, source), cell.rows.size(), sums);
    }
  }

  void Store(const Cell& cell, const T* sums, T factor, const RopedView<void>& to) const {
    StoreRoped(job_, sums, cell.rows.size(), factor, RowsOf(cell, to));
  }

  template <typename Void>
  static RopedRows<Void> RowsOf(const Cell& cell, const RopedView<Void>& view) {
    return RowsAt(view, cell.sequence.batch, cell.head, cell.sequence.q_begin + cell.rows.begin);
  }

  static ConstTensorView AsConst(const TensorView& view) {
    return {view.data, view.dtype, view.strides};
  }

  const Job<T>& job_;
  RopedView<void> out_;
  RopedView<void> carry_;
  RopedView<void> second_carry_;
  Buffer carry_memory_;
  Buffer second_memory_;
};

}  // namespace fusion_attention::cpu
