// Problem: one validated request as a value. No pointers, no SIMD, no threads.
// Every downstream part (plan, backends, pictures) reads this and can no longer fail on an
// argument.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fusion_attention/call.h"
#include "fusion_attention/dtype.h"
#include "fusion_attention/status.h"

namespace fusion_attention {

enum class Layout : uint8_t { kBSH, kSBH, kBNSD, kBSND, kTND };

// One attention problem of the batch: `q_len` query rows against `kv_len` keys.
// Dense layouts have `batch` equal ones; TND has one per entry of actual_seq_qlen.
struct Sequence {
  int64_t batch = 0;    // index of the sequence; the batch index of dense layouts
  int64_t q_begin = 0;  // TND: first token of the sequence in query; dense: 0
  int64_t q_len = 0;
  int64_t kv_begin = 0;  // TND: first token in key and value; dense: 0
  int64_t kv_len = 0;
  int64_t dropout_begin =
      0;  // index of this sequence's first dropout element: q_heads * sum of earlier q_len * kv_len
};

// The keys that query row i of one sequence may see: the half-open interval [Begin(i), End(i)).
// Every structured mask is one of these (docs/masks.md); both ends never decrease with the row.
struct RowIntervals {
  // Offsets beyond any sequence length mean "no bound on this side". All values are at most 2^40 in
  // magnitude, so sums cannot overflow.
  static constexpr int64_t kUnbounded = int64_t{1} << 40;

  int64_t begin_offset = -kUnbounded;  // row i starts at key i + begin_offset
  int64_t end_offset = kUnbounded;     // row i ends before key i + end_offset ...
  int64_t prefix = 0;                  // ... or before this key, whichever is later
  int64_t kv_len = 0;

  int64_t Begin(int64_t row) const { return std::clamp<int64_t>(row + begin_offset, 0, kv_len); }
  int64_t End(int64_t row) const {
    return std::clamp<int64_t>(std::max(row + end_offset, prefix), Begin(row), kv_len);
  }
};

enum class MaskSource : uint8_t {
  kNone,   // RowIntervals decide alone (no mask given, or a compressed one)
  kDense,  // a byte per (row, key) decides, inside RowIntervals
};

// Which predicate the request's sparse_mode stands for. `kFull` when no atten_mask is given,
// whatever sparse_mode says.
struct MaskSpec {
  MaskSource source = MaskSource::kNone;
  int64_t sparse_mode = 0;  // 0..8 as given
  bool full = true;         // no atten_mask: every key is visible
  int64_t pre_tockens = 0;  // saturated to [-kUnbounded, kUnbounded]
  int64_t next_tockens = 0;
  std::vector<int64_t> prefix;  // modes 5 and 6: one per sequence
  int64_t band_sequence = -1;   // modes 7 and 8: the sequence that uses pre/next
  // Dense masks: extents as given, each 1 or the full one. TND's [maxSq, maxSkv] is read from its
  // top-left corner.
  int64_t batch = 1, heads = 1, rows = 0, keys = 0;
};

enum class PseKind : uint8_t {
  kNone,
  kDense,       // [B|1, N, Sq|1, Skv]
  kCompressed,  // [B|1, N, 1024, Skv]: the last 1024 rows of a Toeplitz bias (ALiBi)
  kSlopes,      // float32 [B, N] or [N]: a slope per head, times a distance that is computed
};

// What a slope is multiplied with (pse_type 2 and 3), d being key - row + Problem::StartOffset.
enum class PseDistance : uint8_t {
  kLinear,      // -|d|
  kSquareRoot,  // -sqrt(|d|)
};

struct PseSpec {
  PseKind kind = PseKind::kNone;
  bool after_scale = false;  // the bias is added to the scaled scores (every pse_type but 1)
  PseDistance distance = PseDistance::kLinear;
  // kv_start_idx - q_start_idx, at most RowIntervals::kUnbounded in size; Problem::StartOffset says
  // for which sequences.
  int64_t start_offset = 0;
  int64_t batch = 1, rows = 0, keys = 0;  // extents as given (slopes: 1 row, 1 key); heads is
                                          // always q_heads
};

// The stored element of a compressed pse that score (row, key) reads; docs/numerics.md derives it.
struct PseElement {
  int64_t row;
  int64_t key;
};

enum class DropoutKind : uint8_t {
  kNone,
  kPhilox,    // keep bits from (seed, offset)
  kExternal,  // keep bits from the caller's dropout_mask
  kDropAll,   // 0 < keep_prob < 1e-9, as on the device: every weight is dropped
};

// softmax_max and softmax_sum hold each row's value so many times, as on the device.
inline constexpr int64_t kStatisticsCopies = 8;

struct Problem {
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kBNSD;
  int64_t batch = 0;  // number of sequences
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t q_len = 0;   // dense layouts: Sq; TND: T of query
  int64_t kv_len = 0;  // dense layouts: Skv; TND: T of key
  int64_t head_dim = 0;
  int64_t rope_dim = 0;  // channels of query_rope and key_rope; 0 without them
  int64_t value_dim = 0;
  double scale = 1.0;
  double keep_prob = 1.0;
  DropoutKind dropout = DropoutKind::kNone;
  int64_t numels = 0;  // q_heads * sum of q_len * kv_len over the sequences
  MaskSpec mask;
  PseSpec pse;
  bool has_sink = false;
  bool softmax_layout_tnd =
      false;  // statistics in [T, N, 8] memory order instead of [N, q_len, 8] per sequence
  bool invalid_row_mode =
      false;  // a fully masked row reports softmax_sum = FLT_MAX instead of its kv_len
  std::vector<Sequence> packed;  // TND only: the sequences in order, trailing unused ones dropped

  int64_t group() const { return q_heads / kv_heads; }
  // Channels that a score sums over: those of query and key, then those of their ropes.
  int64_t score_dim() const { return head_dim + rope_dim; }
  int64_t sequences() const {
    return layout == Layout::kTND ? static_cast<int64_t>(packed.size()) : batch;
  }
  Sequence SequenceAt(int64_t index) const;
  RowIntervals IntervalsOf(const Sequence& sequence) const;
  PseElement CompressedPse(const Sequence& sequence, int64_t row, int64_t key) const;
  // Slopes: the position of key 0 of `sequence`, seen from its row 0.
  int64_t StartOffset(const Sequence& sequence) const;
  // The number of a query row among those of all heads and sequences, as statistics are ordered.
  int64_t RowIndex(const Sequence& sequence, int64_t head, int64_t row) const;
  // Where a row's statistics start, in floats.
  int64_t StatisticsIndex(const Sequence& sequence, int64_t head, int64_t row) const {
    return RowIndex(sequence, head, row) * kStatisticsCopies;
  }
  // What softmax_sum reports for a row of `sequence` that sees no key.
  float MaskedRowSum(const Sequence& sequence) const;
};

// Checks every rule of the operator and returns the problem that the call states, or the first
// broken rule. Reads no tensor data and allocates only the result. The only place that rejects a
// call.
StatusOr<Problem> Validate(const Call& call);

// The part of validation that needs data: that a compressed atten_mask (modes 2, 3, 4, 6, 7, 8)
// holds its canonical pattern, from O(1) elements. `data` is the mask's first byte, strides in
// elements.
Status ValidateCompressedMask(const Problem& problem, const uint8_t* data, int64_t row_stride,
                              int64_t key_stride);

}  // namespace fusion_attention
