// The bias of a tile of scores (pse), and what its slopes' gradient sums up. A stored bias is read
// row by row from where it lies, keys in a row, and transposed in registers on its way to the
// scores; the bias of slopes is one line for a whole tile.
#if defined(FUSION_ATTENTION_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_BIAS_INL_H_
#undef FUSION_ATTENTION_BIAS_INL_H_
#else
#define FUSION_ATTENTION_BIAS_INL_H_
#endif

#include <hwy/highway.h>

#include "src/cpu/kernels/kernel_table.h"
#include "src/cpu/kernels/mask-inl.h"
#include "src/cpu/kernels/rows-inl.h"
#include "src/cpu/kernels/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector of scores with its bias. bias_factor is 1, -1 or 0: its product is exact, and the
// multiply-add rounds once.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> WithBias(D d, T* HWY_RESTRICT s, hn::Vec<D> bias, T score_factor,
                               T bias_factor) {
  const auto t =
      hn::MulAdd(hn::Set(d, score_factor), hn::Load(d, s), hn::Mul(hn::Set(d, bias_factor), bias));
  hn::Store(t, d, s);
  return t;
}

// Adds the bias of kPieces * kSide keys to one vector of rows; returns their maximum, with `max`.
// The pieces of a row are read together: rows that lie a power of two apart share a few cache sets.
template <class Element, int64_t kPieces, class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> AddBiasPieces(D d, const typename Element::Bits* HWY_RESTRICT bias,
                                    int64_t row_stride, int64_t keys, T score_factor, T bias_factor,
                                    T* HWY_RESTRICT s, hn::Vec<D> max) {
  const hn::Rebind<typename Element::Bits, D> bits;
  const int64_t block_rows = kBlockVectors * hn::Lanes(d);
  hn::Vec<D> b[kPieces][kSide<T>];
#pragma GCC unroll 4
  for (int64_t i = 0; i < kSide<T>; ++i) {
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPieces; ++p) {
      b[p][i] = Element::Widen(d, LoadBlocks<kSide<T>>(bits, bias + i * row_stride + p * kSide<T>,
                                                       kSide<T> * row_stride));
    }
  }
#pragma GCC unroll 4
  for (int64_t p = 0; p < kPieces; ++p) {
    TransposeSquares(d, b[p]);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kSide<T>; ++i) {
      const int64_t n = p * kSide<T> + i;
      const auto t = WithBias(d, s + n * block_rows, b[p][i], score_factor, bias_factor);
      if (n < keys) max = hn::Max(max, t);
    }
  }
  return max;
}

template <class Element, typename T>
void AddBiasAs(T* HWY_RESTRICT s, const SourceRows& bias, int64_t keys, T score_factor,
               T bias_factor, T* HWY_RESTRICT tile_max) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  constexpr int64_t kPieces = hn::MaxLanes(d) / kSide<T>;
  for (int64_t j = 0; j < block_rows; j += lanes) {
    const auto* from = static_cast<const typename Element::Bits*>(bias.data) + j * bias.row_stride;
    auto max = hn::Set(d, kMinusInfinity<T>);
    int64_t n = 0;
    for (; n + lanes <= keys; n += lanes) {
      // No hardware prefetcher follows rows that are pages apart; the next tile is likely the same
      // keys for the block of rows below. Without this a dense bias cost 33 % of the time at 64
      // channels, with it 19 %.
      for (int64_t r = 0; r < lanes; ++r) {
        __builtin_prefetch(from + n + (block_rows + r) * bias.row_stride, 0, 2);
      }
      max = AddBiasPieces<Element, kPieces>(d, from + n, bias.row_stride, lanes, score_factor,
                                            bias_factor, s + n * block_rows + j, max);
    }
    for (; n < keys; n += kSide<T>) {
      max = AddBiasPieces<Element, 1>(d, from + n, bias.row_stride, keys - n, score_factor,
                                      bias_factor, s + n * block_rows + j, max);
    }
    if (tile_max != nullptr) hn::Store(max, d, tile_max + j);
  }
}

inline void AddBias(float* s, const SourceRows& bias, int64_t keys, float score_factor,
                    float bias_factor, float* tile_max) {
  const auto add = bias.dtype == DType::kFloat16    ? AddBiasAs<Float16, float>
                   : bias.dtype == DType::kBFloat16 ? AddBiasAs<BFloat16, float>
                                                    : AddBiasAs<Same<float>, float>;
  add(s, bias, keys, score_factor, bias_factor, tile_max);
}
inline void AddBias(double* s, const SourceRows& bias, int64_t keys, double score_factor,
                    double bias_factor, double* tile_max) {
  AddBiasAs<Same<double>>(s, bias, keys, score_factor, bias_factor, tile_max);
}

template <typename T>
void AddLine(T* HWY_RESTRICT s, const T* HWY_RESTRICT line, int64_t keys, T score_factor,
             T bias_factor, T* HWY_RESTRICT tile_max) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  for (int64_t j = 0; j < block_rows; j += lanes) {
    auto max = hn::Set(d, kMinusInfinity<T>);
    for (int64_t n = 0; n < keys; ++n) {
      const auto bias = hn::LoadU(d, line + j - n);
      max = hn::Max(max, WithBias(d, s + n * block_rows + j, bias, score_factor, bias_factor));
    }
    if (tile_max != nullptr) hn::Store(max, d, tile_max + j);
  }
}

template <typename T>
void LineProducts(const T* HWY_RESTRICT ds, const double* HWY_RESTRICT line, int64_t keys,
                  double* HWY_RESTRICT sums) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<T, decltype(d)> source;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  constexpr int kVectors = kBlockVectors * sizeof(double) / sizeof(T);
  const int64_t block_rows = kVectors * lanes;
  V sum[kVectors];
#pragma GCC unroll 32
  for (int j = 0; j < kVectors; ++j) sum[j] = hn::Zero(d);
  for (int64_t n = 0; n < keys; ++n) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      const auto g = hn::LoadU(source, ds + n * block_rows + j * lanes);
      const V distance = hn::LoadU(d, line + j * lanes - n);
      if constexpr (sizeof(T) == sizeof(double)) {
        sum[j] = hn::MulAdd(g, distance, sum[j]);
      } else {
        sum[j] = hn::MulAdd(hn::PromoteTo(d, g), distance, sum[j]);
      }
    }
  }
#pragma GCC unroll 32
  for (int j = 0; j < kVectors; ++j) hn::Store(sum[j], d, sums + j * lanes);
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
