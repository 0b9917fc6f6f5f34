// The verbs of the CPU backend on tiles, as one table of functions per (SIMD target, arithmetic
// type); those of the matrix products are in product_table.h. The loops of forward.cc and
// backward_cell.h are written in these verbs and know nothing of SIMD; the verbs know nothing of
// problems, layouts, masks or threads.
//
// A tile of scores is stored key-major, `[key][block_rows]`: query rows lie in the SIMD lanes, so
// the softmax of a row never crosses lanes. `block_rows` is 3 vectors, which together with 8 keys
// fills 24 of 32 registers with accumulators. A block with fewer rows uses fewer `vectors`, never
// another stride. Every array is 64-byte aligned; `ld` is a row stride in elements, a multiple
// of 16.
#pragma once

#include <cstdint>

#include "src/cpu/kernels/product_table.h"
#include "src/cpu/kernels/tile_types.h"

namespace fusion_attention::cpu {

template <typename T>  // float, or double for float64 inputs
struct KernelTable {
  int64_t lanes;
  int64_t block_rows;  // kBlockVectors * lanes

  // dst[r][c] = src(r, c) in arithmetic type, zeros from `dim` to `ld`. Returns whether all values
  // are finite.
  bool (*pack)(const SourceRows& src, int64_t rows, int64_t dim, T* dst, int64_t ld);
  // dst(r, c) = round(src[r][c] * factor), to nearest even.
  void (*store)(const T* src, int64_t ld, int64_t rows, int64_t dim, T factor, const SinkRows& dst);
  // The same with a factor of 1, for rows that nobody reads soon.
  void (*stream)(const T* src, int64_t ld, int64_t rows, int64_t dim, const SinkRows& dst);
  // sums += more, both packed: `count` is a multiple of 16.
  void (*add)(const T* more, int64_t count, T* sums);
  // dst[r][c] = src[c][r] * row_factor[r], from rows in lanes to packed rows. Reads src up to the
  // next multiple of 4 channels and writes as many, and rows up to the next whole vector.
  void (*transpose_back)(const T* src, int64_t rows, int64_t dim, const T* row_factor, T* dst,
                         int64_t ld);

  // s = score_factor * s + bias_factor * bias; tile_max anew (nullptr: not wanted). bias(row, key)
  // has keys in channels, one element apart; it is read up to block_rows rows and the next multiple
  // of 4 keys.
  void (*add_bias)(T* s, const SourceRows& bias, int64_t keys, T score_factor, T bias_factor,
                   T* tile_max);
  // The same for a line: a tile whose element (key, row) is line[row - key], so block_rows + keys -
  // 1 values are all of it, keys - 1 of them before line[0].
  void (*add_line)(T* s, const T* line, int64_t keys, T score_factor, T bias_factor, T* tile_max);
  // bits of (key, row) &= (mask[row * row_stride + key] == 0).
  void (*hide_masked)(const uint8_t* mask, int64_t row_stride, int64_t rows, int64_t keys,
                      int64_t block_rows, BitWord* bits);
  // s = visible ? s : -inf; tile_max anew.
  void (*mask)(T* s, const BitWord* visible, int64_t keys, T* tile_max);
  // One step of the online softmax for rows up to the next whole vector: with t = s * scale,
  //   m' = max(m, scale * tile_max); s = exp(t - m'); alpha = exp(m - m'); l = l * alpha + sum of
  //   s; m = m'.
  // -inf scores give exactly 0, also while m is still -inf. Returns whether any alpha differs
  // from 1.
  bool (*online_softmax)(T* s, int64_t keys, int64_t rows, T scale, const T* tile_max, T* m, T* l,
                         T* alpha);
  // p = keep ? p : 0.
  void (*drop)(T* p, const BitWord* keep, int64_t keys);
  // out[r] = sum over c of o[r][c] * dy[r][c]. An output of exactly 0 adds nothing, even where dy
  // is NaN: rows that see no key have no gradient.
  void (*deltas)(const T* o, const T* dy, int64_t ld, int64_t rows, int64_t dim, T* out);
  // s = visible ? exp(s * scale - max) * weight : 0.
  // visible == nullptr: all are.
  void (*probabilities)(T* s, int64_t keys, T scale, const T* max, const T* weight,
                        const BitWord* visible);
  // dp = visible ? p * (kept dp - delta) : 0, then p = kept p. keep == nullptr: all are kept.
  void (*score_gradients)(T* p, T* dp, int64_t keys, const T* delta, const BitWord* visible,
                          const BitWord* keep);
  // sums[row] = sum over keys of ds[key][row] * line[row - key], in double.
  void (*line_products)(const T* ds, const double* line, int64_t keys, double* sums);

  // The keep bits of elements first + row * row_stride + key, for every row of a block.
  void (*keep_bits)(uint64_t first, uint64_t row_stride, int64_t keys, const KeepRule& rule,
                    BitWord* keep);

  // The products of T's own operands.
  ProductTable<T, T> products;
};

}  // namespace fusion_attention::cpu
