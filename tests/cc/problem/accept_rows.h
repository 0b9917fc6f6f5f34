// The table of acceptances: calls at the edge of what the rules allow, and what Validate() makes of
// them.
#pragma once

#include <vector>

#include "fusion_attention/problem.h"
#include "tests/cc/problem/calls.h"

namespace fusion_attention {

struct Accept {
  const char* name;
  Call (*base)();
  void (*change)(Call&);
  bool (*holds)(const Problem&);
};

std::vector<Accept> TensorAccepts();
std::vector<Accept> MaskAccepts();
std::vector<Accept> InputAccepts();

}  // namespace fusion_attention
