// Prints the FMA peak of every SIMD width, with one thread and with as many as there are cores.
#include <algorithm>
#include <array>
#include <cstdio>
#include <thread>

#include "bench/fma_peak.h"

int main() {
  std::array<int32_t, 8> widths;
  const int32_t count = FmaPeakWidths(widths.data(), widths.size());
  const int32_t cores = std::max(1u, std::thread::hardware_concurrency());
  for (int32_t i = 0; i < count; ++i) {
    for (int32_t threads : {1, cores}) {
      double best = 0;
      for (int slice = 0; slice < 200; ++slice) {
        best = std::max(best, FmaPeakSlice(widths[i], threads, 20000));
      }
      std::printf("%3d bit, %2d threads: %7.1f Gflop/s\n", widths[i], threads, best * 1e-9);
      if (cores == 1) break;
    }
  }
}
