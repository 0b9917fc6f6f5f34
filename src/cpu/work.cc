#include "src/cpu/work.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

WorkerScratch::WorkerScratch(int64_t workers, int64_t bytes)
    : workers_(workers),
      stride_((bytes / Arena::kAlignment + 1) * Arena::kAlignment),
      buffer_(AllocateBuffer(workers * stride_)) {
#ifdef __SANITIZE_ADDRESS__
  std::memset(buffer_.get(), 0xFF, static_cast<size_t>(workers * stride_));
#endif
}

void RunPieces(ParallelFor& threads, WorkerScratch& scratch, int64_t pieces,
               const std::function<void(std::byte*, int64_t)>& piece) {
  if (pieces <= 0) return;
  const int64_t workers = std::min(pieces, scratch.workers());
  std::atomic<int64_t> next{0};
  const auto work = [&](int worker) {
    const DefaultFloatEnvironment environment;
    std::byte* own = scratch.Of(worker);
    // One at a time, because a piece may wait for the one before it: columns of a backward pass.
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= pieces) return;
      piece(own, i);
    }
  };
  if (workers == 1) {
    work(0);
  } else {
    threads.Run(static_cast<int>(workers), work);
  }
}

}  // namespace fusion_attention::cpu
