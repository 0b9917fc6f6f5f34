// The verbs of the CPU backend on tiles, as one table of functions per (SIMD target, arithmetic
// type). The loops of forward.cc and backward.cc are written in these verbs and know nothing of
// SIMD; the verbs know nothing of problems, layouts, masks or threads.
//
// A tile of scores is stored key-major, `[key][block_rows]`: query rows lie in the SIMD lanes, so
// the softmax of a row never crosses lanes. `block_rows` is 3 vectors, which together with 8 keys
// fills 24 of 32 registers with accumulators. A block with fewer rows uses fewer `vectors`, never
// another stride. Every array is 64-byte aligned; `ld` is a row stride in elements, a multiple
// of 16.
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

template <typename T>  // float, or double for float64 inputs
struct KernelTable {
  int64_t lanes;
  int64_t block_rows;  // kBlockVectors * lanes

  // dst[r][c] = src(r, c) in arithmetic type, zeros from `dim` to `ld`. Returns whether all values
  // are finite.
  bool (*pack)(const SourceRows& src, int64_t rows, int64_t dim, T* dst, int64_t ld);
  // dst(r, c) = round(src[r][c] * factor), to nearest even.
  void (*store)(const T* src, int64_t ld, int64_t rows, int64_t dim, T factor, const SinkRows& dst);
  // dst[c][r] = src[r][c] * factor for rows < block_rows; absent rows become 0.
  void (*transpose)(const T* src, int64_t ld, int64_t rows, int64_t dim, T factor, T* dst);
  // dst[r][c] = src[c][r] * row_factor[r]: the way back, for `rows` rows. `dim` and `ld` as in
  // `dst`.
  void (*transpose_back)(const T* src, int64_t rows, int64_t dim, const T* row_factor, T* dst,
                         int64_t ld);

  // s[key][row] = sum over c of k[key][c] * qt[c][row]; tile_max[row] = max over keys (nullptr: not
  // wanted). Reads k up to the next multiple of 8 keys and writes s as far.
  void (*scores)(const T* qt, const T* k, int64_t ld, int64_t keys, int64_t dim, int64_t vectors,
                 T* s, T* tile_max);
  // s = score_factor * s + bias_factor * bias; tile_max anew. The bias of a key lies `key_stride`
  // elements after that of the key before, of any alignment: block_rows, or -1 for a line.
  void (*add_bias)(T* s, const T* bias, int64_t key_stride, int64_t keys, T score_factor,
                   T bias_factor, T* tile_max);
  // s = visible ? s : -inf; tile_max anew.
  void (*mask)(T* s, const BitWord* visible, int64_t keys, T* tile_max);
  // One step of the online softmax: with t = s * scale,
  //   m' = max(m, scale * tile_max); s = exp(t - m'); alpha = exp(m - m'); l = l * alpha + sum of
  //   s; m = m'.
  // -inf scores give exactly 0, also while m is still -inf. Returns whether any alpha differs
  // from 1.
  bool (*online_softmax)(T* s, int64_t keys, T scale, const T* tile_max, T* m, T* l, T* alpha);
  // p = keep ? p : 0.
  void (*drop)(T* p, const BitWord* keep, int64_t keys);
  // out[c][row] = alpha[row] * out[c][row] + sum over keys of v[key][c] * p[key][row], for c < dim
  // rounded up to 8. alpha == nullptr: all 1.
  void (*accumulate)(const T* p, const T* v, int64_t ld, int64_t keys, int64_t dim, int64_t vectors,
                     const T* alpha, T* out);
  // The same, bit for bit, but an invisible key adds nothing even where v is NaN or infinite. For
  // the rare tile that needs it.
  void (*accumulate_visible)(const T* p, const T* v, int64_t ld, int64_t keys, int64_t dim,
                             const BitWord* visible, const T* alpha, T* out);

  // out[r] = sum over c of o[r][c] * dy[r][c]. An output of exactly 0 adds nothing, even where dy
  // is NaN: rows that see no key have no gradient.
  void (*deltas)(const T* o, const T* dy, int64_t ld, int64_t rows, int64_t dim, T* out);
  // s = visible ? exp(s * scale - max) * weight : 0, where weight[row] = 1 / softmax_sum.
  // visible == nullptr: all are.
  void (*probabilities)(T* s, int64_t keys, T scale, const T* max, const T* weight,
                        const BitWord* visible);
  // dp = visible ? p * (factor * kept dp - delta) : 0, then p = factor * kept p. keep == nullptr:
  // all are kept and factor is 1.
  void (*score_gradients)(T* p, T* dp, int64_t keys, const T* delta, const BitWord* visible,
                          const BitWord* keep, T factor);
  // c[i][:] += sum over j < depth of a(i, j) * b[j][:], where a(i, j) = a[i * a_row + j * a_depth]
  // and rows of b and c have `cols` elements (a multiple of kRowPadding).
  void (*gradient)(const T* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
                   const T* b, int64_t ldb, int64_t cols, T* c, int64_t ldc);
  // The same, bit for bit, but invisible pairs add nothing even where b is NaN or infinite. `a` is
  // a tile of scores, so one of a_row and a_depth is 1: that index is the query row, the other the
  // key.
  void (*gradient_visible)(const T* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
                           const T* b, int64_t ldb, int64_t cols, T* c, int64_t ldc,
                           const BitWord* visible);
  // sums[row] = sum over keys of ds[key][row] * line[row - key], in double.
  void (*line_products)(const T* ds, const double* line, int64_t keys, double* sums);

  // The keep bits of elements first[row] + key for every row of a block.
  void (*keep_bits)(const uint64_t* first, int64_t keys, const KeepRule& rule, BitWord* keep);
};

}  // namespace fusion_attention::cpu
