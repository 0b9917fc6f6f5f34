// exp(x) of floats where AVX-512 has an instruction for each of its two tricks: 2^(k / 32) by
// looking k up in two registers (vpermi2ps), and a product with 2^n (vscalefps).
//
// x log2 e is split into a multiple of 1/32 and a rest in [-1/64, 1/64], for which a polynomial of
// degree 2 does: its relative error is 0.9 * 2^-24. With its maximum and sum a vector of weights
// takes 4.7 cycles of Zen 5; 5.3 where the product with log2 e is rounded first, because additions
// then wait for each other while multipliers are free; a polynomial of degree 5 takes 0.7 more.
#if defined(FUSION_ATTENTION_EXP_AVX512_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_EXP_AVX512_INL_H_
#undef FUSION_ATTENTION_EXP_AVX512_INL_H_
#else
#define FUSION_ATTENTION_EXP_AVX512_INL_H_
#endif

#include <hwy/highway.h>

#include "src/cpu/kernels/register-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET <= HWY_AVX3
// 2^(k / 32), each rounded once.
alignas(64) inline constexpr float kPowersOfTwo[32] = {
    1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f,
    1.1637249f,  1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f,
    1.35425556f, 1.38390994f, 1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f,
    1.5759809f,  1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f,
    1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};

class ExpFloat {
  using D = hn::ScalableTag<float>;
  using V = hn::Vec<D>;

 public:
  explicit HWY_INLINE ExpFloat(D d)
      : lowest_(InRegister(hn::Set(d, -87.33654f))),  // log(2^-126)
        log2e_(InRegister(hn::Set(d, 1.44269504f))),
        magic_(InRegister(hn::Set(d, 393216.0f))),
        c1_(InRegister(hn::Set(d, 0.6931573f))),
        c2_(InRegister(hn::Set(d, 0.24022649f))),
        low_powers_(InRegister(hn::Load(d, kPowersOfTwo))),
        high_powers_(InRegister(hn::Load(d, kPowersOfTwo + 16))) {}

  HWY_INLINE V operator()(D d, V x) const {
    V one[1] = {x};
    (*this)(d, one);
    return one[0];
  }

  // Replaces each x by exp(x), all of them step by step: chains of nine dependent instructions side
  // by side wait less than one after the other (four of them: 4.7 cycles each; two: 5.0).
  template <int kCount>
  HWY_INLINE void operator()(D, V (&x)[kCount]) const {
    __mmask16 keep[kCount];
    V shifted[kCount], n[kCount], rest[kCount];
    // NaN compares as "not less than" and is kept.
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      keep[i] = _mm512_cmp_ps_mask(x[i].raw, lowest_.raw, _CMP_NLT_UQ);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) shifted[i] = hn::MulAdd(x[i], log2e_, magic_);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) n[i] = hn::Sub(shifted[i], magic_);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) rest[i] = hn::MulSub(x[i], log2e_, n[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      x[i].raw = _mm512_permutex2var_ps(low_powers_.raw, _mm512_castps_si512(shifted[i].raw),
                                        high_powers_.raw);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) x[i].raw = _mm512_scalef_ps(x[i].raw, n[i].raw);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) n[i] = hn::MulAdd(c2_, rest[i], c1_);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) n[i] = hn::Mul(n[i], rest[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      x[i].raw = _mm512_maskz_fmadd_ps(keep[i], x[i].raw, n[i].raw, x[i].raw);
    }
  }

 private:
  V lowest_, log2e_, magic_, c1_, c2_, low_powers_, high_powers_;
};
#endif

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
