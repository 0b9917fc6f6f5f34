// Rules about query_rope and key_rope, further channels of query and key that only the scores read.
// They are the device's own, but that it takes bfloat16 alone, and no D that it would have to pad.
// Everything below validation works with any other combination too. Fills in the problem's
// rope_dim.
#include <utility>

#include "src/problem/validate.h"

namespace fusion_attention {
namespace {

// Shape and dtype, in layout TND.
Status CheckRopeTensors(const Call& call, Draft& draft) {
  const auto fits = [](const TensorSpec& rope, const TensorSpec& whole) {
    return rope.shape.size() == whole.shape.size() && rope.shape[0] == whole.shape[0] &&
           rope.shape[1] == whole.shape[1];
  };
  for (const auto& [name, rope] :
       {std::pair("query_rope", &*call.query_rope), std::pair("key_rope", &*call.key_rope)}) {
    if (rope->dtype == call.query.dtype) continue;
    return Broken(name, "to have the dtype of query",
                  {ShowDType(name, *rope), ShowDType("query", call.query)},
                  "Ropes are further channels of query and key.");
  }
  if (!fits(*call.query_rope, call.query)) {
    return Broken("query_rope", "to have T and N of query",
                  {ShowShape("query_rope", *call.query_rope), ShowShape("query", call.query)},
                  "Only D may differ.");
  }
  if (!fits(*call.key_rope, call.key)) {
    return Broken("key_rope", "to have T and N of key",
                  {ShowShape("key_rope", *call.key_rope), ShowShape("key", call.key)},
                  "Only D may differ.");
  }
  const int64_t rope_dim = call.query_rope->shape.back();
  if (rope_dim < 1 || rope_dim > draft.problem.head_dim) {
    return Broken("query_rope", "to have D in [1, D of query]",
                  {ShowShape("query_rope", *call.query_rope), ShowShape("query", call.query)},
                  "Leave ropes out where they have no channels.");
  }
  if (call.key_rope->shape.back() != rope_dim) {
    return Broken(
        "key_rope", "to have D of query_rope",
        {ShowShape("key_rope", *call.key_rope), ShowShape("query_rope", *call.query_rope)},
        "The two are multiplied with each other.");
  }
  draft.problem.rope_dim = rope_dim;
  return Status();
}

// What the device does not combine with ropes.
Status CheckRopeOptions(const Call& call, const Draft& draft) {
  if (draft.problem.mask.full) {
    return Broken("atten_mask", "to be given with query_rope and key_rope", {"atten_mask=None"},
                  "Without a mask, pass one of zeros with sparse_mode 1.");
  }
  if (call.sparse_mode == 6) {
    return Broken("sparse_mode", "to be other than 6 with query_rope and key_rope",
                  {ShowInt("sparse_mode", call.sparse_mode)}, "Pass a full mask with mode 1.");
  }
  if (IsGiven(call.pse)) {
    return Broken("pse", "to be None with query_rope and key_rope", {ShowShape("pse", *call.pse)},
                  "Concatenate ropes to query and key to combine them with a bias.");
  }
  if (call.dropout_mask) {
    return Broken("dropout_mask", "to be None with query_rope and key_rope",
                  {ShowShape("dropout_mask", *call.dropout_mask)},
                  "Concatenate ropes to query and key to combine them with dropout.");
  }
  if (draft.problem.dropout != DropoutKind::kNone) {
    return Broken("keep_prob", "to be 1 with query_rope and key_rope",
                  {ShowReal("keep_prob", call.keep_prob)},
                  "Concatenate ropes to query and key to combine them with dropout.");
  }
  return Status();
}

}  // namespace

Status CheckRopes(const Call& call, Draft& draft) {
  const bool has_query = IsGiven(call.query_rope), has_key = IsGiven(call.key_rope);
  if (!has_query && !has_key) return Status();
  if (has_query != has_key) {
    const char* const missing = has_query ? "key_rope" : "query_rope";
    return Broken(missing, "to be given together with the other rope",
                  {std::string(missing) + "=None"}, "The two are multiplied with each other.");
  }
  if (!draft.packed()) {
    return Broken(
        "query_rope", "to be None in layouts other than TND",
        {ShowShape("query_rope", *call.query_rope), ShowText("input_layout", call.input_layout)},
        "Concatenate query_rope to query and key_rope to key instead.");
  }
  if (Status status = CheckRopeTensors(call, draft); !status.ok()) return status;
  return CheckRopeOptions(call, draft);
}

}  // namespace fusion_attention
