// Which SIMD target runs: the best that this build and this CPU have, or the one that
// FUSION_ATTENTION_TARGET names. Decided once a process.
#pragma once

#include "fusion_attention/status.h"
#include "src/cpu/kernels/kernel_table.h"

namespace fusion_attention::cpu {

// Both tables of the selected target, or why there is none.
struct Kernels {
  const char* name;
  const KernelTable<float>* f32;
  const KernelTable<double>* f64;
};
const StatusOr<Kernels>& SelectedKernels();

// Whether this CPU has any of the SIMD targets that this build has.
bool HasTarget();

}  // namespace fusion_attention::cpu
