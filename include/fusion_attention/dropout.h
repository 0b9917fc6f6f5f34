// DropoutMask(): the keep bits that a call with this (seed, offset) applies, as an array. The
// operator itself never stores them.
#pragma once

#include <cstdint>

#include "fusion_attention/dtype.h"
#include "fusion_attention/parallel.h"

namespace fusion_attention {

// Masks come in whole blocks of 128 bits.
constexpr int64_t DropoutMaskBytes(int64_t numels) { return (numels + 127) / 128 * 16; }

struct DropoutMaskArgs {
  DType dtype =
      DType::kFloat32;     // of query: the drop rate is a multiple of its fraction's last bit
  double drop_prob = 0.0;  // in [0, 1], used as float32
  uint64_t seed = 0;
  uint64_t offset = 0;
  int64_t numels = 0;
  uint8_t* bytes =
      nullptr;  // DropoutMaskBytes(numels) of them: bit k of byte k / 8 keeps element k
};

// Every bit is written, those behind the last element too. 0 keeps and 1 drops all of them.
void DropoutMask(const DropoutMaskArgs& args, ParallelFor& threads);

}  // namespace fusion_attention
