// What the tests of single kernels share: the SIMD targets to run them on, random arrays, sizes and
// the tolerance. Knows no kernel.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <limits>
#include <random>
#include <vector>

#include "src/cpu/kernels/tables.h"
#include "tests/cc/cpu/array.h"

namespace fusion_attention::cpu {

// Sizes straddle the register tiles: 1, a step, one more.
inline constexpr int64_t kKeys[] = {1, 7, 8, 9, 33, 128};
inline constexpr int64_t kDims[] = {1, 8, 20, 64, 80, 130};

using ArithmeticTypes = testing::Types<float, double>;

inline std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSE4, HWY_NEON}) {
    if (KernelsOf<float>(target) != nullptr && (hwy::SupportedTargets() & target) != 0) {
      targets.push_back(target);
    }
  }
  return targets;
}

template <typename T>
class KernelFixture : public testing::Test {
 protected:
  T Random() { return std::uniform_real_distribution<T>(-1, 1)(engine_); }
  Array<T> RandomArray(int64_t count) {
    Array<T> array(count);
    for (int64_t i = 0; i < count; ++i) array[i] = Random();
    return array;
  }
  // Bits of every key and row, about half of them set.
  Array<BitWord> RandomBits(int64_t keys, int64_t rows) {
    Array<BitWord> bits((keys / kWordBits + 1) * rows);
    for (int64_t i = 0; i < (keys / kWordBits + 1) * rows; ++i)
      bits[i] = static_cast<BitWord>(engine_());
    return bits;
  }
  static bool Bit(Array<BitWord>& bits, int64_t rows, int64_t key, int64_t row) {
    return (bits[key / kWordBits * rows + row] >> (key % kWordBits) & 1) != 0;
  }
  static T Tolerance() { return 200 * std::numeric_limits<T>::epsilon(); }

  std::mt19937 engine_{1};
};

}  // namespace fusion_attention::cpu
