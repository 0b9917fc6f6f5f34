// Plan: a validated problem together with the backend that will run it. Creating one is the only
// step that can refuse a request; a plan can be kept and used again for any tensors of the same
// shapes.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fusion_attention/call.h"
#include "fusion_attention/problem.h"
#include "fusion_attention/status.h"

namespace fusion_attention {

class Backend;

struct PlanOptions {
  std::string backend;  // "" takes the first that supports the problem; a name asks for that one
                        // and never falls back
};

class Plan {
 public:
  static StatusOr<Plan> Create(const Call& call, const PlanOptions& options = {});

  const Problem& problem() const { return problem_; }
  const Backend& backend() const { return *backend_; }
  std::string_view backend_name() const;
  // The share of the weights that generated dropout drops: 1 - keep_prob, quantised by the dtype of
  // the random numbers. 0 without generated dropout, 1 where every weight is dropped.
  double DropRate() const;

 private:
  Plan(Problem problem, const Backend* backend) : problem_(std::move(problem)), backend_(backend) {}
  Problem problem_;
  const Backend* backend_;
};

// Names of all backends in order of preference: "cpu", "reference".
std::vector<std::string> BackendNames();

// SIMD targets that this build has and this CPU can run, best first ("avx512_bf16", "avx512",
// "avx2", "sse4", "neon"), and the one in use: the first, or the one that the environment variable
// FUSION_ATTENTION_TARGET names.
std::vector<std::string> TargetNames();
std::vector<std::string> BuiltTargetNames();  // those this build has, whatever the CPU
StatusOr<std::string> SelectedTarget();

}  // namespace fusion_attention
