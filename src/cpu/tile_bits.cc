#include "src/cpu/tile_bits.h"

#include <algorithm>
#include <cstring>

namespace fusion_attention::cpu {
namespace {

// Bits [begin, end) of a word, for any begin and end.
BitWord BitsBetween(int64_t begin, int64_t end) {
  begin = std::clamp<int64_t>(begin, 0, kWordBits);
  end = std::clamp(end, begin, kWordBits);
  return static_cast<BitWord>(((uint64_t{1} << (end - begin)) - 1) << begin);
}

// Bit i is set where byte i of eight mask bytes is 0, which is where the mask keeps.
BitWord ZeroBytes(uint64_t bytes) {
  uint64_t any = bytes | bytes >> 4;
  any |= any >> 2;
  any |= any >> 1;
  const uint64_t zero = ~any & 0x0101010101010101u;
  return static_cast<BitWord>(zero * 0x0102040810204080u >> 56);
}

// One word of mask bytes mask[key * stride] == 0, for count <= 32 keys.
BitWord KeptBits(const uint8_t* mask, int64_t stride, int64_t count) {
  BitWord word = 0;
  int64_t k = 0;
  if (stride == 1) {
    for (; k + 8 <= count; k += 8) {
      uint64_t bytes;
      std::memcpy(&bytes, mask + k, sizeof(bytes));
      word |= ZeroBytes(bytes) << k;
    }
  }
  for (; k < count; ++k) word |= BitWord{mask[k * stride] == 0} << k;
  return word;
}

}  // namespace

MaskReader::MaskReader(const Problem& problem, const ConstScoreView& atten_mask)
    : dense_(problem.mask.source == MaskSource::kDense), mask_(atten_mask) {}

VisibleTile MaskReader::Look(const Sequence& sequence, const RowIntervals& intervals, int64_t head,
                             Span rows, Span keys, int64_t block_rows, BitWord* bits) const {
  // Both ends of the intervals never decrease with the row, so the first and the last row bound all
  // of them.
  const int64_t last = rows.end - 1;
  VisibleTile tile{
      {std::max(keys.begin, intervals.Begin(rows.begin)), std::min(keys.end, intervals.End(last))},
      false};
  if (tile.keys.begin >= tile.keys.end) return {{keys.begin, keys.begin}, false};
  tile.keys.begin -= (tile.keys.begin - keys.begin) % kKeyPair;
  tile.keys.end = std::min(keys.begin + RoundUp(tile.keys.end - keys.begin, kKeyPair), keys.end);
  tile.partial =
      intervals.Begin(last) > tile.keys.begin || intervals.End(rows.begin) < tile.keys.end;
  if (!dense_ && !tile.partial) return tile;

  const uint8_t* mask = nullptr;
  if (dense_) {
    mask = static_cast<const uint8_t*>(mask_.data) + sequence.batch * mask_.strides.batch +
           head * mask_.strides.head;
  }
  bool all = true;
  bool any = false;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t begin = intervals.Begin(r) - tile.keys.begin;
    const int64_t end = intervals.End(r) - tile.keys.begin;
    for (int64_t k = 0; k < tile.keys.size(); k += kWordBits) {
      const int64_t count = std::min(kWordBits, tile.keys.size() - k);
      BitWord word = BitsBetween(begin - k, std::min(end - k, count));
      if (dense_ && word != 0) {
        word &= KeptBits(mask + r * mask_.strides.row + (tile.keys.begin + k) * mask_.strides.key,
                         mask_.strides.key, count);
      }
      all &= word == BitsBetween(0, count);
      any |= word != 0;
      bits[k / kWordBits * block_rows + (r - rows.begin)] = word;
    }
  }
  if (!any) return {{keys.begin, keys.begin}, false};
  tile.partial = !all;
  return tile;
}

void ReadKeepBits(const uint8_t* mask, int64_t numels, const uint64_t* first, int64_t rows,
                  int64_t keys, int64_t block_rows, BitWord* keep) {
  const uint64_t bytes = (static_cast<uint64_t>(numels) + 7) / 8;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < keys; k += kWordBits) {
      const uint64_t element = first[r] + static_cast<uint64_t>(k);
      uint64_t window = 0;
      std::memcpy(&window, mask + element / 8, std::min<uint64_t>(5, bytes - element / 8));
      keep[k / kWordBits * block_rows + r] = static_cast<BitWord>(window >> (element % 8));
    }
  }
}

}  // namespace fusion_attention::cpu
