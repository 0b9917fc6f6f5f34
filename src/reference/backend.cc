// The reference implementation as a backend. It supports every problem, so that a plan can always
// be made.
#include "src/backend/backend.h"

#include "src/reference/reference.h"

namespace fusion_attention {
namespace {

class Reference final : public Backend {
 public:
  std::string_view Name() const override { return "reference"; }
  std::vector<std::string> UnsupportedReasons(const Problem&) const override { return {}; }
  Status Forward(const Problem& problem, const ForwardArgs& args, ParallelFor&) const override {
    reference::Forward(problem, args);
    return {};
  }
  Status Backward(const Problem& problem, const BackwardArgs& args, ParallelFor&) const override {
    reference::Backward(problem, args);
    return {};
  }
};

}  // namespace

const Backend& ReferenceBackend() {
  static const Reference backend;
  return backend;
}

}  // namespace fusion_attention
