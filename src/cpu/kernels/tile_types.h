// What kernels and their callers exchange: rows of the caller's tensors, bits of a tile, and the
// few sizes that everybody must agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fusion_attention/dtype.h"

namespace fusion_attention::cpu {

// SIMD vectors of query rows in a block.
inline constexpr int64_t kBlockVectors = 3;

// Rows of one of the caller's tensors: element (r, c) is data[r * row_stride + c * channel_stride],
// in elements of `dtype`.
template <typename Void>
struct BasicRows {
  Void* data;
  DType dtype;
  int64_t row_stride;
  int64_t channel_stride;
};
using SourceRows = BasicRows<const void>;
using SinkRows = BasicRows<void>;

// One bit per (key, row) of a tile: bit key % 32 of words[(key / 32) * block_rows + row].
using BitWord = uint32_t;
inline constexpr int64_t kWordBits = 32;

// Packed tiles of keys and of scores have room for this many keys more, because kernels work on
// whole steps of up to 8 keys.
inline constexpr int64_t kKeyPadding = 8;

// Products that sum over keys may take them two at a time. So what is cut from a tile is an even
// number of keys, on every target: which keys form a pair decides bits.
inline constexpr int64_t kKeyPair = 2;

// How far into a tile's keys the rows of a block see, by SIMD vector of rows: vector j sees no key
// from keys[j] on. Never decreases with j. The products leave out what is beyond; on the diagonal
// of a causal mask, where a block meets as many keys as it has rows, that is a third of them.
struct Reach {
  int64_t vectors;  // in use
  int64_t keys[kBlockVectors];
};
constexpr Reach FullReach(int64_t vectors, int64_t keys) { return {vectors, {keys, keys, keys}}; }
static_assert(kBlockVectors == 3);

// Calls range(first key, keys, first row that sees them) for the keys of a block of `rows` rows.
template <typename Range>
void ForEachKeyRange(const Reach& reach, int64_t block_rows, const Range& range) {
  int64_t begin = 0;
  for (int64_t j = 0; j < reach.vectors; ++j) {
    if (reach.keys[j] > begin) {
      range(begin, reach.keys[j] - begin, j * block_rows / kBlockVectors);
    }
    begin = reach.keys[j];
  }
}
// Calls range(first row, rows, keys that they see) for the rows of a block.
template <typename Range>
void ForEachRowRange(const Reach& reach, int64_t rows, int64_t block_rows, const Range& range) {
  for (int64_t j = 0; j < reach.vectors;) {
    int64_t next = j + 1;
    while (next < reach.vectors && reach.keys[next] == reach.keys[j]) ++next;
    const int64_t begin = j * block_rows / kBlockVectors;
    const int64_t end = std::min(next * block_rows / kBlockVectors, rows);
    range(begin, end - begin, reach.keys[j]);
    j = next;
  }
}

// Everything that fixes the dropout bits but the element's index.
struct KeepRule {
  uint64_t seed;
  uint64_t offset;
  uint32_t low_mask;   // the bits of a Philox word that count
  uint32_t threshold;  // keep iff (word & low_mask) >= threshold
};

// Every packed row has a multiple of this many elements; those behind its channels are 0.
inline constexpr int64_t kRowPadding = 16;

constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace fusion_attention::cpu
