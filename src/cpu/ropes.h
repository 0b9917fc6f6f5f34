// Query and key with the channels of their ropes behind their own: what a score sums over, and the
// way back for gradients. Everything else sees rows of score_dim() channels; only here it is known
// that a rope is a tensor of its own.
#pragma once

#include <algorithm>

#include "src/cpu/job.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

template <typename Void>
struct RopedView {
  BasicTensorView<Void> own;
  BasicTensorView<Void> rope;  // data == nullptr without ropes
};

template <typename Void>
struct RopedRows {
  BasicRows<Void> own;
  BasicRows<Void> rope;
};

inline RopedView<const void> Query(const Inputs& inputs) {
  return {inputs.query, inputs.query_rope};
}
inline RopedView<const void> Key(const Inputs& inputs) { return {inputs.key, inputs.key_rope}; }

template <typename Void>
RopedRows<Void> RowsAt(const RopedView<Void>& view, int64_t batch, int64_t head, int64_t token) {
  RopedRows<Void> rows{RowsAt(view.own, batch, head, token), {}};
  if (view.rope.data != nullptr) rows.rope = RowsAt(view.rope, batch, head, token);
  return rows;
}

// Calls piece(r, c, n) for channels [c, c + n) of the rope of every row.
//
// In a packed row a rope begins at channel head_dim, where no kernel can load or store unless that
// is a multiple of its vectors. So ropes pass through an aligned piece of a row.
inline constexpr int64_t kRopePiece = 64;
template <typename Piece>
void ForEachRopePiece(int64_t rows, int64_t rope_dim, const Piece& piece) {
  for (int64_t c = 0; c < rope_dim; c += kRopePiece) {
    for (int64_t r = 0; r < rows; ++r) piece(r, c, std::min(kRopePiece, rope_dim - c));
  }
}

// The rows from element (row, channel) on.
template <typename Void>
BasicRows<Void> From(BasicRows<Void> rows, int64_t row, int64_t channel) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  const int64_t element = row * rows.row_stride + channel * rows.channel_stride;
  rows.data = static_cast<Byte*>(rows.data) + element * SizeOf(rows.dtype);
  return rows;
}

// dst [rows][key_ld] = src, padded with zeros, by a table's `pack`. Returns whether all values are
// finite.
template <typename T, typename E>
bool PackRoped(const Job<T>& job, bool (*pack)(const SourceRows&, int64_t, int64_t, E*, int64_t),
               const RopedRows<const void>& src, int64_t rows, E* dst) {
  const Problem& p = job.problem;
  bool finite = pack(src.own, rows, p.head_dim, dst, job.key_ld);
  alignas(Arena::kAlignment) E piece[kRopePiece] = {};
  ForEachRopePiece(rows, p.rope_dim, [&](int64_t r, int64_t c, int64_t n) {
    finite &= pack(From(src.rope, r, c), 1, n, piece, kRopePiece);
    std::copy_n(piece, n, dst + r * job.key_ld + p.head_dim + c);
  });
  return finite;
}

// dst = src [rows][key_ld] * factor, rounded.
template <typename T>
void StoreRoped(const Job<T>& job, const T* src, int64_t rows, T factor,
                const RopedRows<void>& dst) {
  const Problem& p = job.problem;
  job.k.store(src, job.key_ld, rows, p.head_dim, factor, dst.own);
  alignas(Arena::kAlignment) T piece[kRopePiece] = {};
  ForEachRopePiece(rows, p.rope_dim, [&](int64_t r, int64_t c, int64_t n) {
    std::copy_n(src + r * job.key_ld + p.head_dim + c, n, piece);
    job.k.store(piece, kRopePiece, 1, n, factor, From(dst.rope, r, c));
  });
}

}  // namespace fusion_attention::cpu
