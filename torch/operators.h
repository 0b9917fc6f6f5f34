// The operators in the dispatcher's boxed form. library.cc registers them under the schemas that
// name their arguments.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string_view>

namespace fusion_attention::torch_front_end {

// (out, softmax_max, softmax_sum)
void Forward(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
// (dq, dk, dv, dpse, dsink, dq_rope, dk_rope); what was not asked for is an empty tensor
void Backward(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
// The same for a plain call of one layout, which states no more than a mask and lengths. Passing an
// argument takes 0.1 to 0.3 us of the 5 us of a small call, so it passes few. (out, softmax_max,
// softmax_sum, softmax_in, numels); softmax_in is an empty tensor
void ForwardPlain(std::string_view layout, StableIValue* stack);
// (dq, dk, dv)
void BackwardPlain(std::string_view layout, StableIValue* stack);
// Every check of forward and backward, reading no data but a few elements of a compressed mask, and
// none of that on meta tensors. Returns an empty tensor, so that a graph can order what comes after
// the checks behind them.
void Check(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
// The keep bits of a call on tensors of `like`'s dtype, as bytes.
void DropoutMask(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);

}  // namespace fusion_attention::torch_front_end
