// The cuts of the backward pass, for many geometries and numbers of workers: every tile of keys has
// one column, the sums of dQ have one order, every cell that sees something has its turn, and
// nobody waits for what starts later.
#include "src/cpu/backward_columns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace fusion_attention::cpu {
namespace {

Problem Masked(int64_t q_len, int64_t kv_len, int64_t sparse_mode, int64_t pre, int64_t next) {
  Problem p;
  p.batch = 2;
  p.q_heads = 4;
  p.kv_heads = 2;
  p.q_len = q_len;
  p.kv_len = kv_len;
  p.head_dim = p.value_dim = 64;
  p.mask.full = sparse_mode < 0;
  p.mask.sparse_mode = sparse_mode;
  p.mask.pre_tockens = pre;
  p.mask.next_tockens = next;
  return p;
}

constexpr GridSizes kSizes{48, 8, 64, 1024};

// The tiles of a chunk's halves, in the order in which dQ takes them.
std::vector<std::pair<int64_t, int64_t>> TilesOf(const Column& column) {
  std::vector<std::pair<int64_t, int64_t>> tiles;  // half, first key
  for (int64_t half = column.halves.begin; half < column.halves.end; ++half) {
    for (int64_t key = column.keys.begin; key < column.keys.end; key += kSizes.tile_keys) {
      if (column.chunk.HalfOf(key) == half) tiles.emplace_back(half, key);
    }
  }
  return tiles;
}

// The columns that a column continues, itself last: their tiles of one half are one chain.
void ExpectChain(const BackwardColumns& columns, int64_t c) {
  const Column& column = columns[c];
  const bool second = column.halves.begin == 1;
  EXPECT_LT(column.left, c);
  EXPECT_LT(column.beside, c);
  EXPECT_EQ(column.beside >= 0, second);
  EXPECT_GE(column.keys.begin, column.chunk.keys.begin);
  EXPECT_LE(column.keys.end, column.chunk.keys.end);
  if (second) {
    const Column& first = columns[column.beside];
    EXPECT_EQ(first.keys.begin, column.keys.begin);
    EXPECT_EQ(first.keys.end, column.keys.end);
    EXPECT_EQ(first.halves.end, 1);
    EXPECT_EQ(first.kv_head, column.kv_head);
    EXPECT_EQ(first.sequence, column.sequence);
  }
  const bool starts = column.keys.begin == (second ? column.chunk.keys.begin : 0);
  ASSERT_EQ(column.left < 0, starts);
  if (starts) return;
  const Column& left = columns[column.left];
  EXPECT_EQ(left.keys.end, column.keys.begin);
  EXPECT_EQ(left.kv_head, column.kv_head);
  EXPECT_EQ(left.sequence, column.sequence);
  if (left.chunk.keys.begin == column.chunk.keys.begin) {
    EXPECT_EQ(left.halves.begin, column.halves.begin);
    EXPECT_EQ(left.halves.end, column.halves.end);
  } else {
    // The last word on the chunk before.
    EXPECT_EQ(left.halves.end, left.chunk.Halves());
    EXPECT_EQ(left.keys.end, left.chunk.keys.end);
  }
}

void ExpectSoundColumns(const Problem& p, int64_t workers, Undivided undivided) {
  SCOPED_TRACE(testing::Message() << p.q_len << " x " << p.kv_len << " mode " << p.mask.sparse_mode
                                  << " workers " << workers);
  const BackwardColumns columns(p, kSizes, workers, undivided);
  std::map<std::pair<int64_t, int64_t>, std::multiset<int64_t>> tiles;  // of each grid
  int64_t next = 0;
  for (int64_t i = 0; i < columns.pieces(); ++i) {
    EXPECT_EQ(columns.Piece(i).begin, next);
    next = columns.Piece(i).end;
  }
  ASSERT_EQ(next, columns.count());
  for (int64_t c = 0; c < columns.count(); ++c) {
    const Column& column = columns[c];
    ExpectChain(columns, c);
    // Chunks follow from the number of keys alone.
    EXPECT_EQ(column.chunk.keys.begin % 1024, 0);
    EXPECT_EQ(column.chunk.keys.end, std::min(column.chunk.keys.begin + 1024, p.kv_len));
    std::multiset<int64_t>& of_grid = tiles[{column.sequence, column.kv_head}];
    for (const auto& [half, key] : TilesOf(column)) of_grid.insert(key);
    EXPECT_LE(column.keys.size(), columns.most_keys());
    EXPECT_TRUE(column.keys.end == p.kv_len || column.keys.end % 64 == 0);
    const Sequence s = p.SequenceAt(column.sequence);
    const RowIntervals intervals = p.IntervalsOf(s);
    const Span segments = columns.SegmentsOf(column);
    for (int64_t segment = 0; segment < columns.SegmentsOf(s); ++segment) {
      const Span keys = columns.KeysOf(s, intervals, segment);
      const bool shared = keys.begin < std::max(column.keys.end, column.keys.begin + 1) &&
                          keys.end > column.keys.begin;
      EXPECT_EQ(segments.begin <= segment && segment < segments.end, shared) << segment;
    }
  }
  std::multiset<int64_t> all;
  for (int64_t key = 0; key < p.kv_len; key += 64) all.insert(key);
  EXPECT_EQ(static_cast<int64_t>(tiles.size()), p.sequences() * p.kv_heads);
  for (const auto& [grid, of_grid] : tiles) EXPECT_EQ(of_grid, all);
}

// Whether the rows see all keys or, as under a causal mask, each tile fewer than the one before.
TEST(BackwardColumns, HalvesOfAChunkAreEven) {
  for (const int64_t tiles : {4, 7, 16, 32, 33}) {
    const Chunk chunk{{640, 640 + 64 * tiles}, 64};
    EXPECT_EQ(chunk.Halves(), 2);
    std::array<int64_t, 2> full{};
    std::array<int64_t, 2> causal{};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const auto half = static_cast<size_t>(chunk.HalfOf(640 + 64 * tile + 63));
      full[half] += 1;
      causal[half] += tiles - tile;
    }
    EXPECT_LE(std::abs(full[0] - full[1]), 1);
    EXPECT_LE(std::abs(causal[0] - causal[1]), tiles % 4 == 0 ? 0 : 2);
  }
  const Chunk small{{0, 192}, 64};
  EXPECT_EQ(small.Halves(), 1);
  EXPECT_EQ(small.HalfOf(191), 0);
}

