// What kernels and their callers exchange: rows of the caller's tensors, bits of a tile, and the
// few sizes that everybody must agree on.
#pragma once

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

// A line is a tile whose element (key, row) depends on row - key alone: it is line[row - key], so
// block_rows + keys - 1 values are all of it, keys - 1 of them before line[0].

// Packed tiles of keys and of scores have room for this many keys more, because kernels work on
// whole steps of up to 8 keys.
inline constexpr int64_t kKeyPadding = 8;

// Products that sum over keys may take them two at a time. So what is cut from a tile is an even
// number of keys, on every target: which keys form a pair decides bits.
inline constexpr int64_t kKeyPair = 2;

// Everything that fixes the dropout bits but the element's index.
struct KeepRule {
  uint64_t seed;
  uint64_t offset;
  uint32_t low_mask;   // the bits of a Philox word that count
  uint32_t threshold;  // keep iff (word & low_mask) >= threshold
};

inline constexpr int64_t kRowPadding =
    16;  // every packed row has a multiple of this many elements; the rest is 0

constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace fusion_attention::cpu
