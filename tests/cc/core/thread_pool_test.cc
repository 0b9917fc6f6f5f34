// ThreadPool: every call happens once, whatever happens around it. Meant to run under the thread
// sanitizer too.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "fusion_attention/parallel.h"

namespace fusion_attention {
namespace {

// How often each of `workers` calls happened.
std::vector<int> CountCalls(ParallelFor& threads, int workers) {
  std::vector<std::atomic<int>> counts(workers);
  threads.Run(workers, [&](int w) { ++counts[w]; });
  return {counts.begin(), counts.end()};
}

TEST(ThreadPool, CallsEachWorkerOnce) {
  for (int threads : {-3, 0, 1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.Workers(), std::max(threads, 1));
    for (int workers : {0, 1, 2, 3, 100}) {
      EXPECT_EQ(CountCalls(pool, workers), std::vector<int>(workers, 1)) << threads;
    }
  }
}

TEST(ThreadPool, ManyShortRuns) {
  ThreadPool pool(4);
  int64_t plain = 0;  // not atomic: Run itself must order the calls against the caller
  for (int i = 0; i < 2000; ++i) {
    std::vector<int64_t> parts(4);
    pool.Run(4, [&](int w) { parts[w] = plain + w; });
    for (int64_t part : parts) plain += part % 7;
  }
  EXPECT_GT(plain, 0);
}

TEST(ThreadPool, UsesItsThreads) {
  ThreadPool pool(3);
  // All three calls have to be running at the same time for any of them to return.
  std::atomic<int> running = 0;
  std::vector<std::thread::id> ids(3);
  pool.Run(3, [&](int w) {
    ids[w] = std::this_thread::get_id();
    ++running;
    while (running < 3) std::this_thread::yield();
  });
  EXPECT_EQ(std::set(ids.begin(), ids.end()).size(), 3u);
}

TEST(ThreadPool, CarriesAnExceptionToTheCaller) {
  ThreadPool pool(4);
  for (int thrower : {0, 3, 7}) {
    EXPECT_THROW(pool.Run(8,
                          [&](int w) {
                            if (w == thrower) throw std::runtime_error("no");
                          }),
                 std::runtime_error);
  }
  EXPECT_EQ(CountCalls(pool, 8), std::vector<int>(8, 1));
}

TEST(ThreadPool, NestedRunsAreServed) {
  ThreadPool pool(3);
  std::atomic<int> calls = 0;
  pool.Run(5, [&](int) { pool.Run(4, [&](int) { ++calls; }); });
  EXPECT_EQ(calls, 20);
}

TEST(ThreadPool, RunsFromSeveralThreadsTakeTurns) {
  ThreadPool pool(2);
  std::atomic<int> calls = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int n = 0; n < 100; ++n) pool.Run(3, [&](int) { ++calls; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(calls, 4 * 100 * 3);
}

TEST(ThreadPool, AForkedChildRunsSerially) {
  auto pool = std::make_unique<ThreadPool>(4);
  EXPECT_EQ(CountCalls(*pool, 8), std::vector<int>(8, 1));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool served = pool->Workers() == 1 && CountCalls(*pool, 8) == std::vector<int>(8, 1);
    pool.reset();
    _exit(served ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(CountCalls(*pool, 8), std::vector<int>(8, 1));
}

TEST(ThreadPool, DoesWithoutThreadsThatCannotStart) {
  pthread_attr_t usual, impossible;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_getattr_default_np(&impossible), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&impossible, size_t{1} << 46), 0);
  ASSERT_EQ(pthread_setattr_default_np(&impossible), 0);
  ThreadPool pool(4);
  ASSERT_EQ(pthread_setattr_default_np(&usual), 0);
  EXPECT_EQ(pool.Workers(), 1);
  EXPECT_EQ(CountCalls(pool, 8), std::vector<int>(8, 1));
}

}  // namespace
}  // namespace fusion_attention
