// Which (row, key) pairs of a tile take part: the mask geometry of the problem turned into what the
// kernels understand, a range of keys and, where the range is not wholly visible, one bit per pair.
// Also reads the caller's external dropout mask.
#pragma once

#include "fusion_attention/problem.h"
#include "fusion_attention/tensor_view.h"
#include "src/cpu/kernels/tile_types.h"

namespace fusion_attention::cpu {

// Half-open ranges within one sequence.
struct Span {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

struct VisibleTile {
  Span keys;     // what remains of the tile's keys after those that no row sees are cut from both
                 // ends, in pairs (kKeyPair); empty when nobody sees any
  bool partial;  // some pair in `keys` is masked: the bits say which
  Reach reach;   // relative to keys.begin
};

class MaskReader {
 public:
  using HideMasked = void (*)(const uint8_t* mask, int64_t row_stride, int64_t rows, int64_t keys,
                              int64_t block_rows, BitWord* bits);
  // hide_masked: KernelTable's.
  MaskReader(const Problem& problem, const ConstScoreView& atten_mask, HideMasked hide_masked);

  // What rows `rows` of (sequence, head) see of `keys`. Fills `bits` (relative to the result's
  // first key) only for a partial tile.
  VisibleTile Look(const Sequence& sequence, const RowIntervals& intervals, int64_t head, Span rows,
                   Span keys, int64_t block_rows, BitWord* bits) const;

 private:
  void HideDense(const Sequence& sequence, int64_t head, Span rows, Span keys, int64_t block_rows,
                 BitWord* bits) const;

  bool dense_;
  ConstScoreView mask_;
  HideMasked hide_masked_;
};

// Bits first + row * row_stride + key of an external dropout mask of `numels` bits.
void ReadKeepBits(const uint8_t* mask, int64_t numels, uint64_t first, uint64_t row_stride,
                  int64_t rows, int64_t keys, int64_t block_rows, BitWord* keep);

}  // namespace fusion_attention::cpu
