// The matrix products of attention as register tiles on packed operands that lie in L1 or L2.
// `scores` is K Q^T and `accumulate` adds V^T P, both with query rows in lanes: 8 (4 where there
// are only 16 registers) keys or channels times 3 vectors of accumulators. `gradient_of_keys` (dK
// and dV) and `gradient_of_rows` (dQ) have channels in lanes: 6 rows times 4 (2) vectors. Each
// result starts from zero and is added to memory once a call, so rounding errors grow with the
// number of tiles, not of keys, and no bit depends on how a caller groups tiles. 24 accumulators
// keep two FMA pipes busy: 94-98 % of the peak.
#if defined(FUSION_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_PRODUCTS_INL_H_
#undef FUSION_ATTENTION_PRODUCTS_INL_H_
#else
#define FUSION_ATTENTION_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include <limits>

#include "src/cpu/kernels/kernel_table.h"
#include "src/cpu/kernels/score_outputs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM
inline constexpr int kStep = 8;  // keys (scores) or channels (accumulate) per register tile
inline constexpr int kGradientVectors = 4;
#else
inline constexpr int kStep = 4;
inline constexpr int kGradientVectors = 2;
#endif
inline constexpr int kGradientRows = 6;
template <typename T>
inline constexpr int64_t kRowsOfBlock = kBlockVectors* hn::MaxLanes(hn::ScalableTag<T>());
// A dot product is summed in pieces of this many channels: against one chain of multiply-adds the
// rounding error of a score halves at head_dim 128 and falls to an eighth at 768, for 0.5 % of the
// time. Pieces of 32 channels cost 1 %.
inline constexpr int64_t kDepth = 64;

// `kAdd`: to what s holds already, instead of 0.
template <int kVectors, bool kAdd, typename T, class Output>
void ScoresOf(const T* HWY_RESTRICT qt, const T* HWY_RESTRICT k, int64_t ld, int64_t keys,
              int64_t dim, T* HWY_RESTRICT s, const Output output) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  V max[kVectors];
#pragma GCC unroll 32
  for (int j = 0; j < kVectors; ++j) max[j] = hn::Set(d, -std::numeric_limits<T>::infinity());
  for (int64_t n = 0; n < keys; n += kStep) {
    V a[kStep][kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) a[i][j] = hn::Zero(d);
    }
    const T* HWY_RESTRICT kn = k + n * ld;
    for (int64_t c = 0; c < dim; ++c) {
      V q[kVectors];
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) q[j] = hn::Load(d, qt + c * block_rows + j * lanes);
#pragma GCC unroll 32
      for (int i = 0; i < kStep; ++i) {
        const V b = hn::Set(d, kn[i * ld + c]);
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; ++j) a[i][j] = hn::MulAdd(b, q[j], a[i][j]);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = (n + i) * block_rows + j * lanes;
        if constexpr (kAdd) a[i][j] = hn::Add(hn::Load(d, s + at), a[i][j]);
        hn::Store(output(a[i][j], n + i, j * lanes), d, s + at);
      }
      if (Output::kWantsMax && n + i < keys) {
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; ++j) max[j] = hn::Max(max[j], a[i][j]);
      }
    }
  }
  if constexpr (Output::kWantsMax) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) hn::Store(max[j], d, output.max + j * lanes);
  }
}

static_assert(kBlockVectors == 3, "Scores and Accumulate choose among 1, 2 and 3 vectors");

template <int kVectors, typename T, class Output>
void ScoresInPieces(const T* qt, const T* k, int64_t ld, int64_t keys, int64_t dim, T* s,
                    const Output& output) {
  const int64_t block_rows = kBlockVectors * hn::Lanes(hn::ScalableTag<T>());
  if (dim <= kDepth) return ScoresOf<kVectors, false>(qt, k, ld, keys, dim, s, output);
  ScoresOf<kVectors, false>(qt, k, ld, keys, kDepth, s, AsScores());
  int64_t c = kDepth;
  for (; dim - c > kDepth; c += kDepth) {
    ScoresOf<kVectors, true>(qt + c * block_rows, k + c, ld, keys, kDepth, s, AsScores());
  }
  ScoresOf<kVectors, true>(qt + c * block_rows, k + c, ld, keys, dim - c, s, output);
}

template <typename T, class Output>
void ScoresTo(const T* qt, const T* k, int64_t ld, const Reach& reach, int64_t dim, T* s,
              const Output& output) {
  const int64_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const int64_t block_rows = kBlockVectors * lanes;
  ForEachKeyRange(reach, block_rows, [&](int64_t key, int64_t keys, int64_t row) {
    const auto of = [&](auto scores) {
      scores(qt + row, k + key * ld, ld, keys, dim, s + key * block_rows + row,
             output.From(key, row));
    };
    const int64_t vectors = reach.vectors - row / lanes;
    if (vectors == 3) return of(ScoresInPieces<3, T, Output>);
    if (vectors == 2) return of(ScoresInPieces<2, T, Output>);
    of(ScoresInPieces<1, T, Output>);
  });
}

