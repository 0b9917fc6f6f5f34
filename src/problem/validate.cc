// Validate(): every rule of the operator, and the only code that rejects a call. The rules stand in
// the files validate*.cc, one topic each, in the order of kStages below; docs/errors.md lists them
// in the same order. The first broken rule is what the caller hears. A new rule is one
// `Broken(...)` in the stage that it belongs to, a row in docs/errors.md and a row in
// tests/cc/problem/reject_rows_*.cc; tests fail if one of the three is missing. No rule reads
// tensor data (validate_mask_content.cc apart), and all arithmetic saturates or is bounded by
// earlier rules.
#include "src/problem/validate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "src/problem/shapes.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMaxHeads = 256;
constexpr double kKeepProbTolerance = 1e-9;  // the device's own

bool IsFloat(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 || dtype == DType::kFloat32 ||
         dtype == DType::kFloat64;
}

// The device reports fully masked rows in one of two ways, and chooses by the arguments alone.
bool IsInvalidRowMode(const Call& call, const Problem& problem) {
  if (call.inner_precise == 2) return true;
  if (problem.layout == Layout::kTND || problem.mask.full) return false;
  const MaskSpec& mask = problem.mask;
  const bool more_rows = problem.q_len > problem.kv_len;
  switch (mask.sparse_mode) {
    case 0:
      return mask.next_tockens < 0 || mask.pre_tockens + problem.kv_len < problem.q_len;
    case 3:
      return more_rows;
    case 4:
      return mask.pre_tockens < 0 || mask.next_tockens + problem.kv_len < problem.q_len;
    case 5:
    case 6:
      return more_rows && std::count(mask.prefix.begin(), mask.prefix.end(), 0) > 0;
    default:
      return false;
  }
}

constexpr Status (*kStages[])(const Call&, Draft&) = {
    CheckOptions, CheckDTypes, CheckShapes,      CheckSequences, CheckMask,
    CheckPse,     CheckSink,   CheckDropoutMask, CheckRopes,     CheckGradient,
};

}  // namespace

StatusOr<Problem> Validate(const Call& call) {
  Draft draft;
  for (const auto stage : kStages) {
    if (Status status = stage(call, draft); !status.ok()) return status;
  }
  draft.problem.invalid_row_mode = IsInvalidRowMode(call, draft.problem);
  return std::move(draft.problem);
}

Status CheckOptions(const Call& call, Draft& draft) {
  Problem& problem = draft.problem;
  const std::optional<Layout> layout = ParseLayout(call.input_layout);
  if (!layout) {
    return Broken("input_layout", "to be one of BSH, SBH, BNSD, BSND, TND",
                  {ShowText("input_layout", call.input_layout)}, "Letter case does not matter.");
  }
  problem.layout = *layout;

  if (call.head_num < 1 || call.head_num > kMaxHeads) {
    return Broken("head_num", "to be in [1, 256]", {ShowInt("head_num", call.head_num)},
                  "It counts the heads of query.");
  }
  problem.q_heads = call.head_num;

  if (call.padding_mask) {
    return Unsupported("padding_mask", "to be None",
                       {ShowShape("padding_mask", *call.padding_mask)},
                       "The operator does not support it; mask padding with atten_mask.");
  }
  if (!(std::abs(call.scale) <= std::numeric_limits<float>::max())) {
    return Broken("scale", "to be finite in float32", {ShowReal("scale", call.scale)},
                  "The usual value is 1 / sqrt(head_dim).");
  }
  problem.scale = call.scale;

  if (!(call.keep_prob > 0.0 && call.keep_prob <= 1.0)) {
    return Broken("keep_prob", "to be in (0, 1]", {ShowReal("keep_prob", call.keep_prob)},
                  "It is the probability to keep a weight; 1 means no dropout.");
  }
  // 1 / keep_prob stays finite in float32: whatever is below the tolerance drops everything and is
  // never divided by.
  problem.keep_prob = call.keep_prob;
  if (call.keep_prob < kKeepProbTolerance) {
    problem.dropout = DropoutKind::kDropAll;
  } else if (call.dropout_mask) {
    problem.dropout = DropoutKind::kExternal;  // also with keep_prob 1: a mask that is given drops
  } else if (std::abs(call.keep_prob - 1.0) < kKeepProbTolerance) {
    problem.keep_prob = 1.0;
    problem.dropout = DropoutKind::kNone;
  } else {
    problem.dropout = DropoutKind::kPhilox;
  }

  if (call.pse_type < 0 || call.pse_type > 3) {
    return Broken("pse_type", "to be in [0, 3]", {ShowInt("pse_type", call.pse_type)},
                  "0 adds pse after scaling, 1 before it; 2 and 3 take slopes.");
  }

  const int64_t mode = call.sparse_mode;
  if (draft.packed() && (mode < 0 || mode > 8 || mode == 5)) {
    return Broken("sparse_mode", "to be one of 0, 1, 2, 3, 4, 6, 7, 8 in layout TND",
                  {ShowInt("sparse_mode", mode)},
                  "Mode 5 needs another layout; mode 6 is its compressed form.");
  }
  if (!draft.packed() && (mode < 0 || mode > 6)) {
    return Broken("sparse_mode", "to be in [0, 6] in layouts other than TND",
                  {ShowInt("sparse_mode", mode), ShowText("input_layout", call.input_layout)},
                  "Modes 7 and 8 need layout TND.");
  }
  problem.mask.sparse_mode = mode;

  if (!call.softmax_layout.empty() && call.softmax_layout != "TND") {
    return Broken("softmax_layout", "to be '' or 'TND'",
                  {ShowText("softmax_layout", call.softmax_layout)}, "Letter case matters here.");
  }
  problem.softmax_layout_tnd = call.softmax_layout == "TND";
  if (problem.softmax_layout_tnd && !draft.packed()) {
    return Broken("softmax_layout", "to be '' in layouts other than TND",
                  {ShowText("softmax_layout", call.softmax_layout),
                   ShowText("input_layout", call.input_layout)},
                  "It chooses the memory order of packed statistics.");
  }
  return Status();
}

Status CheckDTypes(const Call& call, Draft& draft) {
  if (!IsFloat(call.query.dtype)) {
    return Broken("query", "to have dtype float16, bfloat16 or float32 (or float64)",
                  {ShowDType("query", call.query)},
                  "Convert query, key and value with .to(dtype).");
  }
  draft.problem.dtype = call.query.dtype;
  const auto same = [&call](const char* name, const TensorSpec& tensor) {
    if (tensor.dtype == call.query.dtype) return Status();
    return Broken(name, "to have the dtype of query",
                  {ShowDType(name, tensor), ShowDType("query", call.query)},
                  "query, key, value and pse (unless it holds slopes) share one dtype.");
  };
  if (Status status = same("key", call.key); !status.ok()) return status;
  if (Status status = same("value", call.value); !status.ok()) return status;
  if (!IsGiven(call.pse)) return Status();
  if (!TakesSlopes(call)) return same("pse", *call.pse);
  if (call.pse->dtype == DType::kFloat32) return Status();
  return Broken("pse", "to have dtype float32 with pse_type 2 and 3",
                {ShowDType("pse", *call.pse), ShowInt("pse_type", call.pse_type)},
                "It holds slopes, which have this dtype for every dtype of query.");
}

}  // namespace fusion_attention
