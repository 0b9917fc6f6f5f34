// What follows from a validated problem: its sequences, the keys that each row sees, and where
// things lie. Total for every problem that Validate() returns; knows no data and no threads.
#include "fusion_attention/problem.h"

#include <limits>

namespace fusion_attention {
namespace {

constexpr int64_t kCompressedPseRows = 1024;

int64_t Saturated(int64_t offset) {
  return std::clamp(offset, -RowIntervals::kUnbounded, RowIntervals::kUnbounded);
}

}  // namespace

Sequence Problem::SequenceAt(int64_t index) const {
  if (layout == Layout::kTND) return packed[static_cast<size_t>(index)];
  return {.batch = index,
          .q_len = q_len,
          .kv_len = kv_len,
          .dropout_begin = q_heads * index * q_len * kv_len};
}

RowIntervals Problem::IntervalsOf(const Sequence& sequence) const {
  RowIntervals keys;
  keys.kv_len = sequence.kv_len;
  if (mask.full) return keys;

  // A mode's diagonal runs through the top-left corner (0) or the bottom-right one (shift).
  const int64_t shift = sequence.kv_len - sequence.q_len;
  const auto causal = [&keys](int64_t diagonal) { keys.end_offset = diagonal + 1; };
  const auto band = [&](int64_t diagonal) {
    keys.begin_offset = Saturated(diagonal - mask.pre_tockens);
    keys.end_offset = Saturated(diagonal + mask.next_tockens + 1);
  };
  const bool is_band_sequence = sequence.batch == mask.band_sequence;
  switch (mask.sparse_mode) {
    case 0:
      band(0);
      break;
    case 2:
      causal(0);
      break;
    case 3:
      causal(shift);
      break;
    case 4:
      band(shift);
      break;
    case 5:
    case 6:
      causal(shift);
      keys.prefix = mask.prefix[static_cast<size_t>(sequence.batch)];
      break;
    case 7:
      is_band_sequence ? band(shift) : causal(shift);
      break;
    case 8:
      is_band_sequence ? band(shift) : causal(0);
      break;
    default:  // 1: the dense mask alone decides
      break;
  }
  return keys;
}

PseElement Problem::CompressedPse(const Sequence& sequence, int64_t row, int64_t key) const {
  // The stored rows are the last 1024 of the bias, aligned at the bottom-right corner. An earlier
  // row is read from the stored row that equals it modulo 1024, on the same diagonal.
  const int64_t stored_row = row - (sequence.q_len - kCompressedPseRows);
  const int64_t stored_key = pse.keys - sequence.kv_len + key;
  if (stored_row >= 0) return {stored_row, stored_key};
  const int64_t same_phase = row % kCompressedPseRows;
  return {same_phase, stored_key + (same_phase - stored_row)};
}

int64_t Problem::StartOffset(const Sequence& sequence) const {
  // In mode 8 the first sequence alone was cut; the others start at row 0 and key 0, as on the
  // device.
  const bool first_alone = !mask.full && mask.sparse_mode == 8;
  return first_alone && sequence.batch > 0 ? 0 : pse.start_offset;
}

int64_t Problem::RowIndex(const Sequence& sequence, int64_t head, int64_t row) const {
  if (softmax_layout_tnd) return (sequence.q_begin + row) * q_heads + head;
  const int64_t earlier_rows =
      layout == Layout::kTND ? sequence.q_begin * q_heads : sequence.batch * q_heads * q_len;
  return earlier_rows + head * sequence.q_len + row;
}

float Problem::MaskedRowSum(const Sequence& sequence) const {
  return invalid_row_mode ? std::numeric_limits<float>::max() : static_cast<float>(sequence.kv_len);
}

}  // namespace fusion_attention
