// Chains of multiply-adds that depend on nothing but themselves: enough of them to fill every
// multiplier in every cycle, and few enough to stay in registers. The SIMD variant is chosen at run
// time, so one build measures every machine.
#include "bench/fma_peak.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

volatile float g_factor = 0.5f;  // volatile: the compiler must not compute the chains itself
volatile float g_sink;

// Every latency times throughput in use needs at most 10 chains (5 cycles, 2 multipliers); 24 use
// an AVX-512 or NEON register file as the kernels do, 12 fit the 16 registers of AVX2 and SSE.
template <typename Vector, int kChains>
[[gnu::always_inline]] inline void RunChains(int64_t iterations) {
  constexpr int kLanes = sizeof(Vector) / sizeof(float);
  Vector factor = Vector{} + g_factor;
  Vector addend = Vector{} + (1.0f - g_factor);
  Vector chains[kChains];
#pragma GCC unroll 24
  for (int c = 0; c < kChains; ++c) chains[c] = factor + static_cast<float>(c);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) chains[c] = chains[c] * factor + addend;
  }
  Vector sum = chains[0];
#pragma GCC unroll 24
  for (int c = 1; c < kChains; ++c) sum += chains[c];
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  g_sink = total;
}

using Vector128 [[gnu::vector_size(16)]] = float;
using Vector256 [[gnu::vector_size(32)]] = float;
using Vector512 [[gnu::vector_size(64)]] = float;

struct Variant {
  int32_t width;
  int32_t chains;
  void (*run)(int64_t iterations);
  double FlopsPerIteration() const { return 2.0 * chains * width / 32; }
};

#if defined(__x86_64__)
[[gnu::target("avx512f,prefer-vector-width=512")]] void Run512(int64_t n) {
  RunChains<Vector512, 24>(n);
}
[[gnu::target("avx2,fma")]] void Run256(int64_t n) { RunChains<Vector256, 12>(n); }
void Run128(int64_t n) {
  RunChains<Vector128, 12>(n);
}  // SSE has no multiply-add: two instructions

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  if (__builtin_cpu_supports("avx512f")) variants.push_back({512, 24, Run512});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    variants.push_back({256, 12, Run256});
  }
  variants.push_back({128, 12, Run128});
  return variants;
}
#else
void Run128(int64_t n) { RunChains<Vector128, 24>(n); }

std::vector<Variant> Variants() { return {{128, 24, Run128}}; }
#endif

double FlopsPerSecond(const Variant& variant, int64_t iterations) {
  const Clock::time_point begin = Clock::now();
  variant.run(iterations);
  const std::chrono::duration<double> seconds = Clock::now() - begin;
  return variant.FlopsPerIteration() * static_cast<double>(iterations) / seconds.count();
}

}  // namespace

int32_t FmaPeakWidths(int32_t* widths, int32_t capacity) {
  const std::vector<Variant> variants = Variants();
  const auto count = static_cast<int32_t>(variants.size());
  for (int32_t i = 0; i < count && i < capacity; ++i) widths[i] = variants[i].width;
  return count;
}

double FmaPeakSlice(int32_t width, int32_t threads, int64_t iterations) {
  for (const Variant& variant : Variants()) {
    if (variant.width != width) continue;
    if (threads <= 1) return FlopsPerSecond(variant, iterations);
    // All threads start together, so that each feels the others' heat and shared resources.
    std::atomic<int32_t> ready = 0;
    std::vector<double> speeds(threads);
    auto work = [&](int32_t t) {
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      speeds[t] = FlopsPerSecond(variant, iterations);
    };
    std::vector<std::thread> others;
    for (int32_t t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
    double sum = 0;
    for (double speed : speeds) sum += speed;
    return sum;
  }
  return 0;
}
