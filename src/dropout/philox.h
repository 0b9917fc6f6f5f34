// The dropout bits, by definition: element k of the mask is kept iff the low bits of word k % 4 of
// Philox4x32-10 block k / 4 reach a threshold. Scalar and pure; docs/numerics.md states the rule,
// the SIMD kernels share KeepThreshold and must give the same bits. Philox: Salmon, Moraes, Dror,
// Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "fusion_attention/dtype.h"
#include "src/base/convert.h"

namespace fusion_attention {

// Keep a word x iff (x & low_mask) >= threshold. The low bits are the fraction of a uniform number
// in the input's dtype, so the drop rate is quantised to 1 / (low_mask + 1).
struct KeepThreshold {
  uint32_t low_mask;
  uint32_t threshold;
};

// The rule that drops with `drop_prob` in [0, 1]. float64 draws as float32 does.
inline KeepThreshold DropThresholdOf(DType dtype, float drop_prob) {
  int bits = 23;
  double rounded = drop_prob;
  if (dtype == DType::kFloat16) {
    bits = kFloat16Format.fraction_bits;
    rounded = Widen(kFloat16Format, Narrow(kFloat16Format, drop_prob));
  } else if (dtype == DType::kBFloat16) {
    bits = kBFloat16Format.fraction_bits;
    rounded = Widen(kBFloat16Format, Narrow(kBFloat16Format, drop_prob));
  }
  return {.low_mask = (uint32_t{1} << bits) - 1,
          .threshold = static_cast<uint32_t>(std::ceil(std::ldexp(rounded, bits)))};
}

// The same from the operator's argument, in (0, 1].
inline KeepThreshold KeepThresholdOf(DType dtype, double keep_prob) {
  return DropThresholdOf(dtype, 1.0f - static_cast<float>(keep_prob));
}

// What a kept weight is multiplied by, for every dtype: 1 / keep_prob as the device rounds it.
inline float KeepFactor(double keep_prob) { return 1.0f / static_cast<float>(keep_prob); }

// The ten rounds: four random words from a 128-bit counter and a 64-bit key, least significant
// words first.
constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product2 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product2 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product2),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Block `block` of the stream of (seed, offset). The counter starts at offset * 2^64 and a block
// number has 64 bits, so nothing ever carries.
constexpr std::array<uint32_t, 4> PhiloxBlock(uint64_t seed, uint64_t offset, uint64_t block) {
  return Philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                     static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32)},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

constexpr bool Keep(uint64_t seed, uint64_t offset, uint64_t element, KeepThreshold keep) {
  const uint32_t word = PhiloxBlock(seed, offset, element / 4)[element % 4];
  return (word & keep.low_mask) >= keep.threshold;
}

}  // namespace fusion_attention