template <typename T>
void Scores(const T* qt, const T* k, int64_t ld, const Reach& reach, int64_t dim, T* s,
            T* tile_max) {
  if (tile_max == nullptr) return ScoresTo(qt, k, ld, reach, dim, s, AsScores());
  ScoresTo(qt, k, ld, reach, dim, s, AsScoresWithMax<T>(tile_max));
}
template <typename T>
void GradientOfScores(const T* dyt, const T* v, int64_t ld, const Reach& reach, int64_t dim, T* p,
                      const T* delta, const BitWord* keep, T* ds) {
  if (keep == nullptr) {
    return ScoresTo(dyt, v, ld, reach, dim, ds, AsScoreGradients<T>{p, delta});
  }
  ScoresTo(dyt, v, ld, reach, dim, ds, AsKeptScoreGradients<T>{p, delta, keep, 0});
}

// a[i][j] += sum over keys [begin, end) of v[key][i] * p[key][vector j], for vectors from kFirst
// on.
template <int kFirst, int kVectors, typename T, class V>
HWY_INLINE void AddKeys(const T* HWY_RESTRICT p, const T* HWY_RESTRICT v, int64_t ld, int64_t begin,
                        int64_t end, V (&a)[kStep][kVectors]) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  for (int64_t n = begin; n < end; ++n) {
    V q[kVectors];
#pragma GCC unroll 32
    for (int j = kFirst; j < kVectors; ++j) q[j] = hn::Load(d, p + n * block_rows + j * lanes);
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) {
      const V b = hn::Set(d, v[n * ld + i]);
#pragma GCC unroll 32
      for (int j = kFirst; j < kVectors; ++j) a[i][j] = hn::MulAdd(b, q[j], a[i][j]);
    }
  }
}

template <int kVectors, typename T>
void AccumulateOf(const T* HWY_RESTRICT p, const T* HWY_RESTRICT v, int64_t ld, const Reach& reach,
                  int64_t dim, const T* HWY_RESTRICT alpha, T* HWY_RESTRICT out) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  for (int64_t c = 0; c < dim; c += kStep) {
    V a[kStep][kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) a[i][j] = hn::Zero(d);
    }
    AddKeys<0>(p, v + c, ld, 0, reach.keys[0], a);
    if constexpr (kVectors > 1) AddKeys<1>(p, v + c, ld, reach.keys[0], reach.keys[1], a);
    if constexpr (kVectors > 2) AddKeys<2>(p, v + c, ld, reach.keys[1], reach.keys[2], a);
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      const V rescale = alpha == nullptr ? hn::Set(d, T{1}) : hn::Load(d, alpha + j * lanes);
#pragma GCC unroll 32
      for (int i = 0; i < kStep; ++i) {
        T* HWY_RESTRICT o = out + (c + i) * block_rows + j * lanes;
        hn::Store(hn::MulAdd(hn::Load(d, o), rescale, a[i][j]), d, o);
      }
    }
  }
}

template <typename T>
void Accumulate(const T* p, const T* v, int64_t ld, const Reach& reach, int64_t dim, const T* alpha,
                T* out) {
  if (reach.vectors == 3) return AccumulateOf<3>(p, v, ld, reach, dim, alpha, out);
  if (reach.vectors == 2) return AccumulateOf<2>(p, v, ld, reach, dim, alpha, out);
  AccumulateOf<1>(p, v, ld, reach, dim, alpha, out);
}

// Rows [i, i + kRows) of c[i][:] += sum over k < depth of a(i, k) * b[k][:], where a(i, k) lies at
// a[i * kRow + k * kDepth]: as constants, one pointer reaches all rows.
template <int kRows, int kVectors, int64_t kRow, int64_t kDepth, typename T>
HWY_INLINE void GradientTile(const T* HWY_RESTRICT a, int64_t depth, const T* HWY_RESTRICT b,
                             int64_t ld, T* HWY_RESTRICT c) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  V sum[kRows][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) sum[i][j] = hn::Zero(d);
  }
  for (int64_t k = 0; k < depth; ++k) {
    V row[kVectors];
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) row[j] = hn::Load(d, b + k * ld + j * lanes);
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const V w = hn::Set(d, a[i * kRow + k * kDepth]);
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) sum[i][j] = hn::MulAdd(w, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      T* HWY_RESTRICT o = c + i * ld + j * lanes;
      hn::Store(hn::Add(hn::Load(d, o), sum[i][j]), d, o);
    }
  }
}

template <int kVectors, int64_t kRow, int64_t kDepth, typename T>
void GradientColumns(const T* a, int64_t rows, int64_t depth, const T* b, int64_t ld, T* c) {
  int64_t i = 0;
  for (; i + kGradientRows <= rows; i += kGradientRows) {
    GradientTile<kGradientRows, kVectors, kRow, kDepth>(a + i * kRow, depth, b, ld, c + i * ld);
  }
  if (i + 4 <= rows) {
    GradientTile<4, kVectors, kRow, kDepth>(a + i * kRow, depth, b, ld, c + i * ld);
    i += 4;
  }
  if (i + 2 <= rows) {
    GradientTile<2, kVectors, kRow, kDepth>(a + i * kRow, depth, b, ld, c + i * ld);
    i += 2;
  }
  if (i < rows) {
    GradientTile<1, kVectors, kRow, kDepth>(a + i * kRow, depth, b, ld, c + i * ld);
  }
}

