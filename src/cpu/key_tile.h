// The keys of one tile and their values, packed: what all blocks of rows that share a key/value
// head work on.
#pragma once

#include <algorithm>

#include "src/cpu/job.h"
#include "src/cpu/ropes.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

template <typename T, typename Operand>
class KeyTile {
 public:
  using Products = ProductTable<T, Operand>;

  KeyTile(Arena& arena, const Job<T>& job, const Products& products)
      : job_(job),
        products_(products),
        key_(arena.Take<Operand>((job.tile_keys + kKeyPadding) * job.key_ld)),
        value_(arena.Take<Operand>((job.tile_keys + kKeyPadding) * job.value_ld)),
        summands_(arena.Take<Operand>(
            kPlainOperands<T, Operand> ? 0 : job.tile_keys * std::max(job.key_ld, job.value_ld))) {}

  // Keys as rows (scores), values as summands (output).
  void LoadForward(const Sequence& sequence, int64_t kv_head, Span keys) {
    Load(sequence, kv_head, keys);
    value_summands_ = products_.summands(value_, job_.value_ld, keys.size(), summands_);
  }
  // Keys and values as rows (S and dP), keys as summands (dQ).
  void LoadBackward(const Sequence& sequence, int64_t kv_head, Span keys) {
    Load(sequence, kv_head, keys);
    key_summands_ = products_.summands(key_, job_.key_ld, keys.size(), summands_);
  }

  // From the given key of the sequence on: even, where they are summands.
  const Operand* KeyRows(int64_t from) const { return key_ + (from - first_) * job_.key_ld; }
  const Operand* ValueRows(int64_t from) const { return value_ + (from - first_) * job_.value_ld; }
  const Operand* KeySummands(int64_t from) const {
    return key_summands_ + (from - first_) * job_.key_ld;
  }
  const Operand* ValueSummands(int64_t from) const {
    return value_summands_ + (from - first_) * job_.value_ld;
  }
  // Whether no number of the tile is NaN or infinite.
  bool finite_keys() const { return finite_keys_; }
  bool finite_values() const { return finite_values_; }

 private:
  void Load(const Sequence& sequence, int64_t kv_head, Span keys) {
    const int64_t token = sequence.kv_begin + keys.begin;
    first_ = keys.begin;
    finite_keys_ =
        PackRoped(job_, products_.pack, RowsAt(Key(job_.inputs), sequence.batch, kv_head, token),
                  keys.size(), key_);
    finite_values_ = products_.pack(RowsAt(job_.inputs.value, sequence.batch, kv_head, token),
                                    keys.size(), job_.problem.value_dim, value_, job_.value_ld);
  }

  const Job<T>& job_;
  const Products& products_;
  Operand* key_;
  Operand* value_;
  Operand* summands_;
  const Operand* key_summands_ = nullptr;
  const Operand* value_summands_ = nullptr;
  int64_t first_ = 0;
  bool finite_keys_ = true;
  bool finite_values_ = true;
};

}  // namespace fusion_attention::cpu
