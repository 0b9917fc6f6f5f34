// Rules about the optional tensors pse, sink and dropout_mask, and about what the gradient entry
// takes besides.
#include <algorithm>
#include <utility>

#include "src/problem/shapes.h"
#include "src/problem/validate.h"

namespace fusion_attention {
namespace {

constexpr int64_t kCompressedPseRows = 1024;

// Whether row i sees exactly the keys up to i, given that Sq == Skv.
bool IsCausal(const Draft& draft) {
  const MaskSpec& mask = draft.problem.mask;
  if (mask.full) return false;
  if (mask.sparse_mode == 2 || mask.sparse_mode == 3) return true;
  // The device knows a causal band by its tokens; in dense layouts only that of mode 0.
  const bool has_tokens = mask.sparse_mode == 0 || (mask.sparse_mode == 4 && draft.packed());
  return has_tokens && mask.pre_tockens >= draft.longest_q && mask.next_tockens == 0;
}

// What a compressed pse needs: it holds the last 1024 rows of a bias that depends on i - j alone.
Status CheckCompressedPse(const Call& call, Draft& draft) {
  const Problem& problem = draft.problem;
  const int64_t distinct = draft.packed() ? problem.batch : std::min<int64_t>(problem.batch, 1);
  for (int64_t index = 0; index < distinct; ++index) {
    const Sequence sequence = problem.SequenceAt(index);
    if (sequence.q_len == sequence.kv_len) continue;
    return Broken(
        "pse", "of 1024 rows to come with Sq == Skv",
        {ShowShape("pse", *call.pse), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
        "It holds the last 1024 rows of a square bias; pass [B, N, Sq, Skv] instead.");
  }
  if (!IsCausal(draft)) {
    return Broken("pse", "of 1024 rows to come with a causal atten_mask",
                  {problem.mask.full ? "atten_mask=None" : ShowInt("sparse_mode", call.sparse_mode),
                   ShowPre(call), ShowNext(call), ShowShape("pse", *call.pse)},
                  "Causal is sparse_mode 2, 3, or 0 (TND: or 4) with pre_tockens >= Sq and "
                  "next_tockens = 0.");
  }
  return Status();
}

}  // namespace

Status CheckPse(const Call& call, Draft& draft) {
  if (!IsGiven(call.pse)) return Status();
  Problem& problem = draft.problem;
  const Shape& shape = call.pse->shape;
  if (problem.mask.sparse_mode >= 7) {
    return Broken("pse", "to be None in sparse_mode 7 and 8",
                  {ShowShape("pse", *call.pse), ShowInt("sparse_mode", call.sparse_mode)},
                  "Cut sequences cannot be combined with a bias.");
  }
  for (const Sequence& sequence : problem.packed) {
    if (sequence.q_len > 0 && sequence.kv_len > 0) continue;
    return Broken(
        "pse", "to be None when a sequence of layout TND is empty",
        {ShowShape("pse", *call.pse), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
        "Leave empty sequences out of actual_seq_qlen and actual_seq_kvlen.");
  }
  if (shape.size() != 4 || (shape[0] != 1 && shape[0] != draft.given_sequences) ||
      shape[1] != call.head_num) {
    return Broken("pse", "to have 4 dimensions that start with [1, N] or [B, N]",
                  {ShowShape("pse", *call.pse), ShowInt("B", draft.given_sequences),
                   ShowInt("N", call.head_num)},
                  "Use [B, N, Sq, Skv], [1, N, Sq, Skv], [B, N, 1, Skv] or the compressed [B, N, "
                  "1024, Skv].");
  }
  problem.pse = {.kind = PseKind::kDense, .batch = shape[0], .rows = shape[2], .keys = shape[3]};
  if (draft.packed()) {
    if (shape[2] != kCompressedPseRows || shape[3] != draft.longest_kv) {
      return Broken(
          "pse", "to end with [1024, max Skv] in layout TND",
          {ShowShape("pse", *call.pse), ShowInt("max Skv", draft.longest_kv)},
          "Packed sequences take the compressed form only: the last 1024 rows of the bias.");
    }
    problem.pse.kind = PseKind::kCompressed;
    return CheckCompressedPse(call, draft);
  }
  const bool compressed = shape[2] == kCompressedPseRows && problem.q_len > kCompressedPseRows;
  if (shape[3] != problem.kv_len || (shape[2] != problem.q_len && shape[2] != 1 && !compressed)) {
    return Broken(
        "pse", "to end with [Sq, Skv], [1, Skv], or [1024, Skv] when Sq > 1024",
        {ShowShape("pse", *call.pse), ShowInt("Sq", problem.q_len), ShowInt("Skv", problem.kv_len)},
        "pse is added to the scores before scale.");
  }
  if (!compressed) return Status();
  problem.pse.kind = PseKind::kCompressed;
  return CheckCompressedPse(call, draft);
}

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
