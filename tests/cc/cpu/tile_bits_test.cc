// What a block of rows sees of a tile, against the definition pair by pair.
#include "src/cpu/tile_bits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "src/cpu/targets.h"

namespace fusion_attention::cpu {
namespace {

constexpr int64_t kBlockRows = 48;
constexpr int64_t kTileKeys = 128;

TEST(TileBits, LookEqualsThePredicate) {
  std::mt19937 engine(3);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  };
  const std::vector<Kernels> targets = RunnableKernels();
  int64_t empty = 0, full = 0, partial = 0;
  for (int repeat = 0; repeat < 4000; ++repeat) {
    const int64_t q_len = draw(1, 90), kv_len = draw(1, 300);
    RowIntervals intervals{
        .begin_offset = draw(-100, 60), .end_offset = draw(-60, 120), .kv_len = kv_len};
    if (draw(0, 3) == 0) intervals.prefix = draw(0, kv_len);
    if (draw(0, 3) == 0) intervals = {.kv_len = kv_len};
    Problem problem;
    const bool dense = draw(0, 1) == 1;
    problem.mask.source = dense ? MaskSource::kDense : MaskSource::kNone;
    const int64_t key_stride = draw(1, 2), density = draw(0, 2);
    std::vector<uint8_t> bytes(static_cast<size_t>(q_len * kv_len * key_stride));
    for (uint8_t& byte : bytes)
      byte = density == 0 ? 0 : density == 1 ? 2 : static_cast<uint8_t>(draw(0, 1) * 255);
    const ConstScoreView view{bytes.data(), DType::kUInt8, {0, 0, kv_len * key_stride, key_stride}};
    const Kernels& kernels = targets[static_cast<size_t>(repeat) % targets.size()];
    const MaskReader reader(problem, view, kernels.f32->hide_masked);

    const Span rows{draw(0, q_len - 1), 0};
    const Span block{rows.begin, std::min(rows.begin + draw(1, kBlockRows), q_len)};
    const Span keys{draw(0, kv_len - 1) / kTileKeys * kTileKeys, 0};
    const Span tile{keys.begin, std::min(keys.begin + kTileKeys, kv_len)};
    BitWord bits[kTileKeys / kWordBits * kBlockRows] = {};
    const VisibleTile seen = reader.Look({}, intervals, 0, block, tile, kBlockRows, bits);

    ASSERT_GE(seen.keys.begin, tile.begin);
    ASSERT_LE(seen.keys.end, tile.end);
    ASSERT_EQ((seen.keys.begin - tile.begin) % kKeyPair, 0);
    if (seen.keys.end < tile.end) {
      ASSERT_EQ(seen.keys.size() % kKeyPair, 0);
    }
    bool all = true;
    for (int64_t r = block.begin; r < block.end; ++r) {
      for (int64_t k = tile.begin; k < tile.end; ++k) {
        const bool visible =
            k >= intervals.Begin(r) && k < intervals.End(r) &&
            (!dense || bytes[static_cast<size_t>((r * kv_len + k) * key_stride)] == 0);
        const bool inside = k >= seen.keys.begin && k < seen.keys.end;
        const int64_t at = k - seen.keys.begin;
        const bool found =
            inside &&
            (!seen.partial || (bits[at / 32 * kBlockRows + r - block.begin] >> (at % 32) & 1));
        ASSERT_EQ(found, visible) << "row " << r << " key " << k;
        if (inside) all &= visible;
        if (visible) {
          ASSERT_LT(at, seen.reach.keys[(r - block.begin) / (kBlockRows / kBlockVectors)]);
        }
      }
    }
    if (seen.keys.size() > 0) {
      const int64_t* reach = seen.reach.keys;
      ASSERT_TRUE(std::is_sorted(reach, reach + seen.reach.vectors));
      ASSERT_LE(reach[seen.reach.vectors - 1], seen.keys.size());
      ASSERT_EQ(seen.partial, !all) << "a whole tile must not pay for a mask";
    }
    ++(seen.keys.size() == 0 ? empty : seen.partial ? partial : full);
  }
  EXPECT_GT(empty, 100);
  EXPECT_GT(full, 100);
  EXPECT_GT(partial, 100);
}

TEST(TileBits, ReadKeepBitsAtAnyBitAndUpToTheLast) {
  std::mt19937 engine(4);
  const int64_t numels = 1003;
  std::vector<uint8_t> mask((numels + 7) / 8);
  for (uint8_t& byte : mask) byte = static_cast<uint8_t>(engine());
  for (const int64_t keys : {1, 31, 32, 33, 64}) {
    const uint64_t first = 37, row_stride = static_cast<uint64_t>(numels - keys) - first;
    BitWord keep[2 * kBlockRows] = {};
    ReadKeepBits(mask.data(), numels, first, row_stride, 2, keys, kBlockRows, keep);
    for (int64_t r = 0; r < 2; ++r) {
      for (int64_t k = 0; k < keys; ++k) {
        const uint64_t element =
            first + static_cast<uint64_t>(r) * row_stride + static_cast<uint64_t>(k);
        ASSERT_EQ(keep[k / 32 * kBlockRows + r] >> (k % 32) & 1,
                  mask[element / 8] >> (element % 8) & 1);
      }
    }
  }
}

}  // namespace
}  // namespace fusion_attention::cpu
