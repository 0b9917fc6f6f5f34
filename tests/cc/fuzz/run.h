// One run of a backend on one way to lay out the operands.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "fusion_attention/backward.h"
#include "fusion_attention/forward.h"
#include "tests/cc/fuzz/case.h"

namespace fusion_attention::fuzz {

// As many threads as it promises, all of them running at once.
class ThreadPerCall final : public ParallelFor {
 public:
  explicit ThreadPerCall(int workers) : workers_(workers) {}
  int Workers() const override { return workers_; }
  void Run(int workers, const std::function<void(int)>& work) override {
    std::vector<std::thread> threads;
    for (int w = 1; w < workers; ++w) threads.emplace_back(work, w);
    if (workers > 0) work(0);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int workers_;
};

enum class Memory { kContiguous, kScattered };

// What must not change a single bit of the results.
struct Variant {
  Memory memory = Memory::kContiguous;
  uint64_t memory_seed = 0;
  unsigned char fill =
      0xFF;  // what unseen elements, gaps and outputs hold before; 0xFF is NaN in every dtype
  int workers = 1;
  bool wants_dpse = true;
  bool wants_dsink = true;
};

// The bytes of every output in logical order; empty if there is none.
struct Results {
  std::vector<char> out, max, sum, dq, dk, dv, dq_rope, dk_rope, dpse, dsink;
  // Empty, or what went wrong besides values: a refusal, a byte outside an output that changed.
  std::string trouble;
};

// The operands of one run in memory. The views live as long as this.
class Bench {
 public:
  Bench(const Problem& problem, const Operands& operands, const Variant& variant);

  const Inputs& inputs() const { return inputs_; }
  ConstTensorView dy() const { return dy_.ConstView(); }

 private:
  Random random_;
  Stored query_, key_, value_, query_rope_, key_rope_, dy_, pse_, mask_;
  Guarded sink_, dropout_mask_;
  Inputs inputs_;
};

// Runs both directions; backward reads the forward results of this run.
Results RunBackend(const Plan& forward, const Plan& backward, const Operands& operands,
                   const Variant& variant);
// Runs the reference. Its backward pass reads `given` out, max and sum.
Results RunReferenceForward(const Problem& problem, const Inputs& inputs);
Results RunReferenceBackward(const Problem& problem, const Inputs& inputs, ConstTensorView dy,
                             const Results& given);

// Extents of the outputs.
Four OutExtent(const Problem& problem);    // [batch, q_heads, q_len, value_dim]
Four QueryExtent(const Problem& problem);  // and so on
Four KeyExtent(const Problem& problem);
Four ValueExtent(const Problem& problem);
Four QueryRopeExtent(const Problem& problem);
Four KeyRopeExtent(const Problem& problem);
int64_t StatisticsSize(const Problem& problem);  // in floats
int64_t PseSize(const Problem& problem);         // in elements
DType PseDType(const Problem& problem);

}  // namespace fusion_attention::fuzz
