#include "src/cpu/work.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

WorkerScratch::WorkerScratch(int64_t workers, int64_t bytes)
    : stride_((bytes / Arena::kAlignment + 1) * Arena::kAlignment),
      cleared_(static_cast<size_t>(workers), 0),
      buffer_(AllocateBuffer(workers * stride_)) {}

std::byte* WorkerScratch::Of(int64_t worker) {
  std::byte* slice = buffer_.get() + worker * stride_;
  char& cleared = cleared_[static_cast<size_t>(worker)];
  if (!cleared) std::memset(slice, 0, static_cast<size_t>(stride_));
  cleared = 1;
  return slice;
}

void RunPieces(ParallelFor& threads, WorkerScratch& scratch, int64_t pieces,
               const std::function<void(std::byte*, int64_t)>& piece) {
  if (pieces <= 0) return;
  const int64_t workers = std::min(pieces, scratch.workers());
  // Pieces are taken in runs when there are very many of them, so that the counter is not what the
  // workers wait for.
  const int64_t run = std::clamp<int64_t>(pieces / (workers * 64), 1, 256);
  std::atomic<int64_t> next{0};
  const auto work = [&](int worker) {
    const DefaultFloatEnvironment environment;
    std::byte* own = scratch.Of(worker);
    for (;;) {
      const int64_t begin = next.fetch_add(run, std::memory_order_relaxed);
      if (begin >= pieces) return;
      for (int64_t i = begin; i < std::min(begin + run, pieces); ++i) piece(own, i);
    }
  };
  if (workers == 1) {
    work(0);
  } else {
    threads.Run(static_cast<int>(workers), work);
  }
}

}  // namespace fusion_attention::cpu
