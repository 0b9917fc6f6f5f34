// ThreadPool: helpers sleep until a Run has calls left, then take them one by one together with the
// thread that called Run. Knows nothing about attention; POSIX only for the process id, which tells
// a child after fork() that the helpers are gone.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "fusion_attention/parallel.h"

namespace fusion_attention {
namespace {

// One Run in progress.
struct Job {
  const std::function<void(int)>* work = nullptr;
  int workers = 0;
  std::atomic<int> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;  // the first one thrown

  bool HasCalls() const { return next.load(std::memory_order_relaxed) < workers; }

  // Takes calls until none is left.
  void Help() noexcept {
    while (HasCalls()) {
      const int w = next.fetch_add(1, std::memory_order_relaxed);
      if (w >= workers) return;
      try {
        (*work)(w);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
  }
};

// A Run from inside a Run finds every helper busy, so it is served by its own thread.
thread_local bool inside_run = false;

}  // namespace

struct ThreadPool::State {
  const pid_t owner = getpid();
  std::vector<std::thread> helpers;
  std::mutex run_mutex;  // held for the length of a Run

  std::mutex mutex;  // guards all below
  std::condition_variable wake;
  std::condition_variable idle;
  Job* job = nullptr;
  int helping = 0;  // helpers that are inside `job`
  bool stop = false;

  bool InForkedChild() const { return getpid() != owner; }

  void HelperLoop() {
    inside_run = true;
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return stop || (job != nullptr && job->HasCalls()); });
      if (stop) return;
      Job* const current = job;
      ++helping;
      lock.unlock();
      current->Help();
      lock.lock();
      if (--helping == 0) idle.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  const int helpers = std::max(threads, 1) - 1;
  try {
    state_->helpers.reserve(helpers);
    for (int i = 0; i < helpers; ++i) {
      state_->helpers.emplace_back([state = state_.get()] { state->HelperLoop(); });
    }
  } catch (const std::exception&) {
    // Out of threads or memory: the ones that did start, or the caller alone, do the work.
  }
}

ThreadPool::~ThreadPool() {
  if (state_->InForkedChild()) {
    // The helpers do not exist here and the locks may be held by nobody who could release them:
    // leave both alone.
    static_cast<void>(state_.release());
    return;
  }
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& helper : state_->helpers) helper.join();
}

int ThreadPool::Workers() const {
  return state_->InForkedChild() ? 1 : static_cast<int>(state_->helpers.size()) + 1;
}

void ThreadPool::Run(int workers, const std::function<void(int)>& work) {
  if (workers <= 1 || inside_run || Workers() == 1) {
    SerialFor().Run(workers, work);
    return;
  }
  const std::lock_guard run_lock(state_->run_mutex);
  Job job;
  job.work = &work;
  job.workers = workers;
  {
    const std::lock_guard lock(state_->mutex);
    state_->job = &job;
  }
  state_->wake.notify_all();
  inside_run = true;
  job.Help();
  inside_run = false;
  {
    std::unique_lock lock(state_->mutex);
    state_->idle.wait(lock, [this] { return state_->helping == 0; });
    state_->job = nullptr;
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fusion_attention