TEST(BackwardColumns, CoverEveryKeyOnceAndWaitForNothingLater) {
  for (const int64_t workers : {1, 2, 3, 7, 64}) {
    for (const auto& [q_len, kv_len] : {std::pair<int64_t, int64_t>{0, 5},
                                        {5, 0},
                                        {1, 1},
                                        {300, 2000},
                                        {2000, 190},
                                        {2000, 300},
                                        {2000, 1100},
                                        {3000, 3000}}) {
      for (const Undivided undivided : {Undivided::kColumn, Undivided::kGrid, Undivided::kHead}) {
        ExpectSoundColumns(Masked(q_len, kv_len, -1, 0, 0), workers, undivided);
        ExpectSoundColumns(Masked(q_len, kv_len, 2, 0, 0), workers, undivided);
        ExpectSoundColumns(Masked(q_len, kv_len, 3, 0, 0), workers, undivided);
        ExpectSoundColumns(Masked(q_len, kv_len, 4, 200, 10), workers, undivided);
        ExpectSoundColumns(Masked(q_len, kv_len, 4, 500, -400), workers, undivided);
      }
    }
  }
}

// Pairs times keys are more than 2^63.
TEST(BackwardColumns, WaitForNothingLaterInTheLongestProblems) {
  const Problem p = Masked(1 << 12, 1 << 26, -1, 0, 0);
  const BackwardColumns columns(p, {48, 8, 1 << 16, 1 << 22}, 3, Undivided::kColumn);
  ASSERT_GT(columns.count(), 16);
  for (int64_t c = 0; c < columns.count(); ++c) ExpectChain(columns, c);
}

TEST(BackwardColumns, EvenGridsStayWholeAndFewAreShared) {
  const auto count = [](const Problem& p, int64_t workers) {
    return BackwardColumns(p, kSizes, workers, Undivided::kColumn).count();
  };
  const Problem even = Masked(1000, 1000, 3, 0, 0);  // four grids
  EXPECT_EQ(count(even, 2), 4);
  Problem one = even;
  one.batch = 1;
  one.q_heads = one.kv_heads = 1;
  EXPECT_EQ(count(one, 1), 1);
  EXPECT_EQ(count(one, 2), 2);  // the halves
  EXPECT_GE(count(one, 4), 6);  // each half in columns
  one.kv_len = 190;             // nothing to halve
  EXPECT_GE(count(one, 2), 2);
}

}  // namespace
}  // namespace fusion_attention::cpu
