// The matrix products of bfloat16 with the CPU's own instruction (avx512_bf16): vdpbf16ps adds the
// products of 16 pairs of numbers to 16 floats, twice the multiply-adds of a fp32 vector. It rounds
// to nearest even and takes subnormal numbers for zero, whatever the floating-point environment.
//
// The register tiles are those of products-inl.h with a pair (pairs_bf16-inl.h) in place of a
// number.
#if defined(FUSION_ATTENTION_PRODUCTS_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_PRODUCTS_BF16_INL_H_
#undef FUSION_ATTENTION_PRODUCTS_BF16_INL_H_
#else
#define FUSION_ATTENTION_PRODUCTS_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include "src/cpu/kernels/mask-inl.h"
#include "src/cpu/kernels/pairs_bf16-inl.h"
#include "src/cpu/kernels/products-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace bf16 {

inline constexpr int kTileKeys = 8;  // scores; accumulate: channels
inline constexpr int kTileRows = 6;  // gradients
// Pairs of channels that are summed in one chain, as kDepth channels are there.
inline constexpr int64_t kDepthPairs = 64;

// sum + a's first * b's first + a's second * b's second, lane by lane.
HWY_INLINE Sums AddProducts(Sums sum, Pairs a, Pairs b) {
  return Sums{_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(a.raw),
                               reinterpret_cast<__m512bh>(b.raw))};
}

// `kAdd`: to what s holds already, instead of 0.
template <int kVectors, bool kAdd, class Output>
void ScoresOf(const Bf16* HWY_RESTRICT qt, const Bf16* HWY_RESTRICT k, int64_t ld, int64_t keys,
              int64_t pairs, float* HWY_RESTRICT s, const Output output) {
  Sums max[kVectors];
#pragma GCC unroll 32
  for (int j = 0; j < kVectors; ++j) max[j] = hn::Set(kSums, kMinusInfinity<float>);
  for (int64_t n = 0; n < keys; n += kTileKeys) {
    Sums a[kTileKeys][kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kTileKeys; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) a[i][j] = hn::Zero(kSums);
    }
    const Bf16* HWY_RESTRICT kn = k + n * ld;
    for (int64_t c = 0; c < pairs; ++c) {
      Pairs q[kVectors];
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) q[j] = LoadPairs(qt + 2 * (c * kBlockRows + j * kLanes));
#pragma GCC unroll 32
      for (int i = 0; i < kTileKeys; ++i) {
        const Pairs b = Broadcast(kn + i * ld + 2 * c);
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; ++j) a[i][j] = AddProducts(a[i][j], q[j], b);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < kTileKeys; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = (n + i) * kBlockRows + j * kLanes;
        if constexpr (kAdd) a[i][j] = hn::Add(hn::Load(kSums, s + at), a[i][j]);
        hn::Store(output(a[i][j], n + i, j * kLanes), kSums, s + at);
      }
      if (Output::kWantsMax && n + i < keys) {
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; ++j) max[j] = hn::Max(max[j], a[i][j]);
      }
    }
  }
  if constexpr (Output::kWantsMax) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) hn::Store(max[j], kSums, output.max + j * kLanes);
  }
}

template <int kVectors, class Output>
void ScoresInPieces(const Bf16* qt, const Bf16* k, int64_t ld, int64_t keys, int64_t dim, float* s,
                    const Output& output) {
  const int64_t pairs = (dim + 1) / 2;
  if (pairs <= kDepthPairs) return ScoresOf<kVectors, false>(qt, k, ld, keys, pairs, s, output);
  ScoresOf<kVectors, false>(qt, k, ld, keys, kDepthPairs, s, AsScores());
  int64_t c = kDepthPairs;
  for (; pairs - c > kDepthPairs; c += kDepthPairs) {
    ScoresOf<kVectors, true>(qt + 2 * c * kBlockRows, k + 2 * c, ld, keys, kDepthPairs, s,
                             AsScores());
  }
  ScoresOf<kVectors, true>(qt + 2 * c * kBlockRows, k + 2 * c, ld, keys, pairs - c, s, output);
}

