// Sequences, places of statistics, compressed pse and strides, each against its definition.
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "fusion_attention/tensor_view.h"
#include "tests/cc/problem/calls.h"

namespace fusion_attention {
namespace {

TEST(SequenceTest, Dense) {
  const StatusOr<Problem> problem = Validate(Dense());
  const Sequence second = problem->SequenceAt(1);
  EXPECT_EQ(second.batch, 1);
  EXPECT_EQ(second.q_begin, 0);
  EXPECT_EQ(second.kv_begin, 0);
  EXPECT_EQ(second.q_len, 16);
  EXPECT_EQ(second.kv_len, 24);
  EXPECT_EQ(second.dropout_begin, 4 * 16 * 24);
}

TEST(SequenceTest, Packed) {
  Call call = Packed();
  call.actual_seq_qlen = {3, 3, 8, 0};
  call.actual_seq_kvlen = {4, 6, 9, 0};
  const StatusOr<Problem> problem = Validate(call);
  ASSERT_EQ(problem->sequences(), 3);
  const Sequence empty = problem->SequenceAt(1), last = problem->SequenceAt(2);
  EXPECT_EQ(empty.q_len, 0);
  EXPECT_EQ(empty.kv_len, 2);
  EXPECT_EQ(last.batch, 2);
  EXPECT_EQ(last.q_begin, 3);
  EXPECT_EQ(last.q_len, 5);
  EXPECT_EQ(last.kv_begin, 6);
  EXPECT_EQ(last.kv_len, 3);
  EXPECT_EQ(last.dropout_begin, 4 * 3 * 4);
  EXPECT_EQ(problem->numels, 4 * (3 * 4 + 5 * 3));
}

// Visits every row's statistics in the order that memory must have.
void ExpectConsecutive(const Problem& problem, const std::vector<Sizes>& order) {
  int64_t next = 0;
  for (const Sizes& place : order) {
    EXPECT_EQ(problem.StatisticsIndex(problem.SequenceAt(place[0]), place[1], place[2]), next);
    next += 8;
  }
}

TEST(StatisticsTest, DenseIsBatchHeadRow) {
  const StatusOr<Problem> problem = Validate(Dense());
  std::vector<Sizes> order;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t n = 0; n < 4; ++n) {
      for (int64_t i = 0; i < 16; ++i) order.push_back({b, n, i});
    }
  }
  ExpectConsecutive(*problem, order);
}

TEST(StatisticsTest, PackedIsSequenceHeadRow) {
  const StatusOr<Problem> problem = Validate(Packed());
  std::vector<Sizes> order;
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t n = 0; n < 4; ++n) {
      for (int64_t i = 0; i < problem->packed[b].q_len; ++i) order.push_back({b, n, i});
    }
  }
  ExpectConsecutive(*problem, order);
}

TEST(StatisticsTest, SoftmaxLayoutTndIsTokenHead) {
  Call call = Packed();
  call.softmax_layout = "TND";
  const StatusOr<Problem> problem = Validate(call);
  std::vector<Sizes> order;
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t i = 0; i < problem->packed[b].q_len; ++i) {
      for (int64_t n = 0; n < 4; ++n) order.push_back({b, n, i});
    }
  }
  ExpectConsecutive(*problem, order);
}

TEST(StatisticsTest, MaskedRowSum) {
  Call call = Packed();
  StatusOr<Problem> problem = Validate(call);
  EXPECT_EQ(problem->MaskedRowSum(problem->SequenceAt(2)), 6.0F);
  call.inner_precise = 2;
  problem = Validate(call);
  EXPECT_EQ(problem->MaskedRowSum(problem->SequenceAt(2)), std::numeric_limits<float>::max());
}

