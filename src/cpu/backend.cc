// The CPU backend: tiled, online softmax, SIMD with run-time dispatch, on lent threads.
#include "src/backend/backend.h"

#include "src/cpu/passes.h"
#include "src/cpu/targets.h"

namespace fusion_attention {
namespace {

class Cpu final : public Backend {
 public:
  std::string_view Name() const override { return "cpu"; }

  std::vector<std::string> UnsupportedReasons(const Problem&) const override {
    if (cpu::HasTarget()) return {};
    return {"this CPU has none of the SIMD targets that this build has"};
  }

  // A wrong FUSION_ATTENTION_TARGET is no reason to step aside: the call fails and says so, instead
  // of running a thousand times slower on the next backend.
  Status Ready() const override { return cpu::SelectedKernels().status(); }

  Status Forward(const Problem& problem, const ForwardArgs& args,
                 ParallelFor& threads) const override {
    cpu::RunForward(problem, args, threads, *cpu::SelectedKernels());
    return Status();
  }

  Status Backward(const Problem& problem, const BackwardArgs& args,
                  ParallelFor& threads) const override {
    cpu::RunBackward(problem, args, threads, *cpu::SelectedKernels());
    return Status();
  }
};

}  // namespace

const Backend& CpuBackend() {
  static const Cpu backend;
  return backend;
}

}  // namespace fusion_attention
