// The CPU backend: tiled, online softmax, SIMD with run-time dispatch.
#include "src/backend/backend.h"

namespace fusion_attention {
namespace {

class Cpu final : public Backend {
 public:
  std::string_view Name() const override { return "cpu"; }
  std::vector<std::string> UnsupportedReasons(const Problem&) const override { return {"the kernels are being built"}; }
  Status Forward(const Problem&, const ForwardArgs&, ParallelFor&) const override {
    return Status(StatusCode::kUnimplemented, "npu_fusion_attention: no kernels");
  }
  Status Backward(const Problem&, const BackwardArgs&, ParallelFor&) const override {
    return Status(StatusCode::kUnimplemented, "npu_fusion_attention: no kernels");
  }
};

}  // namespace

const Backend& CpuBackend() {
  static const Cpu backend;
  return backend;
}

}  // namespace fusion_attention
