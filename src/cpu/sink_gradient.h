// The gradient of sink: a sink takes exp(sink - max) / sum of a row's weight and gives it no value,
// so dsink = -sum over rows of that weight times delta = rowsum(dO * O).
#pragma once

#include <algorithm>
#include <cmath>

#include "fusion_attention/backward.h"
#include "src/cpu/job.h"
#include "src/cpu/scratch.h"
#include "src/cpu/work.h"

namespace fusion_attention::cpu {

template <typename T>
struct SinkScratch {
  SinkScratch(Arena& arena, const Job<T>& job)
      : out(arena.Take<T>(job.rows * job.value_ld)),
        dy(arena.Take<T>(job.rows * job.value_ld)),
        delta(arena.Take<T>(job.rows)) {}
  T* out;
  T* dy;
  T* delta;
};

template <typename T>
void RunSinkGradient(const Job<T>& job, const BackwardArgs& args, ParallelFor& threads,
                     int64_t workers) {
  const Problem& p = job.problem;
  Arena size;
  SinkScratch<T>(size, job);
  WorkerScratch scratch(std::min(workers, std::max<int64_t>(p.q_heads, 1)), size.bytes());
  RunPieces(threads, scratch, p.q_heads, [&](std::byte* own, int64_t head) {
    Arena arena(own);
    const SinkScratch<T> block(arena, job);
    const double sink = args.inputs.sink[head];
    double sum = 0;
    for (int64_t i = 0; i < p.sequences(); ++i) {
      const Sequence s = p.SequenceAt(i);
      if (!job.HasScores(s)) continue;
      for (int64_t first = 0; first < s.q_len; first += job.rows) {
        const int64_t rows = std::min(job.rows, s.q_len - first);
        job.k.pack(RowsAt(args.attention_in, s.batch, head, s.q_begin + first), rows, p.value_dim,
                   block.out, job.value_ld);
        job.k.pack(RowsAt(args.dy, s.batch, head, s.q_begin + first), rows, p.value_dim, block.dy,
                   job.value_ld);
        job.k.deltas(block.out, block.dy, job.value_ld, rows, p.value_dim, block.delta);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = p.StatisticsIndex(s, head, first + r);
          const double weight = std::exp(sink - args.softmax_max[at]) / args.softmax_sum[at];
          sum -= weight * static_cast<double>(block.delta[r]);
        }
      }
    }
    args.dsink[head] = static_cast<float>(sum);
  });
}

}  // namespace fusion_attention::cpu
