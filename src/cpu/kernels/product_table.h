// The verbs of the matrix products, as one table of functions per (SIMD target, arithmetic type,
// operand type). T is what sums, scores and weights are held in, Operand what the products
// multiply: the same type, or bfloat16 (Bf16) where the CPU multiplies pairs of it into float.
//
// Between pack and the products, operands have a layout that only a table knows: plain rows and
// tiles where Operand is T, pairs along the contraction where it is Bf16. So callers pass operands
// on and never look inside; they may count on this alone: row r of packed rows, r even, begins
// r * ld elements after the first, as summands too.
#pragma once

#include <cstdint>
#include <type_traits>

#include "src/cpu/kernels/tile_types.h"

namespace fusion_attention::cpu {

// The bits of a bfloat16 number.
enum class Bf16 : uint16_t {};

template <typename T, typename Operand>
inline constexpr bool kPlainOperands = std::is_same_v<T, Operand>;

// One tile of a backward pass as operands: weights and score gradients where rows are summed over
// (dV, dK), score gradients where keys are (dQ).
template <typename T, typename Operand>
inline constexpr int64_t kGradientTiles = kPlainOperands<T, Operand> ? 0 : 3;
template <typename Operand>
struct GradientOperands {
  const Operand* p;
  const Operand* ds;
  const Operand* ds_over_keys;
};

template <typename T, typename Operand>
struct ProductTable {
  // dst[r][c] = src(r, c), zeros from `dim` to `ld`. Returns whether all values are finite.
  bool (*pack)(const SourceRows& src, int64_t rows, int64_t dim, Operand* dst, int64_t ld);
  // Packed rows times `sign` (1, -1 or 0) in the layout that `scores` wants of a query; absent
  // rows, up to the next whole vector, become 0. Reads src, and writes dst, up to the next multiple
  // of 8 channels.
  void (*transpose)(const Operand* src, int64_t ld, int64_t rows, int64_t dim, T sign,
                    Operand* dst);
  // Packed rows as summands, the layout for products that sum over rows: in dst, or, if operands
  // are plain, where they are.
  const Operand* (*summands)(const Operand* src, int64_t ld, int64_t rows, Operand* dst);

  // s[key][row] = sum over c of k[key][c] * q[row][c], for q transposed and keys within reach; what
  // s is beyond has no meaning. tile_max[row] = max over keys, where all vectors reach as far
  // (nullptr: not wanted). Reads k up to the next multiple of 8 keys and writes s as far.
  void (*scores)(const Operand* qt, const Operand* k, int64_t ld, const Reach& reach, int64_t dim,
                 T* s, T* tile_max);

  // ds[key][row] = p[key][row] * (dp - delta[row]), where dp = sum over c of v[key][c] *
  // dy[row][c], for dy transposed; otherwise as `scores`. keep: what dropout keeps of dp and, for
  // the products to come, of p; nullptr: everything. For tiles that are visible whole, so that all
  // vectors reach as far; for others there is score_gradients in kernel_table.h.
  void (*gradient_of_scores)(const Operand* dyt, const Operand* v, int64_t ld, const Reach& reach,
                             int64_t dim, T* p, const T* delta, const BitWord* keep, T* ds);

  // The tile of weights p as operands, in its own memory. What else p held is lost.
  const Operand* (*weights)(T* p, int64_t keys);
  // out[c][row] = alpha[row] * out[c][row] + sum over keys within reach of v[key][c] * p[key][row],
  // for c < dim rounded up to 8. alpha == nullptr: all 1. v: summands.
  void (*accumulate)(const Operand* p, const Operand* v, int64_t ld, const Reach& reach,
                     int64_t dim, const T* alpha, T* out);
  // The same, bit for bit, where p is 0 beyond reach; but an invisible key adds nothing even where
  // v is NaN or infinite. For the rare tile that needs it.
  void (*accumulate_visible)(const Operand* p, const Operand* v, int64_t ld, int64_t keys,
                             int64_t dim, const BitWord* visible, const T* alpha, T* out);

  // The tiles p and ds of a block with `rows` rows as operands. `memory` has room for
  // kGradientTiles tiles.
  GradientOperands<Operand> (*gradient_operands)(const T* p, const T* ds, int64_t keys,
                                                 int64_t rows, Operand* memory);
  // c[key][:] += sum over rows of a(key, row) * b[row][:]: dK and dV. b: summands.
  // Rows of b and c have ld elements. Pairs beyond reach are left out.
  void (*gradient_of_keys)(const Operand* a, const Reach& reach, int64_t rows, const Operand* b,
                           int64_t ld, T* c);
  // c[row][:] += sum over keys of a(key, row) * b[key][:]: dQ.
  void (*gradient_of_rows)(const Operand* a, const Reach& reach, int64_t rows, const Operand* b,
                           int64_t ld, T* c);
  // The same, bit for bit, where a is 0 beyond reach; but invisible pairs add nothing even where b
  // is NaN or infinite.
  void (*gradient_of_keys_visible)(const Operand* a, int64_t keys, int64_t rows, const Operand* b,
                                   int64_t ld, const BitWord* visible, T* c);
  void (*gradient_of_rows_visible)(const Operand* a, int64_t keys, int64_t rows, const Operand* b,
                                   int64_t ld, const BitWord* visible, T* c);
};

}  // namespace fusion_attention::cpu
