// Runs pieces of work on lent threads. Knows nothing of what a piece is.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif
#include <cstddef>
#include <cstdint>
#include <functional>

#include "fusion_attention/parallel.h"
#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

// Aligned scratch memory, one slice per worker. Not cleared: nothing in it is read before it is
// written, but for rows and keys that fill up a tile and whose results nobody uses. Builds with
// AddressSanitizer fill it with NaN, so that tests would notice.
class WorkerScratch {
 public:
  WorkerScratch(int64_t workers, int64_t bytes);
  int64_t workers() const { return workers_; }
  std::byte* Of(int64_t worker) const { return buffer_.get() + worker * stride_; }

 private:
  int64_t workers_;
  int64_t stride_;
  Buffer buffer_;
};

// Calls piece(scratch, i) for every i in [0, pieces) on the workers that `scratch` was made for.
// Workers take pieces in ascending order and run what they took in that order, so a piece may wait
// for earlier ones.
void RunPieces(ParallelFor& threads, WorkerScratch& scratch, int64_t pieces,
               const std::function<void(std::byte* scratch, int64_t piece)>& piece);

// The default floating-point environment (round to nearest, subnormals kept) for a scope, whatever
// the caller has set, so that results do not depend on it. RunPieces() opens one in each worker.
class DefaultFloatEnvironment {
 public:
#if defined(__x86_64__)
  // Floats and doubles know this register alone. The C library also saves and loads the x87 unit's
  // state: 100 ns a scope, of 1.5 us that a small call takes.
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }
#else
  DefaultFloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }
#endif
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr unsigned kDefault = 0x1F80;  // all exceptions masked, nothing else set
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

}  // namespace fusion_attention::cpu
