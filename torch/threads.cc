// PyTorch's parallel_for as a ParallelFor.
#include "torch/threads.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

namespace fusion_attention::torch_front_end {

int TorchThreads::Workers() const {
  return std::max(1, static_cast<int>(torch::stable::get_num_threads()));
}

void TorchThreads::Run(int workers, const std::function<void(int)>& work) {
  if (workers <= 1) {
    for (int w = 0; w < workers; ++w) work(w);
    return;
  }
  // An exception must not cross the C boundary of parallel_for, where its type and text would be
  // lost: the first one is carried over.
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr failure;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    // One chunk holds several workers when PyTorch has fewer threads to give, as it does inside
    // another parallel region.
    for (int64_t w = begin; w < end; ++w) {
      try {
        work(static_cast<int>(w));
      } catch (...) {
        if (!failed.test_and_set()) failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fusion_attention::torch_front_end