template <int64_t kRow, int64_t kDepth, typename T>
void Gradient(const T* a, int64_t rows, int64_t depth, const T* b, int64_t ld, T* c) {
  const int64_t lanes = hn::Lanes(hn::ScalableTag<T>());
  int64_t j = 0;
  for (; j + kGradientVectors * lanes <= ld; j += kGradientVectors * lanes) {
    GradientColumns<kGradientVectors, kRow, kDepth>(a, rows, depth, b + j, ld, c + j);
  }
  if constexpr (kGradientVectors == 4) {
    if (j + 2 * lanes <= ld) {
      GradientColumns<2, kRow, kDepth>(a, rows, depth, b + j, ld, c + j);
      j += 2 * lanes;
    }
  }
  if (j < ld) GradientColumns<1, kRow, kDepth>(a, rows, depth, b + j, ld, c + j);
}

// A tile of scores is [key][row]: dK and dV sum over its rows, dQ over its keys.
template <typename T>
void GradientOfKeys(const T* a, const Reach& reach, int64_t rows, const T* b, int64_t ld, T* c) {
  constexpr int64_t kBlockRows = kRowsOfBlock<T>;
  ForEachKeyRange(reach, kBlockRows, [&](int64_t key, int64_t keys, int64_t row) {
    Gradient<kBlockRows, 1>(a + key * kBlockRows + row, keys, rows - row, b + row * ld, ld,
                            c + key * ld);
  });
}
template <typename T>
void GradientOfRows(const T* a, const Reach& reach, int64_t rows, const T* b, int64_t ld, T* c) {
  constexpr int64_t kBlockRows = kRowsOfBlock<T>;
  ForEachRowRange(reach, rows, kBlockRows, [&](int64_t row, int64_t count, int64_t keys) {
    Gradient<1, kBlockRows>(a + row, count, keys, b, ld, c + row * ld);
  });
}

// The tiles below add each product only where the pair is visible, in the order of the fast ones,
// so a row that sees no NaN gets the same bits. One vector at a time: they run only when a partly
// masked tile meets a NaN or an infinity.
HWY_INLINE bool IsVisible(const BitWord* visible, int64_t block_rows, int64_t key, int64_t row) {
  return (visible[key / kWordBits * block_rows + row] >> (key % kWordBits) & 1) != 0;
}

template <typename T>
void AccumulateVisible(const T* p, const T* v, int64_t ld, int64_t keys, int64_t dim,
                       const BitWord* visible, const T* alpha, T* out) {
  const hn::CappedTag<T, 1> d;
  const int64_t block_rows = kBlockVectors * hn::Lanes(hn::ScalableTag<T>());
  for (int64_t c = 0; c < dim; ++c) {
    for (int64_t r = 0; r < block_rows; ++r) {
      auto sum = hn::Zero(d);
      for (int64_t n = 0; n < keys; ++n) {
        if (!IsVisible(visible, block_rows, n, r)) continue;
        sum = hn::MulAdd(hn::Set(d, v[n * ld + c]), hn::Set(d, p[n * block_rows + r]), sum);
      }
      const auto rescale = hn::Set(d, alpha == nullptr ? T{1} : alpha[r]);
      T* o = out + c * block_rows + r;
      hn::Store(hn::MulAdd(hn::Set(d, *o), rescale, sum), d, o);
    }
  }
}

template <typename T>
void GradientVisible(const T* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
                     const T* b, int64_t ld, T* c, const BitWord* visible) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  const bool key_major = a_depth == 1;  // then i is the key, k the row
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += lanes) {
      auto sum = hn::Zero(d);
      for (int64_t k = 0; k < depth; ++k) {
        if (!IsVisible(visible, block_rows, key_major ? i : k, key_major ? k : i)) continue;
        sum = hn::MulAdd(hn::Set(d, a[i * a_row + k * a_depth]), hn::Load(d, b + k * ld + j), sum);
      }
      T* o = c + i * ld + j;
      hn::Store(hn::Add(hn::Load(d, o), sum), d, o);
    }
  }
}

template <typename T>
void GradientOfKeysVisible(const T* a, int64_t keys, int64_t rows, const T* b, int64_t ld,
                           const BitWord* visible, T* c) {
  const int64_t block_rows = kBlockVectors * hn::Lanes(hn::ScalableTag<T>());
  GradientVisible(a, block_rows, 1, keys, rows, b, ld, c, visible);
}
template <typename T>
void GradientOfRowsVisible(const T* a, int64_t keys, int64_t rows, const T* b, int64_t ld,
                           const BitWord* visible, T* c) {
  const int64_t block_rows = kBlockVectors * hn::Lanes(hn::ScalableTag<T>());
  GradientVisible(a, 1, block_rows, rows, keys, b, ld, c, visible);
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
