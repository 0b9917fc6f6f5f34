// Where a target's kernels are found: one table per (target, arithmetic type), or nullptr if this
// build lacks the target. The macros list the targets that we build; Highway 1.0.3 has no list of
// its own to iterate over. AVX3_DL and SSSE3 add nothing to AVX3 and SSE4 here; SVE's vectors have
// no size at compile time, so they cannot be kept in arrays, and SVE machines run NEON.
#pragma once

#include <hwy/detect_targets.h>

#include "src/cpu/kernels/kernel_table.h"

#if HWY_TARGETS & HWY_AVX3
#define FUSION_ATTENTION_AVX3(target, T) \
  if ((target) == HWY_AVX3) return &N_AVX3::Table<T>();
#else
#define FUSION_ATTENTION_AVX3(target, T)
#endif
#if HWY_TARGETS & HWY_AVX2
#define FUSION_ATTENTION_AVX2(target, T) \
  if ((target) == HWY_AVX2) return &N_AVX2::Table<T>();
#else
#define FUSION_ATTENTION_AVX2(target, T)
#endif
#if HWY_TARGETS & HWY_SSE4
#define FUSION_ATTENTION_SSE4(target, T) \
  if ((target) == HWY_SSE4) return &N_SSE4::Table<T>();
#else
#define FUSION_ATTENTION_SSE4(target, T)
#endif
#if HWY_TARGETS & HWY_NEON
#define FUSION_ATTENTION_NEON(target, T) \
  if ((target) == HWY_NEON) return &N_NEON::Table<T>();
#else
#define FUSION_ATTENTION_NEON(target, T)
#endif
#define FUSION_ATTENTION_RETURN_TABLE(target, T) \
  FUSION_ATTENTION_AVX3(target, T)               \
  FUSION_ATTENTION_AVX2(target, T)               \
  FUSION_ATTENTION_SSE4(target, T)               \
  FUSION_ATTENTION_NEON(target, T)

namespace fusion_attention::cpu {

// `target` is one of Highway's HWY_AVX3, HWY_AVX2, ... bits.
template <typename T>
const KernelTable<T>* KernelsOf(int64_t target);
template <>
const KernelTable<float>* KernelsOf<float>(int64_t target);
template <>
const KernelTable<double>* KernelsOf<double>(int64_t target);

// The products of bfloat16 with the CPU's own instruction, for the kernels of HWY_AVX3; nullptr if
// this build lacks them. They run only where CPUID reports avx512_bf16.
const ProductTable<float, Bf16>* NativeBf16Products();

}  // namespace fusion_attention::cpu
