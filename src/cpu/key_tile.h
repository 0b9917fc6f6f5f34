// The keys of one tile and their values, packed: what all blocks of rows that share a key/value
// head work on.
#pragma once

#include "src/cpu/job.h"
#include "src/cpu/ropes.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

template <typename T>
class KeyTile {
 public:
  KeyTile(Arena& arena, const Job<T>& job)
      : key_ld_(job.key_ld),
        value_ld_(job.value_ld),
        key_(arena.Take<T>((job.tile_keys + kKeyPadding) * key_ld_)),
        value_(arena.Take<T>((job.tile_keys + kKeyPadding) * value_ld_)) {}

  void Load(const Job<T>& job, const Sequence& sequence, int64_t kv_head, Span keys) {
    const int64_t token = sequence.kv_begin + keys.begin;
    first_ = keys.begin;
    finite_keys_ =
        PackRoped(job, RowsAt(Key(job.inputs), sequence.batch, kv_head, token), keys.size(), key_);
    finite_values_ = job.k.pack(RowsAt(job.inputs.value, sequence.batch, kv_head, token),
                                keys.size(), job.problem.value_dim, value_, value_ld_);
  }

  // From the given key of the sequence on.
  const T* Keys(int64_t from) const { return key_ + (from - first_) * key_ld_; }
  const T* Values(int64_t from) const { return value_ + (from - first_) * value_ld_; }
  // Whether no number of the tile is NaN or infinite.
  bool finite_keys() const { return finite_keys_; }
  bool finite_values() const { return finite_values_; }

 private:
  int64_t key_ld_;
  int64_t value_ld_;
  T* key_;
  T* value_;
  int64_t first_ = 0;
  bool finite_keys_ = true;
  bool finite_values_ = true;
};

}  // namespace fusion_attention::cpu
