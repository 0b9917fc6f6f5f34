// The keep bits one after another, from their definition in philox.h.
#include <algorithm>
#include <cstring>

#include "fusion_attention/dropout.h"
#include "src/dropout/philox.h"

namespace fusion_attention {
namespace {

// One byte holds the bits of two Philox blocks.
uint8_t KeepByte(const DropoutMaskArgs& args, int64_t byte, KeepThreshold keep) {
  int bits = 0;
  for (int half = 0; half < 2; ++half) {
    const auto words = PhiloxBlock(args.seed, args.offset, static_cast<uint64_t>(2 * byte + half));
    for (int i = 0; i < 4; ++i) {
      bits |= static_cast<int>((words[i] & keep.low_mask) >= keep.threshold) << (4 * half + i);
    }
  }
  return static_cast<uint8_t>(bits);
}

}  // namespace

void DropoutMask(const DropoutMaskArgs& args, ParallelFor& threads) {
  const int64_t bytes = DropoutMaskBytes(args.numels);
  if (args.drop_prob == 0.0 || args.drop_prob == 1.0) {
    if (bytes > 0) std::memset(args.bytes, args.drop_prob == 0.0 ? 0xFF : 0, bytes);
    return;
  }
  const KeepThreshold keep = DropThresholdOf(args.dtype, static_cast<float>(args.drop_prob));
  // A worker is worth starting for some microseconds of work.
  constexpr int64_t kBytesOfAWorker = 1024;
  const auto workers = static_cast<int>(
      std::clamp<int64_t>(bytes / kBytesOfAWorker, 1, std::max(threads.Workers(), 1)));
  threads.Run(workers, [&](int worker) {
    const int64_t end = bytes * (worker + 1) / workers;
    for (int64_t byte = bytes * worker / workers; byte < end; ++byte) {
      args.bytes[byte] = KeepByte(args, byte, keep);
    }
  });
}

}  // namespace fusion_attention
