#include "src/cpu/tile_bits.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace fusion_attention::cpu {
namespace {

// Bits [begin, end) of a word, for any begin and end.
BitWord BitsBetween(int64_t begin, int64_t end) {
  begin = std::clamp<int64_t>(begin, 0, kWordBits);
  end = std::clamp(end, begin, kWordBits);
  return static_cast<BitWord>(((uint64_t{1} << (end - begin)) - 1) << begin);
}

}  // namespace

MaskReader::MaskReader(const Problem& problem, const ConstScoreView& atten_mask,
                       HideMasked hide_masked)
    : dense_(problem.mask.source == MaskSource::kDense),
      mask_(atten_mask),
      hide_masked_(hide_masked) {}

VisibleTile MaskReader::Look(const Sequence& sequence, const RowIntervals& intervals, int64_t head,
                             Span rows, Span keys, int64_t block_rows, BitWord* bits) const {
  // Both ends of the intervals never decrease with the row, so the first and the last row bound all
  // of them.
  const int64_t last = rows.end - 1;
  const VisibleTile nothing{{keys.begin, keys.begin}, false, {}};
  VisibleTile tile{
      {std::max(keys.begin, intervals.Begin(rows.begin)), std::min(keys.end, intervals.End(last))},
      false,
      {}};
  if (tile.keys.begin >= tile.keys.end) return nothing;
  tile.keys.begin -= (tile.keys.begin - keys.begin) % kKeyPair;
  tile.keys.end = std::min(keys.begin + RoundUp(tile.keys.end - keys.begin, kKeyPair), keys.end);
  tile.partial =
      intervals.Begin(last) > tile.keys.begin || intervals.End(rows.begin) < tile.keys.end;
  const int64_t count = tile.keys.size();
  const int64_t lanes = block_rows / kBlockVectors;
  tile.reach = FullReach((rows.size() + lanes - 1) / lanes, count);
  if (!dense_ && !tile.partial) return tile;

  for (int64_t k = 0; k < count; k += kWordBits) {
    BitWord* words = bits + k / kWordBits * block_rows;
    if (!tile.partial) {
      std::fill_n(words, rows.size(), BitsBetween(0, count - k));
      continue;
    }
    const int64_t first = tile.keys.begin + k;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      words[r - rows.begin] = BitsBetween(intervals.Begin(r) - first,
                                          std::min(intervals.End(r), tile.keys.end) - first);
    }
  }
  if (dense_) HideDense(sequence, head, rows, tile.keys, block_rows, bits);
  BitWord hidden = 0;
  int64_t reach = 0;
  for (int64_t j = 0; j < tile.reach.vectors; ++j) {
    const Span vector{j * lanes, std::min((j + 1) * lanes, rows.size())};
    for (int64_t k = 0; k < count; k += kWordBits) {
      const BitWord all = BitsBetween(0, count - k);
      const BitWord* words = bits + k / kWordBits * block_rows;
      BitWord seen = 0;
      for (int64_t r = vector.begin; r < vector.end; ++r) {
        hidden |= words[r] ^ all;
        seen |= words[r];
      }
      reach = std::max(reach, seen == 0 ? 0 : k + std::bit_width(seen));
    }
    tile.reach.keys[j] = std::min(RoundUp(reach, kKeyPair), count);
  }
  if (reach == 0) return nothing;
  tile.partial = hidden != 0;
  return tile;
}

void MaskReader::HideDense(const Sequence& sequence, int64_t head, Span rows, Span keys,
                           int64_t block_rows, BitWord* bits) const {
  const auto* mask = static_cast<const uint8_t*>(mask_.data) +
                     sequence.batch * mask_.strides.batch + head * mask_.strides.head +
                     rows.begin * mask_.strides.row + keys.begin * mask_.strides.key;
  if (mask_.strides.key == 1) {
    return hide_masked_(mask, mask_.strides.row, rows.size(), keys.size(), block_rows, bits);
  }
  for (int64_t r = 0; r < rows.size(); ++r) {
    for (int64_t k = 0; k < keys.size(); ++k) {
      if (mask[r * mask_.strides.row + k * mask_.strides.key] == 0) continue;
      bits[k / kWordBits * block_rows + r] &= ~(BitWord{1} << (k % kWordBits));
    }
  }
}

void ReadKeepBits(const uint8_t* mask, int64_t numels, uint64_t first, uint64_t row_stride,
                  int64_t rows, int64_t keys, int64_t block_rows, BitWord* keep) {
  const uint64_t bytes = (static_cast<uint64_t>(numels) + 7) / 8;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < keys; k += kWordBits) {
      const uint64_t element =
          first + static_cast<uint64_t>(r) * row_stride + static_cast<uint64_t>(k);
      // A word at any bit lies in 5 bytes; 8 are read where there are as many.
      const uint8_t* from = mask + element / 8;
      uint64_t window = 0;
      if (bytes - element / 8 >= sizeof(window)) {
        std::memcpy(&window, from, sizeof(window));
      } else {
        std::memcpy(&window, from, bytes - element / 8);
      }
      keep[k / kWordBits * block_rows + r] = static_cast<BitWord>(window >> (element % 8));
    }
  }
}

}  // namespace fusion_attention::cpu