template <class Output>
void ScoresTo(const Bf16* qt, const Bf16* k, int64_t ld, const Reach& reach, int64_t dim, float* s,
              const Output& output) {
  ForEachKeyRange(reach, kBlockRows, [&](int64_t key, int64_t keys, int64_t row) {
    const auto of = [&](auto scores) {
      scores(qt + 2 * row, k + key * ld, ld, keys, dim, s + key * kBlockRows + row,
             output.From(key, row));
    };
    const int64_t vectors = reach.vectors - row / kLanes;
    if (vectors == 3) return of(ScoresInPieces<3, Output>);
    if (vectors == 2) return of(ScoresInPieces<2, Output>);
    of(ScoresInPieces<1, Output>);
  });
}

inline void Scores(const Bf16* qt, const Bf16* k, int64_t ld, const Reach& reach, int64_t dim,
                   float* s, float* tile_max) {
  if (tile_max == nullptr) return ScoresTo(qt, k, ld, reach, dim, s, AsScores());
  ScoresTo(qt, k, ld, reach, dim, s, AsScoresWithMax<float>(tile_max));
}
inline void GradientOfScores(const Bf16* dyt, const Bf16* v, int64_t ld, const Reach& reach,
                             int64_t dim, float* p, const float* delta, const BitWord* keep,
                             float* ds) {
  if (keep == nullptr) {
    return ScoresTo(dyt, v, ld, reach, dim, ds, AsScoreGradients<float>{p, delta});
  }
  ScoresTo(dyt, v, ld, reach, dim, ds, AsKeptScoreGradients<float>{p, delta, keep, 0});
}

// a[i][j] += sum over keys [begin, end) of v[key][i] * p[key][vector j], for vectors from kFirst
// on; begin is even.
template <int kFirst, int kVectors>
HWY_INLINE void AddKeys(const Bf16* HWY_RESTRICT p, const Bf16* HWY_RESTRICT v, int64_t ld,
                        int64_t begin, int64_t end, Sums (&a)[kTileKeys][kVectors]) {
  for (int64_t n = begin; n < end; n += 2) {
    Pairs q[kVectors];
#pragma GCC unroll 32
    for (int j = kFirst; j < kVectors; ++j) q[j] = LoadPairs(p + n * kBlockRows + 2 * j * kLanes);
#pragma GCC unroll 32
    for (int i = 0; i < kTileKeys; ++i) {
      const Pairs b = Broadcast(v + n * ld + 2 * i);
#pragma GCC unroll 32
      for (int j = kFirst; j < kVectors; ++j) a[i][j] = AddProducts(a[i][j], q[j], b);
    }
  }
}

template <int kVectors>
void AccumulateOf(const Bf16* HWY_RESTRICT p, const Bf16* HWY_RESTRICT v, int64_t ld,
                  const Reach& reach, int64_t dim, const float* HWY_RESTRICT alpha,
                  float* HWY_RESTRICT out) {
  for (int64_t c = 0; c < dim; c += kTileKeys) {
    Sums a[kTileKeys][kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kTileKeys; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) a[i][j] = hn::Zero(kSums);
    }
    const Bf16* HWY_RESTRICT vc = v + 2 * c;
    AddKeys<0>(p, vc, ld, 0, reach.keys[0], a);
    if constexpr (kVectors > 1) AddKeys<1>(p, vc, ld, reach.keys[0], reach.keys[1], a);
    if constexpr (kVectors > 2) AddKeys<2>(p, vc, ld, reach.keys[1], reach.keys[2], a);
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      const Sums rescale =
          alpha == nullptr ? hn::Set(kSums, 1.0f) : hn::Load(kSums, alpha + j * kLanes);
#pragma GCC unroll 32
      for (int i = 0; i < kTileKeys; ++i) {
        float* HWY_RESTRICT o = out + (c + i) * kBlockRows + j * kLanes;
        hn::Store(hn::MulAdd(hn::Load(kSums, o), rescale, a[i][j]), kSums, o);
      }
    }
  }
}

