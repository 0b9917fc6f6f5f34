// The table of rejections: a valid call with one thing wrong, and the rule that must be named. A
// row for every rule.
#pragma once

#include <string>
#include <vector>

#include "fusion_attention/status.h"
#include "tests/cc/problem/calls.h"

namespace fusion_attention {

struct Reject {
  const char* name;
  Call (*base)();
  void (*change)(Call&);
  std::string expected;  // "<param> <rule>, but got <value>" from its start on
  StatusCode code = StatusCode::kInvalidArgument;
};

// In the order of the stages of Validate().
std::vector<Reject> OptionAndTensorRejects();
std::vector<Reject> MaskRejects();
std::vector<Reject> PseRejects();
std::vector<Reject> InputRejects();

}  // namespace fusion_attention
