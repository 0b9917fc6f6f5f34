// RowIntervals against the predicate of every mode, written here as the API page words them, over
// random problems.
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "tests/cc/problem/calls.h"

namespace fusion_attention {
namespace {

// Whether row i of a sequence sees key j, dense mask bytes aside. No bound is shared with the code
// under test.
bool Sees(const Call& call, int64_t q_len, int64_t kv_len, int64_t sequence, bool is_band,
          int64_t i, int64_t j) {
  const __int128 pre = call.pre_tockens, next = call.next_tockens;
  const int64_t shift = kv_len - q_len;
  const bool top_left_causal = j <= i;
  const bool bottom_right_causal = j <= i + shift;
  const bool bottom_right_band = j >= i + shift - pre && j <= i + shift + next;
  switch (call.sparse_mode) {
    case 0:
      return j >= i - pre && j <= i + next;
    case 2:
      return top_left_causal;
    case 3:
      return bottom_right_causal;
    case 4:
      return bottom_right_band;
    case 5:
    case 6:
      return j < (*call.prefix)[static_cast<size_t>(sequence)] || bottom_right_causal;
    case 7:
      return is_band ? bottom_right_band : bottom_right_causal;
    case 8:
      return is_band ? bottom_right_band : top_left_causal;
    default:
      return true;
  }
}

// The first (mode 8) or last (mode 7) sequence with rows.
int64_t BandOf(const Call& call) {
  if (call.sparse_mode < 7) return -1;
  int64_t band = -1, begin = 0;
  for (size_t b = 0; b < call.actual_seq_qlen->size(); ++b) {
    const int64_t end = (*call.actual_seq_qlen)[b];
    if (end > begin && (band < 0 || call.sparse_mode == 7)) band = static_cast<int64_t>(b);
    begin = end;
  }
  return band;
}

void ExpectPredicate(const Call& call, const Problem& problem) {
  const int64_t band = BandOf(call);
  for (int64_t index = 0; index < problem.sequences(); ++index) {
    const Sequence s = problem.SequenceAt(index);
    const RowIntervals keys = problem.IntervalsOf(s);
    for (int64_t i = 0; i < s.q_len; ++i) {
      ASSERT_LE(0, keys.Begin(i));
      ASSERT_LE(keys.Begin(i), keys.End(i));
      ASSERT_LE(keys.End(i), s.kv_len);
      if (i > 0) {
        ASSERT_LE(keys.Begin(i - 1), keys.Begin(i));
        ASSERT_LE(keys.End(i - 1), keys.End(i));
      }
      for (int64_t j = 0; j < s.kv_len; ++j) {
        ASSERT_EQ(j >= keys.Begin(i) && j < keys.End(i),
                  Sees(call, s.q_len, s.kv_len, index, index == band, i, j))
            << "mode " << call.sparse_mode << " pre " << call.pre_tockens << " next "
            << call.next_tockens << " Sq " << s.q_len << " Skv " << s.kv_len << " at " << i << ", "
            << j;
      }
    }
  }
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t In(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  // Mostly near the sizes under test, sometimes at the ends of int64.
  int64_t Tokens() {
    const int64_t kind = In(0, 9);
    if (kind == 0) return std::numeric_limits<int64_t>::max();
    if (kind == 1) return std::numeric_limits<int64_t>::min();
    return In(-14, 20);
  }

 private:
  std::mt19937 engine_;
};

Sizes MaskShapeOf(const Call& call, int64_t batch, int64_t q_len, int64_t kv_len) {
  if (call.sparse_mode == 6) return {3072, 2048};
  if (call.sparse_mode == 5) return {batch, 1, q_len, kv_len};
  if (call.sparse_mode < 2) return {q_len, kv_len};
  return {2048, 2048};
}

TEST(IntervalsTest, DenseModes) {
  Random random(1);
  int checked[7] = {};
  for (int round = 0; round < 6000; ++round) {
    Call call = Dense();
    const int64_t q_len = random.In(1, 12), kv_len = random.In(1, 12);
    SetLengths(call, q_len, kv_len);
    call.sparse_mode = random.In(0, 6);
    SetTokens(call, random.Tokens(), random.Tokens());
    const int64_t least = std::max<int64_t>(kv_len - q_len, 0);
    call.prefix = {random.In(least, kv_len), random.In(least, kv_len)};
    SetMask(call, call.sparse_mode, MaskShapeOf(call, 2, q_len, kv_len));
    const StatusOr<Problem> problem = Validate(call);
    if (!problem.ok()) continue;
    ++checked[call.sparse_mode];
    ExpectPredicate(call, *problem);
    if (HasFatalFailure()) return;
  }
  for (const int count : checked) EXPECT_GE(count, 200);
}

TEST(IntervalsTest, PackedModes) {
  Random random(2);
  int checked[9] = {};
  for (int round = 0; round < 60000; ++round) {
    Call call = Packed();
    Sizes q_ends, kv_ends;
    int64_t q_end = 0, kv_end = 0, longest_q = 0, longest_kv = 0;
    for (int64_t b = random.In(1, 4); b > 0; --b) {
      const int64_t q_len = random.In(0, 7), kv_len = q_len + random.In(-q_len / 2, 6);
      longest_q = std::max(longest_q, q_len);
      longest_kv = std::max(longest_kv, kv_len);
      q_ends.push_back(q_end += q_len);
      kv_ends.push_back(kv_end += kv_len);
    }
    SetEnds(call, q_ends, kv_ends);
    call.sparse_mode = Sizes{0, 1, 2, 3, 4, 6, 7, 8}[static_cast<size_t>(random.In(0, 7))];
    SetTokens(call, random.Tokens(), random.Tokens());
    call.prefix.emplace();
    for (size_t b = 0; b < q_ends.size(); ++b) {
      const int64_t q_len = q_ends[b] - (b == 0 ? 0 : q_ends[b - 1]);
      const int64_t kv_len = kv_ends[b] - (b == 0 ? 0 : kv_ends[b - 1]);
      call.prefix->push_back(random.In(std::max<int64_t>(kv_len - q_len, 0), kv_len));
    }
    SetMask(call, call.sparse_mode, MaskShapeOf(call, 1, longest_q, longest_kv));
    const StatusOr<Problem> problem = Validate(call);
    if (!problem.ok()) continue;
    ++checked[call.sparse_mode];
    ExpectPredicate(call, *problem);
    if (HasFatalFailure()) return;
  }
  for (const int mode : {0, 1, 2, 3, 4, 6, 7, 8}) EXPECT_GE(checked[mode], 200) << mode;
}

TEST(IntervalsTest, FullWithoutMask) {
  Call call = Dense();
  call.sparse_mode = 3;
  const StatusOr<Problem> problem = Validate(call);
  const RowIntervals keys = problem->IntervalsOf(problem->SequenceAt(0));
  EXPECT_EQ(keys.Begin(15), 0);
  EXPECT_EQ(keys.End(0), 24);
}

// A long sequence cut over two cards sees what the whole would: the page's examples of modes 7
// and 8.
TEST(IntervalsTest, CutMode3) {
  Call whole = Packed(), first = Packed(), second = Packed();
  for (Call* call : {&whole, &first, &second}) SetMask(*call, 3, {2048, 2048});
  SetEnds(whole, {3, 7}, {3, 9});
  SetEnds(first, {3, 5}, {3, 9});
  first.sparse_mode = 7;
  SetTokens(first, 6, -2);
  SetEnds(second, {2}, {6});
  const StatusOr<Problem> w = Validate(whole), f = Validate(first), s = Validate(second);
  const RowIntervals all = w->IntervalsOf(w->SequenceAt(1));
  for (int64_t row = 0; row < 2; ++row) {
    EXPECT_EQ(f->IntervalsOf(f->SequenceAt(1)).End(row), all.End(row));
    EXPECT_EQ(s->IntervalsOf(s->SequenceAt(0)).End(row), all.End(row + 2));
    EXPECT_EQ(f->IntervalsOf(f->SequenceAt(1)).Begin(row), 0);
  }
  EXPECT_EQ(all.End(0), 3);
}

TEST(IntervalsTest, CutMode2) {
  Call whole = Packed(), first = Packed(), second = Packed();
  for (Call* call : {&whole, &first, &second}) SetMask(*call, 2, {2048, 2048});
  SetEnds(whole, {3, 8}, {3, 7});
  SetEnds(first, {3, 5}, {3, 7});
  SetEnds(second, {3, 8, 12}, {4, 9, 13});
  second.sparse_mode = 8;
  SetTokens(second, 4, 1);
  const StatusOr<Problem> w = Validate(whole), f = Validate(first), s = Validate(second);
  const RowIntervals all = w->IntervalsOf(w->SequenceAt(1));
  for (int64_t row = 0; row < 2; ++row) {
    EXPECT_EQ(f->IntervalsOf(f->SequenceAt(1)).End(row), all.End(row));
  }
  for (int64_t row = 0; row < 3; ++row) {
    EXPECT_EQ(s->IntervalsOf(s->SequenceAt(0)).End(row), all.End(row + 2));
  }
  EXPECT_EQ(s->IntervalsOf(s->SequenceAt(1)).End(0), 1);
}

}  // namespace
}  // namespace fusion_attention
