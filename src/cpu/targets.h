// Which SIMD target runs: the best that this build and this CPU have, or the one that
// FUSION_ATTENTION_TARGET names. Decided once a process.
#pragma once

#include <vector>

#include "fusion_attention/status.h"
#include "src/cpu/kernels/kernel_table.h"

namespace fusion_attention::cpu {

// The tables of one target.
struct Kernels {
  const char* name;
  const KernelTable<float>* f32;
  const KernelTable<double>* f64;
  const ProductTable<float, Bf16>* bf16;  // nullptr: bfloat16 is multiplied as float, exactly

  // run(table, products) with what serves inputs of `dtype`.
  template <typename Run>
  void For(DType dtype, const Run& run) const {
    if (dtype == DType::kFloat64) {
      run(*f64, f64->products);
    } else if (dtype == DType::kBFloat16 && bf16 != nullptr) {
      run(*f32, *bf16);
    } else {
      run(*f32, f32->products);
    }
  }
};

// Those of all targets that this build has and this CPU can run, best first.
std::vector<Kernels> RunnableKernels();

// Those of the selected target, or why there is none.
const StatusOr<Kernels>& SelectedKernels();

// Whether this CPU has any of the SIMD targets that this build has.
bool HasTarget();

}  // namespace fusion_attention::cpu
