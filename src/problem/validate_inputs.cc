// Rules about the optional tensors sink and dropout_mask, and about what the gradient entry takes
// besides.
#include <utility>

#include "src/problem/shapes.h"
#include "src/problem/validate.h"

namespace fusion_attention {
Status CheckSink(const Call& call, Draft& draft) {
  if (!call.sink) return Status();
  if (call.sink->dtype != DType::kFloat32) {
    return Broken("sink", "to have dtype float32", {ShowDType("sink", *call.sink)},
                  "It has this dtype for every dtype of query.");
  }
  if (call.sink->shape != Shape{call.head_num}) {
    return Broken("sink", "to have shape [N]",
                  {ShowShape("sink", *call.sink), ShowInt("N", call.head_num)},
                  "It holds one logit per query head.");
  }
  draft.problem.has_sink = true;
  return Status();
}

Status CheckDropoutMask(const Call& call, Draft& draft) {
  if (!call.dropout_mask) return Status();
  const TensorSpec& mask = *call.dropout_mask;
  if (mask.dtype != DType::kUInt8) {
    return Broken("dropout_mask", "to have dtype uint8", {ShowDType("dropout_mask", mask)},
                  "Each byte holds 8 keep bits, lowest bit first.");
  }
  bool negative = false;
  for (const int64_t size : mask.shape) negative |= size < 0;
  const int64_t bytes_needed = draft.problem.numels / 8 + (draft.problem.numels % 8 != 0);
  if (negative || SaturatingProduct(mask.shape) < bytes_needed) {
    return Broken("dropout_mask", "to have at least ceil(numels / 8) elements",
                  {ShowShape("dropout_mask", mask), ShowInt("numels", draft.problem.numels)},
                  "numels is N times the sum of Sq * Skv over all sequences.");
  }
  return Status();
}

Status CheckGradient(const Call& call, Draft& draft) {
  if (!call.grad) return Status();
  const GradCall& grad = *call.grad;
  const Problem& problem = draft.problem;
  const Shape out_shape = OutputShape(call, problem);
  for (const auto& [name, tensor] :
       {std::pair("dy", &grad.dy), std::pair("attention_in", &grad.attention_in)}) {
    if (tensor->dtype != problem.dtype) {
      return Broken(name, "to have the dtype of the forward output",
                    {ShowDType(name, *tensor), ShowDType("query", call.query)},
                    "It is the dtype of query.");
    }
    if (tensor->shape != out_shape) {
      return Broken(name, "to have the shape of the forward output",
                    {ShowShape(name, *tensor), ShowShape("attention_out", out_shape)},
                    "It is the shape of query with D of value.");
    }
  }
  const Shape statistics_shape = StatisticsShape(problem);
  for (const auto& [name, tensor] :
       {std::pair("softmax_max", &grad.softmax_max), std::pair("softmax_sum", &grad.softmax_sum)}) {
    if (tensor->dtype != DType::kFloat32) {
      return Broken(name, "to have dtype float32", {ShowDType(name, *tensor)},
                    "Pass it as the forward call returned it.");
    }
    if (tensor->shape != statistics_shape) {
      return Broken(name, "to have shape [B, N, Sq, 8], or [T, N, 8] in layout TND",
                    {ShowShape(name, *tensor), ShowShape("needed", statistics_shape)},
                    "Pass it as the forward call returned it.");
    }
  }
  const bool draws = problem.dropout != DropoutKind::kNone;
  if (draws && grad.numels.value_or(0) != 0 && *grad.numels != problem.numels) {
    return Broken("numels", "to be 0 or what the forward call returned",
                  {ShowInt("numels", *grad.numels), ShowInt("forward numels", problem.numels)},
                  "The dropout mask is the forward call's, element by element.");
  }
  return Status();
}

}  // namespace fusion_attention
