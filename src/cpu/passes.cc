#include "src/cpu/passes.h"

#include <algorithm>
#include <cstring>

namespace fusion_attention::cpu {

int64_t WorkersFor(const Problem& problem, const ParallelFor& threads) {
  // Waking a pool costs 1-12 us; a million multiply-adds take about 20 us on one core.
  const double work = static_cast<double>(problem.numels) *
                      static_cast<double>(problem.score_dim() + problem.value_dim);
  return work < 1e6 ? 1 : std::max(threads.Workers(), 1);
}

UsedTokens UsedTokensOf(const Problem& problem) {
  UsedTokens used{0, 0};
  for (const Sequence& s : problem.packed) {
    used.q = std::max(used.q, s.q_begin + s.q_len);
    used.kv = std::max(used.kv, s.kv_begin + s.kv_len);
  }
  return used;
}

void ZeroTokens(const TensorView& view, int64_t heads, int64_t begin, int64_t end, int64_t dim) {
  const auto size = static_cast<size_t>(SizeOf(view.dtype));
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t c = 0; c < dim; ++c) {
        const int64_t element =
            head * view.strides.head + token * view.strides.token + c * view.strides.channel;
        std::memset(static_cast<char*>(view.data) + element * static_cast<int64_t>(size), 0, size);
      }
    }
  }
}

}  // namespace fusion_attention::cpu
