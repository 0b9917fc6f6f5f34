// What the stages of Validate() share. validate.cc says which file states which rules.
// Known to src/problem/validate*.cc only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fusion_attention/problem.h"
#include "src/problem/message.h"

namespace fusion_attention {

using Shape = std::vector<int64_t>;

// The problem under construction and what the stages hand on besides.
struct Draft {
  Problem problem;
  // B as the caller counts it, trailing unused sequences of TND included.
  int64_t given_sequences = 0;
  int64_t longest_q = 0;  // over the sequences
  int64_t longest_kv = 0;

  bool packed() const { return problem.layout == Layout::kTND; }
};

// A tensor without dimensions stands for "not given", as on the device.
inline bool IsGiven(const std::optional<TensorSpec>& tensor) {
  return tensor && !tensor->shape.empty();
}

// Whether pse holds one slope per head instead of a bias.
inline bool TakesSlopes(const Call& call) { return call.pse_type >= 2; }

// The stages, in order. Each states the rules of one topic, and may rely on those before it.
Status CheckOptions(const Call& call, Draft& draft);      // validate.cc
Status CheckDTypes(const Call& call, Draft& draft);       // validate.cc
Status CheckShapes(const Call& call, Draft& draft);       // validate_shapes.cc
Status CheckSequences(const Call& call, Draft& draft);    // validate_shapes.cc
Status CheckMask(const Call& call, Draft& draft);         // validate_mask.cc
Status CheckPse(const Call& call, Draft& draft);          // validate_pse.cc
Status CheckSink(const Call& call, Draft& draft);         // validate_inputs.cc
Status CheckDropoutMask(const Call& call, Draft& draft);  // validate_inputs.cc
Status CheckRopes(const Call& call, Draft& draft);        // validate_ropes.cc
Status CheckGradient(const Call& call, Draft& draft);     // validate_inputs.cc

// A sequence, as texts show it.
inline std::string ShowSq(const Sequence& sequence) { return ShowInt("Sq", sequence.q_len); }
inline std::string ShowSkv(const Sequence& sequence) { return ShowInt("Skv", sequence.kv_len); }
inline std::string ShowIndex(const Sequence& sequence) {
  return ShowInt("sequence", sequence.batch);
}
inline std::string ShowPre(const Call& call) { return ShowInt("pre_tockens", call.pre_tockens); }
inline std::string ShowNext(const Call& call) { return ShowInt("next_tockens", call.next_tockens); }

}  // namespace fusion_attention
