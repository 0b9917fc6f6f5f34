// How a caller lends threads to the operator. The library starts none of its own unless asked for a
// ThreadPool.
#pragma once

#include <functional>
#include <memory>

namespace fusion_attention {

class ParallelFor {
 public:
  virtual ~ParallelFor() = default;
  // How many workers may run at once; at least 1. Results never depend on it.
  virtual int Workers() const = 0;
  // Calls work(w) exactly once for each w in [0, workers), on any threads in any order, and returns
  // when all calls have returned.
  virtual void Run(int workers, const std::function<void(int)>& work) = 0;
};

// The calling thread alone.
class SerialFor final : public ParallelFor {
 public:
  int Workers() const override { return 1; }
  void Run(int workers, const std::function<void(int)>& work) override {
    for (int w = 0; w < workers; ++w) work(w);
  }
};

// A small pool for C++ users. Threads that cannot be started are done without. One Run at a time; a
// child after fork() runs serially.
class ThreadPool final : public ParallelFor {
 public:
  explicit ThreadPool(int threads);  // clamped to at least 1; the calling thread is one of them
  ~ThreadPool() override;
  int Workers() const override;
  void Run(int workers, const std::function<void(int)>& work) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fusion_attention
