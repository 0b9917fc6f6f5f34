// The reference implementation: the operator's formulas in double, one row at a time, to be read
// and to compare with. Needs O(q_len + kv_len) memory per head; knows no tiles, no SIMD and no
// threads.
#pragma once

#include "fusion_attention/backward.h"
#include "fusion_attention/forward.h"

namespace fusion_attention::reference {

void Forward(const Problem& problem, const ForwardArgs& args);
void Backward(const Problem& problem, const BackwardArgs& args);

}  // namespace fusion_attention::reference
