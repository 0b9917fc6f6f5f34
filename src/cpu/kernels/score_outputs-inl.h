// What a register tile of dot products becomes on its way to memory: itself, itself and its largest
// over keys, or gradients of scores. So the pass behind the product needs no reading and writing of
// its own.
#if defined(FUSION_ATTENTION_SCORE_OUTPUTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_SCORE_OUTPUTS_INL_H_
#undef FUSION_ATTENTION_SCORE_OUTPUTS_INL_H_
#else
#define FUSION_ATTENTION_SCORE_OUTPUTS_INL_H_
#endif

#include <hwy/highway.h>

#include "src/cpu/kernels/mask-inl.h"
#include "src/cpu/kernels/tile_types.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// An output makes of a vector of dot products, those of one key with the rows from `row` on, what
// is stored. From: the same output for what lies behind that key and row.
struct AsScores {
  static constexpr bool kWantsMax = false;
  template <class V>
  HWY_INLINE V operator()(V score, int64_t, int64_t) const {
    return score;
  }
  AsScores From(int64_t, int64_t) const { return {}; }
};

template <typename T>
struct AsScoresWithMax : AsScores {
  static constexpr bool kWantsMax = true;
  explicit AsScoresWithMax(T* tile_max) : max(tile_max) {}
  AsScoresWithMax From(int64_t, int64_t row) const { return AsScoresWithMax(max + row); }
  T* max;
};

// dS = P (dP - delta), where dP is the dot product.
template <typename T>
struct AsScoreGradients {
  static constexpr bool kWantsMax = false;
  static constexpr int64_t kBlockRows = kBlockVectors * hn::MaxLanes(hn::ScalableTag<T>());
  template <class V>
  HWY_INLINE V operator()(V score, int64_t key, int64_t row) const {
    const hn::ScalableTag<T> d;
    const V weight = hn::Load(d, p + key * kBlockRows + row);
    return hn::Mul(weight, hn::Sub(score, hn::Load(d, delta + row)));
  }
  AsScoreGradients From(int64_t key, int64_t row) const {
    return {p + key * kBlockRows + row, delta + row};
  }
  const T* p;
  const T* delta;
};

// The same where dropout drops some of dP, and some of P once it has been used.
template <typename T>
struct AsKeptScoreGradients {
  static constexpr bool kWantsMax = false;
  static constexpr int64_t kBlockRows = kBlockVectors * hn::MaxLanes(hn::ScalableTag<T>());
  template <class V>
  HWY_INLINE V operator()(V score, int64_t key, int64_t row) const {
    const hn::ScalableTag<T> d;
    T* q = p + key * kBlockRows + row;
    const int64_t n = first_key + key;
    const auto kept = RowsWithBit(d, keep + n / kWordBits * kBlockRows + row, n);
    const V weight = hn::Load(d, q);
    hn::Store(hn::IfThenElseZero(kept, weight), d, q);
    return hn::Mul(weight, hn::Sub(hn::IfThenElseZero(kept, score), hn::Load(d, delta + row)));
  }
  AsKeptScoreGradients From(int64_t key, int64_t row) const {
    return {p + key * kBlockRows + row, delta + row, keep + row, first_key + key};
  }
  T* p;
  const T* delta;
  const BitWord* keep;
  int64_t first_key;
};

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