// Each visible score reads a stored element on its own diagonal; the last 1024 rows read their own.
void ExpectSameDiagonal(const Problem& problem) {
  for (int64_t index = 0; index < problem.sequences(); ++index) {
    const Sequence sequence = problem.SequenceAt(index);
    for (int64_t row = 0; row < sequence.q_len; row += 1 + row % 7) {
      for (int64_t key = 0; key <= row; key += 1 + key % 5) {
        const PseElement element = problem.CompressedPse(sequence, row, key);
        ASSERT_GE(element.row, 0);
        ASSERT_LT(element.row, 1024);
        ASSERT_GE(element.key, 0);
        ASSERT_LT(element.key, problem.pse.keys);
        // Measured from the bottom-right corners.
        const int64_t stored = (1023 - element.row) - (problem.pse.keys - 1 - element.key);
        ASSERT_EQ(stored, (sequence.q_len - 1 - row) - (sequence.kv_len - 1 - key));
        if (row >= sequence.q_len - 1024) {
          ASSERT_EQ(element.row, row - (sequence.q_len - 1024));
        } else {
          ASSERT_EQ(element.row, row % 1024);
        }
      }
    }
  }
}

TEST(CompressedPseTest, Dense) {
  Call call = Long();
  SetLengths(call, 2500, 2500);
  call.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 2500}};
  const StatusOr<Problem> problem = Validate(call);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  ExpectSameDiagonal(*problem);
}

TEST(CompressedPseTest, PackedShorterAndLonger) {
  Call call = PackedLong();
  SetEnds(call, {1200, 1207, 3707}, {1200, 1207, 3707});
  call.pse->shape = {1, 4, 1024, 2500};
  const StatusOr<Problem> problem = Validate(call);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  ExpectSameDiagonal(*problem);
}

TEST(StartOffsetTest, CountsForEverySequence) {
  Call call = Packed();
  call.pse = TensorSpec{DType::kFloat32, {4}};
  call.pse_type = 2;
  call.q_start_idx = {10};
  call.kv_start_idx = {13};
  const StatusOr<Problem> problem = Validate(call);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  for (int64_t n = 0; n < 3; ++n) EXPECT_EQ(problem->StartOffset(problem->SequenceAt(n)), 3);
}

TEST(StartOffsetTest, IsThatOfTheCutSequenceInMode8) {
  Call call = CutSlopes();
  StatusOr<Problem> problem = Validate(call);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  EXPECT_EQ(problem->StartOffset(problem->SequenceAt(0)), -2);
  for (int64_t n = 1; n < 3; ++n) EXPECT_EQ(problem->StartOffset(problem->SequenceAt(n)), 0);
  call.atten_mask.reset();  // the mode is then ignored
  problem = Validate(call);
  EXPECT_EQ(problem->StartOffset(problem->SequenceAt(2)), -2);
}

// Every layout enumerates its buffer exactly once, with channels of one head side by side.
TEST(StridesTest, EachElementOnce) {
  const int64_t batch = 2, heads = 3, tokens = 5, dim = 4;
  for (const Layout layout :
       {Layout::kBSH, Layout::kSBH, Layout::kBNSD, Layout::kBSND, Layout::kTND}) {
    const Strides s = ContiguousStrides(layout, batch, heads, tokens, dim);
    const int64_t batches = layout == Layout::kTND ? 1 : batch;
    std::set<int64_t> places;
    for (int64_t b = 0; b < batches; ++b) {
      for (int64_t n = 0; n < heads; ++n) {
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t d = 0; d < dim; ++d) {
            places.insert(b * s.batch + n * s.head + t * s.token + d * s.channel);
          }
        }
      }
    }
    EXPECT_EQ(static_cast<int64_t>(places.size()), batches * heads * tokens * dim);
    EXPECT_EQ(*places.rbegin(), batches * heads * tokens * dim - 1);
    EXPECT_EQ(s.channel, 1);
  }
}

TEST(StridesTest, AxesAreWhereTheNameSays) {
  const auto stride = [](Layout layout) { return ContiguousStrides(layout, 2, 3, 5, 4); };
  EXPECT_EQ(stride(Layout::kBNSD).head, 5 * 4);
  EXPECT_EQ(stride(Layout::kBSND).token, 3 * 4);
  EXPECT_EQ(stride(Layout::kSBH).token, 2 * 3 * 4);
  EXPECT_EQ(stride(Layout::kSBH).batch, 3 * 4);
  EXPECT_EQ(stride(Layout::kTND).token, 3 * 4);
  EXPECT_EQ(stride(Layout::kTND).batch, 0);
}

}  // namespace
}  // namespace fusion_attention
