// exp(x) for the softmax, on vectors: the one transcendental function of the operator.
//
// float: x log2 e is split into an integer and a rest in [-0.5, 0.5], for which a minimax
// polynomial of degree 5 does, off by 2.8 * 2^-24 (degree 4: 48; degree 6: 1.3, for one more
// multiply-add per score); AVX-512 has a way of its own (exp_avx512-inl.h). double: Highway's Exp.
// On every target exp(0) == 1, so an unchanged row maximum rescales by exactly 1; NaN gives NaN;
// results below the smallest normal number give 0, so that no product downstream meets a subnormal
// weight (a 100-cycle assist on Intel).
#if defined(FUSION_ATTENTION_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_EXP_INL_H_
#undef FUSION_ATTENTION_EXP_INL_H_
#else
#define FUSION_ATTENTION_EXP_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <type_traits>

#include "src/cpu/kernels/exp_avx512-inl.h"
#include "src/cpu/kernels/register-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET > HWY_AVX3
class ExpFloat {
  using D = hn::ScalableTag<float>;
  using V = hn::Vec<D>;

 public:
  explicit HWY_INLINE ExpFloat(D d)
      : lowest_(InRegister(hn::Set(d, -87.33654f))),  // log(2^-126)
        log2e_(InRegister(hn::Set(d, 1.44269504f))),
        c1_(InRegister(hn::Set(d, 0.693147f))),
        c2_(InRegister(hn::Set(d, 0.24022242f))),
        c3_(InRegister(hn::Set(d, 0.055507336f))),
        c4_(InRegister(hn::Set(d, 0.009671513f))),
        c5_(InRegister(hn::Set(d, 0.0013264727f))),
        one_(InRegister(hn::Set(d, 1.0f))) {}

  HWY_INLINE V operator()(D d, V x) const {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
    const V magic = hn::Set(d, 12582912.0f);
    const hn::RebindToSigned<D> di;
    const auto too_low = hn::Lt(x, lowest_);
    const V in_range = hn::IfThenElse(too_low, lowest_, x);
    const V shifted = hn::MulAdd(in_range, log2e_, magic);
    const V n = hn::Sub(shifted, magic);
    const V p = Polynomial(hn::MulSub(in_range, log2e_, n));
    const auto exponent = hn::Add(hn::BitCast(di, shifted), hn::Set(di, 127));
    const V power = hn::BitCast(d, hn::ShiftLeft<23>(exponent));
    return hn::IfThenZeroElse(too_low, hn::Mul(p, power));
  }

  template <int kCount>
  HWY_INLINE void operator()(D d, V (&x)[kCount]) const {
    for (V& v : x) v = (*this)(d, v);
  }

 private:
  HWY_INLINE V Polynomial(V r) const {
    V p = hn::MulAdd(c5_, r, c4_);
    p = hn::MulAdd(p, r, c3_);
    p = hn::MulAdd(p, r, c2_);
    p = hn::MulAdd(p, r, c1_);
    return hn::MulAdd(p, r, one_);
  }

  V lowest_, log2e_, c1_, c2_, c3_, c4_, c5_, one_;
};
#endif

class ExpDouble {
  using D = hn::ScalableTag<double>;
  using V = hn::Vec<D>;

 public:
  explicit HWY_INLINE ExpDouble(D) {}
  HWY_INLINE V operator()(D d, V x) const {
    const auto lowest = hn::Set(d, -708.0);  // log(2^-1022) is -708.4
    const auto too_low = hn::Lt(x, lowest);
    const auto e = hn::Exp(d, hn::IfThenElse(too_low, lowest, x));
    return hn::IfThenElse(hn::IsNaN(x), x, hn::IfThenZeroElse(too_low, e));
  }

  template <int kCount>
  HWY_INLINE void operator()(D d, V (&x)[kCount]) const {
    for (V& v : x) v = (*this)(d, v);
  }
};

template <typename T>
using Exp = std::conditional_t<std::is_same_v<T, float>, ExpFloat, ExpDouble>;

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
