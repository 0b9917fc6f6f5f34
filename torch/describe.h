// Operators that tell what would run, and run nothing: for reports and pictures. In the
// dispatcher's boxed form, as those of operators.h.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fusion_attention::torch_front_end {

// Names, best first, separated by commas: the SIMD targets that this CPU can run, those that this
// build has, and the backends.
void Targets(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
void BuiltTargets(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
void Backends(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
// The target in use; raises where FUSION_ATTENTION_TARGET names one that is not there.
void Target(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
// (sequences, facts) of a call that passes the checks on shapes; reads no data.
// `sequences` is int64 [n, 10] on the CPU, a row for each run of equal sequences: index of the
// first, how many, q_begin, q_len, kv_begin, kv_len, dropout_begin, begin_offset, end_offset,
// prefix. `facts` holds lines of `name=value`.
void Describe(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);
// The half-open ranges of keys that the rows of one row of `sequences` see: int64 [q_len, 2].
void RowKeys(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);

}  // namespace fusion_attention::torch_front_end
