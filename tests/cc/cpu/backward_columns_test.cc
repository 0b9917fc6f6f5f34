// The cuts of the backward pass, for many geometries and numbers of workers: every key has one
// column, every cell that sees something has its turn, and nobody waits for what starts later.
#include "src/cpu/backward_columns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

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

void ExpectSoundColumns(const Problem& p, int64_t workers, Undivided undivided) {
  SCOPED_TRACE(testing::Message() << p.q_len << " x " << p.kv_len << " mode " << p.mask.sparse_mode
                                  << " workers " << workers);
  const BackwardColumns columns(p, {48, 8, 64, 1024}, workers, undivided);
  std::map<std::pair<int64_t, int64_t>, int64_t> reached;  // keys of each grid so far
  int64_t next = 0;
  for (int64_t i = 0; i < columns.pieces(); ++i) {
    EXPECT_EQ(columns.Piece(i).begin, next);
    next = columns.Piece(i).end;
  }
  ASSERT_EQ(next, columns.count());
  for (int64_t c = 0; c < columns.count(); ++c) {
    const Column& column = columns[c];
    // Left before right, each where the last one ended.
    EXPECT_LT(column.left, c);
    EXPECT_EQ(column.left < 0 ? 0 : columns[column.left].keys.end, column.keys.begin);
    EXPECT_EQ((reached[{column.sequence, column.kv_head}]), column.keys.begin);
    reached[{column.sequence, column.kv_head}] = column.keys.end;
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
  EXPECT_EQ(static_cast<int64_t>(reached.size()), p.sequences() * p.kv_heads);
  for (const auto& [grid, keys] : reached) EXPECT_EQ(keys, p.kv_len);
}

TEST(BackwardColumns, CoverEveryKeyOnceAndWaitForNothingLater) {
  for (const int64_t workers : {1, 2, 3, 7, 64}) {
    for (const auto& [q_len, kv_len] : {std::pair<int64_t, int64_t>{0, 5},
                                        {5, 0},
                                        {1, 1},
                                        {300, 2000},
                                        {2000, 300},
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
  for (int64_t c = 0; c < columns.count(); ++c) EXPECT_LT(columns[c].left, c);
}

TEST(BackwardColumns, EvenGridsStayWholeAndFewAreShared) {
  const Problem even = Masked(1000, 1000, 3, 0, 0);  // four grids
  EXPECT_EQ(BackwardColumns(even, {48, 8, 64, 1024}, 2, Undivided::kColumn).count(), 4);
  Problem one = even;
  one.batch = 1;
  one.q_heads = one.kv_heads = 1;
  EXPECT_EQ(BackwardColumns(one, {48, 8, 64, 1024}, 1, Undivided::kColumn).count(), 1);
  EXPECT_GT(BackwardColumns(one, {48, 8, 64, 1024}, 2, Undivided::kColumn).count(), 3);
}

}  // namespace
}  // namespace fusion_attention::cpu