inline void Accumulate(const Bf16* p, const Bf16* v, int64_t ld, const Reach& reach, int64_t dim,
                       const float* alpha, float* out) {
  if (reach.vectors == 3) return AccumulateOf<3>(p, v, ld, reach, dim, alpha, out);
  if (reach.vectors == 2) return AccumulateOf<2>(p, v, ld, reach, dim, alpha, out);
  AccumulateOf<1>(p, v, ld, reach, dim, alpha, out);
}

// An invisible number of v becomes 0 for the rows that do not see it; their weight is 0 already, so
// the other rows get the same bits as above.
inline void AccumulateVisible(const Bf16* p, const Bf16* v, int64_t ld, int64_t keys, int64_t dim,
                              const BitWord* visible, const float* alpha, float* out) {
  for (int64_t c = 0; c < dim; ++c) {
    for (int64_t j = 0; j < kBlockRows; j += kLanes) {
      Sums sum = hn::Zero(kSums);
      for (int64_t n = 0; n < keys; n += 2) {
        const BitWord* words = visible + n / kWordBits * kBlockRows + j;
        const Pair both = PairAt(v + n * ld + 2 * c);
        const auto first =
            hn::IfThenElseZero(RowsWithBit(kPairs, words, n), hn::Set(kPairs, both & 0x0000FFFFu));
        const auto second = hn::IfThenElseZero(RowsWithBit(kPairs, words, n + 1),
                                               hn::Set(kPairs, both & 0xFFFF0000u));
        sum = AddProducts(sum, LoadPairs(p + n * kBlockRows + 2 * j), hn::Or(first, second));
      }
      const Sums rescale = alpha == nullptr ? hn::Set(kSums, 1.0f) : hn::Load(kSums, alpha + j);
      float* o = out + c * kBlockRows + j;
      hn::Store(hn::MulAdd(hn::Load(kSums, o), rescale, sum), kSums, o);
    }
  }
}

// Rows [i, i + kRows) of c[i][:] += sum over k < depth of a(i, k) * b[k][:] in pairs of k; a(i, k)
// lies at a[2 * (i * kRow + k * kDepth)].
template <int kRows, int kVectors, int64_t kRow, int64_t kDepth>
HWY_INLINE void GradientTile(const Bf16* HWY_RESTRICT a, int64_t depth, const Bf16* HWY_RESTRICT b,
                             int64_t ld, float* HWY_RESTRICT c) {
  Sums sum[kRows][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) sum[i][j] = hn::Zero(kSums);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Pairs row[kVectors];
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) row[j] = LoadPairs(b + 2 * (k * ld + j * kLanes));
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const Pairs w = Broadcast(a + 2 * (i * kRow + k * kDepth));
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) sum[i][j] = AddProducts(sum[i][j], row[j], w);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      float* HWY_RESTRICT o = c + i * ld + j * kLanes;
      hn::Store(hn::Add(hn::Load(kSums, o), sum[i][j]), kSums, o);
    }
  }
}

template <int kVectors, int64_t kRow, int64_t kDepth>
void GradientColumns(const Bf16* a, int64_t rows, int64_t depth, const Bf16* b, int64_t ld,
                     float* c) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    GradientTile<kTileRows, kVectors, kRow, kDepth>(a + 2 * i * kRow, depth, b, ld, c + i * ld);
  }
  if (i + 4 <= rows) {
    GradientTile<4, kVectors, kRow, kDepth>(a + 2 * i * kRow, depth, b, ld, c + i * ld);
    i += 4;
  }
  if (i + 2 <= rows) {
    GradientTile<2, kVectors, kRow, kDepth>(a + 2 * i * kRow, depth, b, ld, c + i * ld);
    i += 2;
  }
  if (i < rows) {
    GradientTile<1, kVectors, kRow, kDepth>(a + 2 * i * kRow, depth, b, ld, c + i * ld);
  }
}

template <int64_t kRow, int64_t kDepth>
void Gradient(const Bf16* a, int64_t rows, int64_t depth, const Bf16* b, int64_t ld, float* c) {
  int64_t j = 0;
  for (; j + 4 * kLanes <= ld; j += 4 * kLanes) {
    GradientColumns<4, kRow, kDepth>(a, rows, depth, b + 2 * j, ld, c + j);
  }
  if (j + 2 * kLanes <= ld) {
    GradientColumns<2, kRow, kDepth>(a, rows, depth, b + 2 * j, ld, c + j);
    j += 2 * kLanes;
  }
  if (j < ld) GradientColumns<1, kRow, kDepth>(a, rows, depth, b + 2 * j, ld, c + j);
}

