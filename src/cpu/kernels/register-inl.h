// Keeps a constant in a register.
#if defined(FUSION_ATTENTION_REGISTER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_REGISTER_INL_H_
#undef FUSION_ATTENTION_REGISTER_INL_H_
#else
#define FUSION_ATTENTION_REGISTER_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Pins a constant to a register. Left alone, GCC 12 reloads the coefficients from memory at each
// use, which doubles the cost of exp where two loads a cycle are the limit.
template <class V>
HWY_INLINE V InRegister(V v) {
#if HWY_ARCH_X86 && HWY_COMPILER_GCC && !HWY_COMPILER_CLANG
#if HWY_TARGET <= HWY_AVX3
  asm("" : "+v"(v.raw));
#else
  asm("" : "+x"(v.raw));
#endif
#endif
  return v;
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
