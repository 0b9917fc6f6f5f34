// A random legal call of the operator, and everything that it reads. Knows the operator's rules
// well enough to break none of them, so a call that Validate() refuses is a finding.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fusion_attention/call.h"
#include "fusion_attention/problem.h"
#include "tests/cc/fuzz/random.h"
#include "tests/cc/fuzz/tensor.h"

namespace fusion_attention::fuzz {

// A legal call without a gradient part. The same seed gives the same call.
Call MakeCall(uint64_t seed);
// Adds the gradient part that fits.
Call WithGradient(Call call, const Problem& problem);
// Changes a legal call into something that no caller should pass; it may stay legal by chance.
Call MakeHostile(Call call, Random& random);

// What a problem reads, as logical values.
struct Operands {
  Operand query, key, value, query_rope, key_rope, pse, mask, dy;
  std::vector<float> sink;
  std::vector<uint8_t> dropout_mask;
  uint64_t philox_seed = 0;
  uint64_t philox_offset = 0;
};
Operands MakeOperands(const Problem& problem, uint64_t seed);

// One line for a person: what kind of call it is.
std::string Describe(const Call& call);

}  // namespace fusion_attention::fuzz
