// What happens to a tile of scores between the products: the online softmax, and the backward
// pass's probabilities and score gradients. Rows lie in lanes, so everything here is element-wise.
#if defined(FUSION_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_SOFTMAX_INL_H_
#undef FUSION_ATTENTION_SOFTMAX_INL_H_
#else
#define FUSION_ATTENTION_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

#include "src/cpu/kernels/exp-inl.h"
#include "src/cpu/kernels/kernel_table.h"
#include "src/cpu/kernels/mask-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// weigh(first key, e) for all keys, where e is an array of vectors for as many keys: four at a
// time, which exp takes side by side, then two, then one.
template <class V, class Weigh>
HWY_INLINE void InFours(int64_t keys, const Weigh& weigh) {
  V four[4], two[2], one[1];
  int64_t n = 0;
  for (; n + 4 <= keys; n += 4) weigh(n, four);
  if (keys - n >= 2) {
    weigh(n, two);
    n += 2;
  }
  if (n < keys) weigh(n, one);
}

template <typename T>
bool OnlineSoftmax(T* HWY_RESTRICT s, int64_t keys, int64_t rows, T scale,
                   const T* HWY_RESTRICT tile_max, T* HWY_RESTRICT m, T* HWY_RESTRICT l,
                   T* HWY_RESTRICT alpha) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  const Exp<T> exp(d);
  const auto factor = InRegister(hn::Set(d, scale));
  const auto none = hn::Set(d, kMinusInfinity<T>);
  const auto one = hn::Set(d, T{1});
  bool rescale = false;
  // t - max is formed from rounded t, as the definition has it: the largest score gives exactly 1.
  for (int64_t j = 0; j < rows; j += lanes) {
    const auto old_max = hn::Load(d, m + j);
    const auto new_max = hn::Max(old_max, hn::Mul(hn::Load(d, tile_max + j), factor));
    // While no key has been seen the maximum is -inf; subtracting 0 instead keeps -inf - -inf away.
    const auto shift = hn::IfThenZeroElse(hn::Eq(new_max, none), new_max);
    // An unchanged maximum rescales by 1 even where it is infinite, as a sink may be.
    const auto decay =
        hn::IfThenElse(hn::Eq(old_max, new_max), one, exp(d, hn::Sub(old_max, shift)));
    // Even and odd keys apart: half the additions in a row halve the rounding error, and wait less.
    auto even = hn::Zero(d);
    auto odd = hn::Zero(d);
    const auto weigh = [&]<int kCount>(int64_t n, V(&e)[kCount]) HWY_ATTR {
      T* p = s + n * block_rows + j;
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        e[i] = hn::Sub(hn::Mul(hn::Load(d, p + i * block_rows), factor), shift);
      }
      exp(d, e);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        hn::Store(e[i], d, p + i * block_rows);
        if (i % 2 == 0)
          even = hn::Add(even, e[i]);
        else
          odd = hn::Add(odd, e[i]);
      }
    };
    InFours<V>(keys, weigh);
    rescale |= !hn::AllTrue(d, hn::Eq(decay, one));
    hn::Store(hn::MulAdd(hn::Load(d, l + j), decay, hn::Add(even, odd)), d, l + j);
    hn::Store(new_max, d, m + j);
    hn::Store(decay, d, alpha + j);
  }
  return rescale;
}

template <typename T>
void Deltas(const T* HWY_RESTRICT o, const T* HWY_RESTRICT dy, int64_t ld, int64_t rows,
            int64_t dim, T* HWY_RESTRICT out) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d);
  for (int64_t r = 0; r < rows; ++r) {
    auto sum = zero;
    for (int64_t c = 0; c < dim; c += lanes) {
      const auto v = hn::Load(d, o + r * ld + c);
      const auto product = hn::Mul(v, hn::Load(d, dy + r * ld + c));
      sum = hn::Add(sum, hn::IfThenZeroElse(hn::Eq(v, zero), product));
    }
    out[r] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

template <typename T>
void Probabilities(T* HWY_RESTRICT s, int64_t keys, T scale, const T* HWY_RESTRICT max,
                   const T* HWY_RESTRICT weight, const BitWord* HWY_RESTRICT visible) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  const Exp<T> exp(d);
  const auto factor = InRegister(hn::Set(d, scale));
  for (int64_t j = 0; j < block_rows; j += lanes) {
    const auto shift = hn::Load(d, max + j);
    const auto normaliser = hn::Load(d, weight + j);
    InFours<V>(keys, [&]<int kCount>(int64_t n, V(&e)[kCount]) HWY_ATTR {
      T* p = s + n * block_rows + j;
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        e[i] = hn::Sub(hn::Mul(hn::Load(d, p + i * block_rows), factor), shift);
      }
      exp(d, e);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) hn::Store(hn::Mul(e[i], normaliser), d, p + i * block_rows);
    });
    if (visible == nullptr) continue;
    for (int64_t n = 0; n < keys; ++n) {
      T* p = s + n * block_rows + j;
      const auto seen = RowsWithBit(d, visible + n / kWordBits * block_rows + j, n);
      hn::Store(hn::IfThenElseZero(seen, hn::Load(d, p)), d, p);
    }
  }
}

template <typename T>
void ScoreGradients(T* HWY_RESTRICT p, T* HWY_RESTRICT dp, int64_t keys,
                    const T* HWY_RESTRICT delta, const BitWord* HWY_RESTRICT visible,
                    const BitWord* HWY_RESTRICT keep) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  for (int64_t n = 0; n < keys; ++n) {
    const int64_t word = n / kWordBits * block_rows;
#pragma GCC unroll 3
    for (int64_t j = 0; j < block_rows; j += lanes) {
      T* pn = p + n * block_rows + j;
      T* dn = dp + n * block_rows + j;
      const auto weight = hn::Load(d, pn);
      auto g = hn::Load(d, dn);
      if (keep != nullptr) {
        const auto kept = RowsWithBit(d, keep + word + j, n);
        g = hn::IfThenElseZero(kept, g);
        hn::Store(hn::IfThenElseZero(kept, weight), d, pn);
      }
      const auto ds = hn::Mul(weight, hn::Sub(g, hn::Load(d, delta + j)));
      hn::Store(hn::IfThenElseZero(RowsWithBit(d, visible + word + j, n), ds), d, dn);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
