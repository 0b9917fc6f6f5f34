// The gradient of sink: a sink takes exp(sink - lse) of a row's weight and gives it no value, so
// dsink = -sum over rows of that weight times delta = rowsum(dO * O).
#pragma once

#include <cmath>

#include "fusion_attention/backward.h"
#include "src/cpu/job.h"
#include "src/cpu/scratch.h"
#include "src/cpu/work.h"

namespace fusion_attention::cpu {

template <typename T>
Status RunSinkGradient(const Job<T>& job, const BackwardArgs& args, ParallelFor& threads,
                       int64_t workers) {
  const Problem& p = job.problem;
  const auto lay_out = [&job](Arena& arena, T*& out, T*& dy, T*& delta) {
    out = arena.Take<T>(job.rows * job.value_ld);
    dy = arena.Take<T>(job.rows * job.value_ld);
    delta = arena.Take<T>(job.rows);
  };
  Arena size;
  T *out, *dy, *delta;
  lay_out(size, out, dy, delta);
  WorkerScratch scratch(std::min(workers, std::max<int64_t>(p.q_heads, 1)), size.bytes());
  if (scratch.workers() == 0) return OutOfMemory(scratch.bytes());
  RunPieces(threads, scratch, p.q_heads, [&](std::byte* own, int64_t head) {
    Arena arena(own);
    T *out, *dy, *delta;
    lay_out(arena, out, dy, delta);
    double sum = 0;
    for (int64_t i = 0; i < p.sequences(); ++i) {
      const Sequence s = p.SequenceAt(i);
      if (s.kv_len == 0 || p.head_dim == 0) continue;
      for (int64_t first = 0; first < s.q_len; first += job.rows) {
        const int64_t rows = std::min(job.rows, s.q_len - first);
        job.k.pack(RowsAt(args.attention_in, s.batch, head, s.q_begin + first), rows, p.value_dim,
                   out, job.value_ld);
        job.k.pack(RowsAt(args.dy, s.batch, head, s.q_begin + first), rows, p.value_dim, dy,
                   job.value_ld);
        job.k.deltas(out, dy, job.value_ld, rows, p.value_dim, delta);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = p.StatisticsIndex(s, head, first + r);
          const double lse =
              args.softmax_max[at] + std::log(static_cast<double>(args.softmax_sum[at]));
          sum -= std::exp(static_cast<double>(args.inputs.sink[head]) - lse) *
                 static_cast<double>(delta[r]);
        }
      }
    }
    args.dsink[head] = static_cast<float>(sum);
  });
  return Status();
}

}  // namespace fusion_attention::cpu