// A tile over rows is [key][row / 2], one over keys [key / 2][row], in pairs.
inline void GradientOfKeys(const Bf16* a, const Reach& reach, int64_t rows, const Bf16* b,
                           int64_t ld, float* c) {
  ForEachKeyRange(reach, kBlockRows, [&](int64_t key, int64_t keys, int64_t row) {
    Gradient<kBlockRows / 2, 1>(a + key * kBlockRows + row, keys, (rows - row + 1) / 2,
                                b + row * ld, ld, c + key * ld);
  });
}
inline void GradientOfRows(const Bf16* a, const Reach& reach, int64_t rows, const Bf16* b,
                           int64_t ld, float* c) {
  ForEachRowRange(reach, rows, kBlockRows, [&](int64_t row, int64_t count, int64_t keys) {
    Gradient<1, kBlockRows>(a + 2 * row, count, (keys + 1) / 2, b, ld, c + row * ld);
  });
}

// seen(i, k): which halves of pair k of b are visible to i, as a mask. What is not becomes 0; it
// meets a 0 of `a`, so the bits are those of Gradient().
template <typename Seen>
void GradientVisible(const Bf16* a, int64_t a_row, int64_t a_depth, int64_t rows, int64_t depth,
                     const Bf16* b, int64_t ld, float* c, const Seen& seen) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < ld; j += kLanes) {
      Sums sum = hn::Zero(kSums);
      for (int64_t k = 0; k < depth; ++k) {
        const Pairs row = hn::And(LoadPairs(b + 2 * (k * ld + j)), hn::Set(kPairs, seen(i, k)));
        sum = AddProducts(sum, row, Broadcast(a + 2 * (i * a_row + k * a_depth)));
      }
      float* o = c + i * ld + j;
      hn::Store(hn::Add(hn::Load(kSums, o), sum), kSums, o);
    }
  }
}

HWY_INLINE Pair Halves(bool first, bool second) {
  return (first ? 0x0000FFFFu : 0u) | (second ? 0xFFFF0000u : 0u);
}

inline void GradientOfKeysVisible(const Bf16* a, int64_t keys, int64_t rows, const Bf16* b,
                                  int64_t ld, const BitWord* visible, float* c) {
  GradientVisible(a, kBlockRows / 2, 1, keys, (rows + 1) / 2, b, ld, c,
                  [visible](int64_t key, int64_t k) {
                    return Halves(IsVisible(visible, kBlockRows, key, 2 * k),
                                  IsVisible(visible, kBlockRows, key, 2 * k + 1));
                  });
}
inline void GradientOfRowsVisible(const Bf16* a, int64_t keys, int64_t rows, const Bf16* b,
                                  int64_t ld, const BitWord* visible, float* c) {
  GradientVisible(a, 1, kBlockRows, rows, (keys + 1) / 2, b, ld, c,
                  [visible](int64_t row, int64_t k) {
                    return Halves(IsVisible(visible, kBlockRows, 2 * k, row),
                                  IsVisible(visible, kBlockRows, 2 * k + 1, row));
                  });
}

inline const ProductTable<float, Bf16>& Products() {
  static constexpr ProductTable<float, Bf16> table = {
      .pack = Pack,
      .transpose = TransposePairs,
      .summands = Summands,
      .scores = Scores,
      .gradient_of_scores = GradientOfScores,
      .weights = Weights,
      .accumulate = Accumulate,
      .accumulate_visible = AccumulateVisible,
      .gradient_operands = RoundGradients,
      .gradient_of_keys = GradientOfKeys,
      .gradient_of_rows = GradientOfRows,
      .gradient_of_keys_visible = GradientOfKeysVisible,
      .gradient_of_rows_visible = GradientOfRowsVisible,
  };
  return table;
}

}  // namespace bf16
}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_POP_ATTRIBUTES
#endif  // HWY_TARGET == HWY_AVX3
#endif
