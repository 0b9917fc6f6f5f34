// The way in: make a plan, run it. What can fail has failed by the time a plan exists, but for
// memory.
#include "fusion_attention/plan.h"

#include <new>

#include "fusion_attention/backward.h"
#include "fusion_attention/forward.h"
#include "src/backend/registry.h"
#include "src/dropout/philox.h"

namespace fusion_attention {
namespace {

Status OutOfMemory() {
  return Status(StatusCode::kResourceExhausted,
                "npu_fusion_attention: expected the working memory of the call to be available, "
                "but an allocation failed. Use fewer threads or shorter sequences.");
}

}  // namespace

StatusOr<Plan> Plan::Create(const Call& call, const PlanOptions& options) {
  StatusOr<Problem> problem = Validate(call);
  if (!problem.ok()) return problem.status();
  const StatusOr<const Backend*> backend = ChooseBackend(Backends(), options.backend, *problem);
  if (!backend.ok()) return backend.status();
  const Status ready = (*backend)->Ready();
  if (!ready.ok()) return ready;
  return Plan(problem.TakeValue(), *backend);
}

std::string_view Plan::backend_name() const { return backend_->Name(); }

double Plan::DropRate() const {
  if (problem_.dropout == DropoutKind::kDropAll) return 1;
  if (problem_.dropout != DropoutKind::kPhilox) return 0;
  const KeepThreshold keep = KeepThresholdOf(problem_.dtype, problem_.keep_prob);
  return keep.threshold / (keep.low_mask + 1.0);
}

Status Forward(const Plan& plan, const ForwardArgs& args, ParallelFor& threads) try {
  return plan.backend().Forward(plan.problem(), args, threads);
} catch (const std::bad_alloc&) {
  return OutOfMemory();
}

Status Backward(const Plan& plan, const BackwardArgs& args, ParallelFor& threads) try {
  return plan.backend().Backward(plan.problem(), args, threads);
} catch (const std::bad_alloc&) {
  return OutOfMemory();
}

}  // namespace fusion_attention
