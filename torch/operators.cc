// The operators: take the arguments, plan, allocate, run.
// Nothing is allocated before Plan::Create() has accepted the call.
#include "torch/operators.h"

#include <utility>

#include "fusion_attention/dropout.h"
#include "torch/adapt.h"
#include "torch/threads.h"

namespace fusion_attention::torch_front_end {
namespace {

template <typename... Tensors>
void Return(StableIValue* stack, Tensors... tensors) {
  ((*stack++ = torch::stable::detail::from<Tensor>(std::move(tensors))), ...);
}

}  // namespace

void Forward(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const Arguments arguments = input.TakeArguments();
  const auto seed = input.Take<OptionalTensor>();
  const auto offset = input.Take<OptionalTensor>();

  const Plan plan = PlanFor(arguments, nullptr);
  const Problem& problem = plan.problem();
  const BoundInputs bound = Bind(problem, arguments, seed, offset);
  Tensor out = Allocate(OutShape(problem), problem.dtype, arguments.query);
  Tensor softmax_max = Allocate(StatisticsShape(problem), DType::kFloat32, arguments.query);
  Tensor softmax_sum = Allocate(StatisticsShape(problem), DType::kFloat32, arguments.query);
  TorchThreads threads;
  RaiseUnlessOk(fusion_attention::Forward(
      plan,
      {.inputs = bound.inputs,
       .out = MutableView(problem, out, problem.value_dim),
       .softmax_max = static_cast<float*>(softmax_max.mutable_data_ptr()),
       .softmax_sum = static_cast<float*>(softmax_sum.mutable_data_ptr())},
      threads));
  Return(stack, std::move(out), std::move(softmax_max), std::move(softmax_sum));
}

void Backward(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const Arguments arguments = input.TakeArguments();
  GradTensors grad;
  grad.dy = input.Take<Tensor>();
  grad.softmax_max = input.Take<Tensor>();
  grad.softmax_sum = input.Take<Tensor>();
  grad.attention_in = input.Take<Tensor>();
  grad.numels = input.Take<int64_t>();
  const auto seed = input.Take<OptionalTensor>();
  const auto offset = input.Take<OptionalTensor>();
  const bool wants_dpse = input.Take<bool>() && arguments.pse;
  const bool wants_dsink = input.Take<bool>() && arguments.sink;

  const Plan plan = PlanFor(arguments, &grad);
  const Problem& problem = plan.problem();
  const BoundInputs bound = Bind(problem, arguments, seed, offset);
  const OptionalTensor softmax_max = Contiguous(grad.softmax_max);
  const OptionalTensor softmax_sum = Contiguous(grad.softmax_sum);
  const Tensor& query = arguments.query;
  Tensor dq = Allocate(ShapeOf(query), problem.dtype, query);
  Tensor dk = Allocate(ShapeOf(arguments.key), problem.dtype, query);
  Tensor dv = Allocate(ShapeOf(arguments.value), problem.dtype, query);
  // What is not there or not wanted has no elements.
  const auto allocate_if = [&](bool wanted, const OptionalTensor& like, DType dtype) {
    return wanted ? Allocate(ShapeOf(*like), dtype, query) : Allocate({0}, problem.dtype, query);
  };
  const bool slopes = problem.pse.kind == PseKind::kSlopes;
  Tensor dpse = allocate_if(wants_dpse, arguments.pse, slopes ? DType::kFloat32 : problem.dtype);
  Tensor dsink = allocate_if(wants_dsink, arguments.sink, DType::kFloat32);
  const bool ropes = problem.rope_dim > 0;
  Tensor dq_rope = allocate_if(ropes, arguments.query_rope, problem.dtype);
  Tensor dk_rope = allocate_if(ropes, arguments.key_rope, problem.dtype);
  TorchThreads threads;
  RaiseUnlessOk(fusion_attention::Backward(
      plan,
      {.inputs = bound.inputs,
       .dy = View(problem, *grad.dy, problem.value_dim),
       .attention_in = View(problem, *grad.attention_in, problem.value_dim),
       .softmax_max = static_cast<const float*>(softmax_max->const_data_ptr()),
       .softmax_sum = static_cast<const float*>(softmax_sum->const_data_ptr()),
       .dq = MutableView(problem, dq, problem.head_dim),
       .dk = MutableView(problem, dk, problem.head_dim),
       .dv = MutableView(problem, dv, problem.value_dim),
       .dq_rope = ropes ? MutableView(problem, dq_rope, problem.rope_dim) : TensorView{},
       .dk_rope = ropes ? MutableView(problem, dk_rope, problem.rope_dim) : TensorView{},
       .dpse = wants_dpse ? MutablePseView(problem, dpse) : ScoreView{},
       .dsink = wants_dsink ? static_cast<float*>(dsink.mutable_data_ptr()) : nullptr},
      threads));
  Return(stack, std::move(dq), std::move(dk), std::move(dv), std::move(dpse), std::move(dsink),
         std::move(dq_rope), std::move(dk_rope));
}

void Check(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const Arguments arguments = input.TakeArguments();
  const GradTensors grad = input.TakeGradTensors();
  const Plan plan = PlanFor(arguments, grad.dy ? &grad : nullptr);
  if (arguments.query.is_cpu()) Bind(plan.problem(), arguments, std::nullopt, std::nullopt);
  Return(stack, Allocate({0}, DType::kFloat32, arguments.query));
}

void DropoutMask(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const auto like = input.Take<Tensor>();
  const auto numels = input.Take<int64_t>();
  const auto drop_prob = input.Take<double>();
  const auto seed = input.Take<Tensor>();
  const auto offset = input.Take<Tensor>();

  Tensor mask = Allocate({DropoutMaskBytes(numels)}, DType::kUInt8, like);
  TorchThreads threads;
  fusion_attention::DropoutMask({.dtype = DTypeOf(like),
                                 .drop_prob = drop_prob,
                                 .seed = Word(seed),
                                 .offset = Word(offset),
                                 .numels = numels,
                                 .bytes = static_cast<uint8_t*>(mask.mutable_data_ptr())},
                                threads);
  Return(stack, std::move(mask));
}

}  // namespace fusion_attention::torch_front_end
