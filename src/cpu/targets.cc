#include "src/cpu/targets.h"

#include <hwy/targets.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "fusion_attention/plan.h"
#include "src/cpu/kernels/tables.h"

namespace fusion_attention {
namespace cpu {
namespace {

// Best first. The names are ours: Highway's "AVX3" is what everybody else calls AVX-512, and it has
// no target for avx512_bf16, which is AVX3 but for the products of bfloat16.
struct NamedTarget {
  const char* name;
  int64_t bit;
  bool bf16_products = false;
};
constexpr NamedTarget kTargets[] = {
    {"avx512_bf16", HWY_AVX3, true},
    {"avx512", HWY_AVX3},
    {"avx2", HWY_AVX2},
    {"sse4", HWY_SSE4},
    {"neon", HWY_NEON},
};

bool HasBf16Products() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool IsBuilt(const NamedTarget& target) { return KernelsOf<float>(target.bit) != nullptr; }

bool CanRun(const NamedTarget& target) {
  return IsBuilt(target) && (hwy::SupportedTargets() & target.bit) != 0 &&
         (!target.bf16_products || HasBf16Products());
}

std::vector<std::string> NamesWhere(bool (*holds)(const NamedTarget&)) {
  std::vector<std::string> names;
  for (const NamedTarget& target : kTargets) {
    if (holds(target)) names.push_back(target.name);
  }
  return names;
}

StatusOr<Kernels> Select() {
  const char* wanted = std::getenv("FUSION_ATTENTION_TARGET");
  for (const Kernels& kernels : RunnableKernels()) {
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == kernels.name) return kernels;
  }
  std::string names;
  for (const std::string& name : TargetNames()) names += (names.empty() ? "" : ", ") + name;
  return Status(
      StatusCode::kInvalidArgument,
      "npu_fusion_attention: expected the environment variable FUSION_ATTENTION_TARGET to "
      "name a SIMD target that this CPU has (" +
          (names.empty() ? "none" : names) + "), but got " +
          std::string(wanted == nullptr ? "nothing" : wanted).substr(0, 40) + ".");
}

}  // namespace

std::vector<Kernels> RunnableKernels() {
  std::vector<Kernels> all;
  for (const NamedTarget& target : kTargets) {
    if (!CanRun(target)) continue;
    all.push_back({target.name, KernelsOf<float>(target.bit), KernelsOf<double>(target.bit),
                   target.bf16_products ? NativeBf16Products() : nullptr});
  }
  return all;
}

bool HasTarget() {
  // Asked at each plan, but of the CPU only once: it answers with a few CPUID instructions, which a
  // virtual machine traps (17-50 us).
  static const bool has = std::any_of(std::begin(kTargets), std::end(kTargets), CanRun);
  return has;
}

const StatusOr<Kernels>& SelectedKernels() {
  static const StatusOr<Kernels> selected = Select();
  return selected;
}

}  // namespace cpu

std::vector<std::string> TargetNames() { return cpu::NamesWhere(cpu::CanRun); }

std::vector<std::string> BuiltTargetNames() { return cpu::NamesWhere(cpu::IsBuilt); }

StatusOr<std::string> SelectedTarget() {
  const auto& kernels = cpu::SelectedKernels();
  if (!kernels.ok()) return kernels.status();
  return std::string(kernels->name);
}

}  // namespace fusion_attention
