// The two passes of the CPU backend, and what they have in common.
#pragma once

#include "fusion_attention/backward.h"
#include "fusion_attention/forward.h"
#include "src/cpu/targets.h"

namespace fusion_attention::cpu {

void RunForward(const Problem& problem, const ForwardArgs& args, ParallelFor& threads,
                const Kernels& kernels);
void RunBackward(const Problem& problem, const BackwardArgs& args, ParallelFor& threads,
                 const Kernels& kernels);

// How many of the lent threads are worth waking.
int64_t WorkersFor(const Problem& problem, const ParallelFor& threads);

// TND: tokens [0, q) and [0, kv) belong to a sequence, later ones to nobody.
struct UsedTokens {
  int64_t q;
  int64_t kv;
};
UsedTokens UsedTokensOf(const Problem& problem);

// view(0, head, token, channel) = 0 for tokens [begin, end).
void ZeroTokens(const TensorView& view, int64_t heads, int64_t begin, int64_t end, int64_t dim);

}  // namespace fusion_attention::cpu
