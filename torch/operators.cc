// The operators: take the arguments, plan, allocate, run.
// Nothing is allocated before Plan::Create() has accepted the call.
#include "torch/operators.h"

#include <utility>
#include <vector>

#include "fusion_attention/dropout.h"
#include "torch/adapt.h"
#include "torch/threads.h"

namespace fusion_attention::torch_front_end {
namespace {

// The random words of generated dropout.
struct Words {
  OptionalTensor seed, offset;
};

struct Attention {
  OwnedTensor out, softmax_max, softmax_sum;
  DType dtype;
  int64_t numels;
};

Attention RunForward(const Arguments& arguments, const Words& words) {
  const std::shared_ptr<const Plan> plan = PlanFor(arguments, nullptr);
  const Problem& problem = plan->problem();
  const BoundInputs bound = Bind(problem, arguments, words.seed, words.offset);
  const std::vector<int64_t> statistics = StatisticsShape(problem);
  const AtenTensorHandle query = arguments.query.get();
  Attention attention{.out = Allocate(OutShape(problem), problem.dtype, query),
                      .softmax_max = Allocate(statistics, DType::kFloat32, query),
                      .softmax_sum = Allocate(statistics, DType::kFloat32, query),
                      .dtype = problem.dtype,
                      .numels = problem.numels};
  TorchThreads threads;
  RaiseUnlessOk(
      fusion_attention::Forward(*plan,
                                {.inputs = bound.inputs,
                                 .out = MutableView(problem, attention.out, problem.value_dim),
                                 .softmax_max = MutableFloats(attention.softmax_max),
                                 .softmax_sum = MutableFloats(attention.softmax_sum)},
                                threads));
  return attention;
}

// Which gradients are computed besides those of query, key, value and their ropes.
struct Wanted {
  bool dpse, dsink;
};

struct Gradients {
  OwnedTensor dq, dk, dv;
  OwnedTensor dpse, dsink, dq_rope, dk_rope;  // null where nobody asked
};

Gradients RunBackward(const Arguments& arguments, const GradTensors& grad, const Words& words,
                      const Wanted& wanted) {
  const std::shared_ptr<const Plan> plan = PlanFor(arguments, &grad);
  const Problem& problem = plan->problem();
  const BoundInputs bound = Bind(problem, arguments, words.seed, words.offset);
  const OptionalTensor softmax_max = Contiguous(grad.softmax_max);
  const OptionalTensor softmax_sum = Contiguous(grad.softmax_sum);
  const auto allocate_like = [&](AtenTensorHandle like, DType dtype) {
    return Allocate(ShapeOf(like), dtype, arguments.query.get());
  };
  Gradients gradients{.dq = allocate_like(arguments.query.get(), problem.dtype),
                      .dk = allocate_like(arguments.key.get(), problem.dtype),
                      .dv = allocate_like(arguments.value.get(), problem.dtype),
                      .dpse{},
                      .dsink{},
                      .dq_rope{},
                      .dk_rope{}};
  const bool slopes = problem.pse.kind == PseKind::kSlopes;
  if (wanted.dpse) {
    gradients.dpse = allocate_like(arguments.pse->get(), slopes ? DType::kFloat32 : problem.dtype);
  }
  if (wanted.dsink) gradients.dsink = allocate_like(arguments.sink->get(), DType::kFloat32);
  const bool ropes = problem.rope_dim > 0;
  if (ropes) {
    gradients.dq_rope = allocate_like(arguments.query_rope->get(), problem.dtype);
    gradients.dk_rope = allocate_like(arguments.key_rope->get(), problem.dtype);
  }
  TorchThreads threads;
  RaiseUnlessOk(fusion_attention::Backward(
      *plan,
      {.inputs = bound.inputs,
       .dy = View(problem, grad.dy->get(), problem.value_dim),
       .attention_in = View(problem, grad.attention_in->get(), problem.value_dim),
       .softmax_max = static_cast<const float*>(softmax_max->const_data_ptr()),
       .softmax_sum = static_cast<const float*>(softmax_sum->const_data_ptr()),
       .dq = MutableView(problem, gradients.dq, problem.head_dim),
       .dk = MutableView(problem, gradients.dk, problem.head_dim),
       .dv = MutableView(problem, gradients.dv, problem.value_dim),
       .dq_rope = ropes ? MutableView(problem, gradients.dq_rope, problem.rope_dim) : TensorView{},
       .dk_rope = ropes ? MutableView(problem, gradients.dk_rope, problem.rope_dim) : TensorView{},
       .dpse = gradients.dpse ? MutablePseView(problem, gradients.dpse) : ScoreView{},
       .dsink = gradients.dsink ? MutableFloats(gradients.dsink) : nullptr},
      threads));
  return gradients;
}

}  // namespace

void Forward(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const Arguments arguments = input.TakeArguments();
  const Words words{input.Take<OptionalTensor>(), input.Take<OptionalTensor>()};
  Attention attention = RunForward(arguments, words);
  Return(stack, std::move(attention.out), std::move(attention.softmax_max),
         std::move(attention.softmax_sum));
}

void ForwardPlain(std::string_view layout, StableIValue* stack) {
  const Arguments arguments = Stack(stack).TakePlainArguments(layout);
  Attention attention = RunForward(arguments, {});
  OwnedTensor softmax_in = Allocate({0}, attention.dtype, arguments.query.get());
  Return(stack, std::move(attention.out), std::move(attention.softmax_max),
         std::move(attention.softmax_sum), std::move(softmax_in));
  stack[4] = torch::stable::detail::from(attention.numels);
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
  const Words words{input.Take<OptionalTensor>(), input.Take<OptionalTensor>()};
  const bool wants_dpse = input.Take<bool>() && arguments.pse;
  const bool wants_dsink = input.Take<bool>() && arguments.sink;
  Gradients gradients = RunBackward(arguments, grad, words, {wants_dpse, wants_dsink});
  const auto or_empty = [&](OwnedTensor& gradient) {
    return gradient ? std::move(gradient)
                    : Allocate({0}, DTypeOf(arguments.query.get()), arguments.query.get());
  };
  Return(stack, std::move(gradients.dq), std::move(gradients.dk), std::move(gradients.dv),
         or_empty(gradients.dpse), or_empty(gradients.dsink), or_empty(gradients.dq_rope),
         or_empty(gradients.dk_rope));
}

void BackwardPlain(std::string_view layout, StableIValue* stack) {
  Stack input(stack);
  GradTensors grad;
  grad.dy = input.Take<Tensor>();
  grad.softmax_max = input.Take<Tensor>();
  grad.softmax_sum = input.Take<Tensor>();
  grad.attention_in = input.Take<Tensor>();
  const Arguments arguments = input.TakePlainArguments(layout);
  Gradients gradients = RunBackward(arguments, grad, {}, {false, false});
  Return(stack, std::move(gradients.dq), std::move(gradients.dk), std::move(gradients.dv));
}

void Check(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const Arguments arguments = input.TakeArguments();
  const GradTensors grad = input.TakeGradTensors();
  const std::shared_ptr<const Plan> plan = PlanFor(arguments, grad.dy ? &grad : nullptr);
  if (IsOnCpu(arguments.query.get())) Bind(plan->problem(), arguments, std::nullopt, std::nullopt);
  Return(stack, Allocate({0}, DType::kFloat32, arguments.query.get()));
}

void DropoutMask(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const auto like = input.Take<Tensor>();
  const auto numels = input.Take<int64_t>();
  const auto drop_prob = input.Take<double>();
  const auto seed = input.Take<Tensor>();
  const auto offset = input.Take<Tensor>();

  OwnedTensor mask = Allocate({DropoutMaskBytes(numels)}, DType::kUInt8, like.get());
  TorchThreads threads;
  fusion_attention::DropoutMask({.dtype = DTypeOf(like.get()),
                                 .drop_prob = drop_prob,
                                 .seed = Word(seed),
                                 .offset = Word(offset),
                                 .numels = numels,
                                 .bytes = MutableBytes(mask)},
                                threads);
  Return(stack, std::move(mask));
}

}  // namespace fusion_attention::torch_front_end
