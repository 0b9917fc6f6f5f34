// Shapes of tiles for tests of the products: keys, channels, and how far the rows see.
#pragma once

#include <span>
#include <vector>

#include "src/cpu/kernels/tile_types.h"

namespace fusion_attention::cpu {

// As on the diagonal of a causal mask: later vectors of rows see further.
inline Reach RaggedReach(int64_t keys) {
  return {kBlockVectors, {keys / 3 / kKeyPair * kKeyPair, keys / 2 / kKeyPair * kKeyPair, keys}};
}

inline bool IsWithin(const Reach& reach, int64_t key, int64_t row, int64_t block_rows) {
  return key < reach.keys[row * kBlockVectors / block_rows];
}

struct TileShape {
  int64_t keys;
  int64_t dim;
  Reach reach;
};

inline std::vector<TileShape> TileShapes(std::span<const int64_t> keys,
                                         std::span<const int64_t> dims) {
  std::vector<TileShape> all;
  for (const int64_t n : keys) {
    for (const int64_t dim : dims) {
      all.push_back({n, dim, FullReach(kBlockVectors, n)});
      all.push_back({n, dim, RaggedReach(n)});
    }
  }
  return all;
}

struct WholeTile {
  int64_t keys;
  int64_t dim;
  int64_t vectors;  // of rows
};

inline std::vector<WholeTile> WholeTiles(std::span<const int64_t> keys,
                                         std::span<const int64_t> dims) {
  std::vector<WholeTile> all;
  for (const int64_t n : keys) {
    for (const int64_t dim : dims) {
      for (int64_t vectors = 1; vectors <= kBlockVectors; ++vectors) {
        all.push_back({n, dim, vectors});
      }
    }
  }
  return all;
}

}  // namespace fusion_attention::cpu
