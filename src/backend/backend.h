// Backend: what an implementation of the operator must offer. docs/adding_a_backend.md walks
// through it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "fusion_attention/backward.h"
#include "fusion_attention/forward.h"

namespace fusion_attention {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view Name() const = 0;
  // Empty when the backend can run the problem; otherwise every reason why not, each a sentence for
  // the user.
  virtual std::vector<std::string> UnsupportedReasons(const Problem& problem) const = 0;
  // Why this process cannot run the backend, although the machine could; asked when a plan is made.
  virtual Status Ready() const { return Status(); }
  virtual Status Forward(const Problem& problem, const ForwardArgs& args,
                         ParallelFor& threads) const = 0;
  virtual Status Backward(const Problem& problem, const BackwardArgs& args,
                          ParallelFor& threads) const = 0;
};

// Each backend is one immutable object. registry.cc lists them in order of preference.
const Backend& CpuBackend();
const Backend& ReferenceBackend();

}  // namespace fusion_attention
