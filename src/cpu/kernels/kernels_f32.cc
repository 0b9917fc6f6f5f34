// The kernels for float arithmetic, once per SIMD target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/kernels/kernels_f32.cc"
#include <hwy/foreach_target.h>
// Highway's header must come first.
#include "src/cpu/kernels/products_bf16-inl.h"
#include "src/cpu/kernels/table-inl.h"

#if HWY_ONCE
#include "src/cpu/kernels/tables.h"

namespace fusion_attention::cpu {

template <>
const KernelTable<float>* KernelsOf<float>(int64_t target) {
  FUSION_ATTENTION_RETURN_TABLE(target, float)
  return nullptr;
}

const ProductTable<float, Bf16>* NativeBf16Products() {
#if HWY_TARGETS & HWY_AVX3
  return &N_AVX3::bf16::Products();
#else
  return nullptr;
#endif
}

}  // namespace fusion_attention::cpu
#endif  // HWY_ONCE
