// PyTorch's parallel_for as a ParallelFor.
#include "torch/threads.h"

#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <optional>

namespace fusion_attention::torch_front_end {
namespace {

// How many times fork() made this process since the library was loaded; 0 in the process that
// loaded it.
std::atomic<int> forks{0};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });

// The calling thread's own pool in a child of fork(). No lock is involved that another thread could
// have held while forking.
ThreadPool& ChildPool(int threads) {
  thread_local std::optional<ThreadPool> pool;
  thread_local int made_for_threads = 0;
  thread_local int made_after_forks = 0;
  if (!pool || made_for_threads != threads || made_after_forks != forks) {
    pool.emplace(threads);
    made_for_threads = threads;
    made_after_forks = forks;
  }
  return *pool;
}

}  // namespace

int TorchThreads::Workers() const {
  return std::max(1, static_cast<int>(torch::stable::get_num_threads()));
}

void TorchThreads::Run(int workers, const std::function<void(int)>& work) {
  if (workers <= 1) {
    SerialFor().Run(workers, work);
    return;
  }
  if (forks > 0) {
    ChildPool(Workers()).Run(workers, work);
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
