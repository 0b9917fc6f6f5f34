// Calls that no sane program makes: Validate() must answer, with a problem or with a clean text,
// and never crash or overflow (the sanitizer builds watch). Also the cost of a valid call.
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <random>

#include "tests/cc/problem/calls.h"

namespace fusion_attention {
namespace {

class Chaos {
 public:
  explicit Chaos(uint32_t seed) : engine_(seed) {}

  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(engine_() % static_cast<uint64_t>(bound));
  }

  int64_t Value() {
    static const int64_t values[] = {0,
                                     1,
                                     2,
                                     3,
                                     4,
                                     5,
                                     6,
                                     7,
                                     8,
                                     16,
                                     24,
                                     31,
                                     33,
                                     255,
                                     256,
                                     257,
                                     768,
                                     769,
                                     1023,
                                     1024,
                                     1025,
                                     2047,
                                     2048,
                                     3072,
                                     1048576,
                                     1048577,
                                     2097152,
                                     2097153,
                                     int64_t{1} << 31,
                                     int64_t{1} << 40,
                                     int64_t{1} << 62,
                                     std::numeric_limits<int64_t>::max(),
                                     std::numeric_limits<int64_t>::max() - 1,
                                     std::numeric_limits<int64_t>::min(),
                                     std::numeric_limits<int64_t>::min() + 1,
                                     -1,
                                     -2,
                                     -8,
                                     -2048};
    return values[Below(std::size(values))];
  }

  Sizes List(int64_t longest) {
    Sizes list(static_cast<size_t>(Below(longest + 1)));
    for (int64_t& value : list) value = Value();
    return list;
  }

  TensorSpec Tensor() { return {static_cast<DType>(Below(7)), List(7)}; }

  // Replaces one thing in the call.
  void Damage(Call& call) {
    static const double reals[] = {0.0,
                                   0.5,
                                   1.0,
                                   -1.0,
                                   1e-300,
                                   1e300,
                                   1e-9,
                                   1 - 1e-10,
                                   std::numeric_limits<double>::quiet_NaN(),
                                   std::numeric_limits<double>::infinity()};
    TensorSpec* tensors[] = {&call.query, &call.key, &call.value};
    switch (Below(27)) {
      case 0:
        *tensors[Below(3)] = Tensor();
        break;
      case 1:
      case 2:
      case 3: {
        Sizes& shape = tensors[Below(3)]->shape;
        if (!shape.empty())
          shape[static_cast<size_t>(Below(static_cast<int64_t>(shape.size())))] = Value();
        break;
      }
      case 4:
        call.head_num = Value();
        break;
      case 5:
        call.input_layout =
            std::string(static_cast<size_t>(Below(40)), static_cast<char>(Below(256)));
        break;
      case 6:
        call.pse = Tensor();
        break;
      case 7:
        call.padding_mask = Tensor();
        break;
      case 8:
        call.atten_mask = Tensor();
        break;
      case 9:
        SetMask(call, Below(9), {2048, 2048});
        break;
      case 10:
        SetMask(call, 6, {3072, 2048});
        break;
      case 11:
        call.scale = reals[Below(std::size(reals))];
        break;
      case 12:
        call.keep_prob = reals[Below(std::size(reals))];
        break;
      case 13:
        call.pre_tockens = Value();
        break;
      case 14:
        call.next_tockens = Value();
        break;
      case 15:
        call.inner_precise = Value();
        break;
      case 16:
        call.prefix = List(40);
        break;
      case 17:
        call.actual_seq_qlen = List(6);
        break;
      case 18:
        call.actual_seq_kvlen = List(6);
        break;
      case 19:
        call.sparse_mode = Value();
        break;
      case 20:
        call.sink = Tensor();
        break;
      case 21:
        call.dropout_mask = Tensor();
        break;
      case 22:
        call.query_rope = Tensor();
        break;
      case 23:
        call.key_rope = Tensor();
        break;
      case 24:
        call.pse_type = Below(2) == 0 ? Below(4) : Value();
        break;
      case 25:
        call.q_start_idx = List(3);
        break;
      case 26:
        call.kv_start_idx = List(3);
        break;
    }
    if (call.grad && Below(4) == 0) {
      TensorSpec* gradient[] = {&call.grad->dy, &call.grad->attention_in, &call.grad->softmax_max,
                                &call.grad->softmax_sum};
      *gradient[Below(4)] = Tensor();
      call.grad->numels = Value();
    }
  }

 private:
  std::mt19937_64 engine_;
};

void ExpectCleanText(const std::string& message) {
  ASSERT_EQ(message.rfind("npu_fusion_attention: expected ", 0), 0U) << message;
  ASSERT_LE(message.size(), 400U) << message;
  for (const char c : message) ASSERT_TRUE(c >= ' ' && c <= '~') << message;
}

// Everything that a validated problem can be asked.
void Exercise(const Problem& problem) {
  for (int64_t index = 0; index < std::min<int64_t>(problem.sequences(), 4); ++index) {
    const Sequence sequence = problem.SequenceAt(index);
    ASSERT_GE(sequence.q_len, 0);
    ASSERT_GE(sequence.kv_len, 0);
    const RowIntervals keys = problem.IntervalsOf(sequence);
    for (int64_t row = 0; row < sequence.q_len; row += 1 + row) {
      ASSERT_LE(keys.Begin(row), keys.End(row));
      ASSERT_GE(problem.StatisticsIndex(sequence, 0, row), 0);
    }
    ASSERT_GE(problem.MaskedRowSum(sequence), 0.0F);
    ASSERT_LE(std::abs(problem.StartOffset(sequence)), RowIntervals::kUnbounded);
  }
}

TEST(HostileTest, AlwaysAnswers) {
  Call (*const bases[])() = {Dense,    Folded, Packed, Long,     PackedLong,
                             Gradient, Roped,  Slopes, CutSlopes};
  Chaos chaos(3);
  int64_t accepted = 0;
  for (int round = 0; round < 200000; ++round) {
    Call call = bases[chaos.Below(std::size(bases))]();
    for (int64_t damage = chaos.Below(4); damage >= 0; --damage) chaos.Damage(call);
    const StatusOr<Problem> problem = Validate(call);
    if (problem.ok()) {
      ++accepted;
      Exercise(*problem);
    } else {
      ExpectCleanText(problem.status().message());
    }
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(accepted, 5000);
}

// One extreme value in each integer of a valid call, one at a time.
TEST(HostileTest, ExtremesOneAtATime) {
  for (Call (*base)() :
       {Dense, Folded, Packed, Long, PackedLong, Gradient, Roped, Slopes, CutSlopes}) {
    for (const int64_t value :
         {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
      for (int field = 0;; ++field) {
        Call call = base();
        SetMask(call, call.sparse_mode, {2048, 2048});
        std::vector<int64_t*> fields = {&call.head_num,      &call.pre_tockens, &call.next_tockens,
                                        &call.inner_precise, &call.sparse_mode, &call.pse_type};
        const auto add = [&fields](Sizes& list) {
          for (int64_t& entry : list) fields.push_back(&entry);
        };
        add(call.query.shape);
        add(call.key.shape);
        add(call.value.shape);
        add(call.atten_mask->shape);
        if (call.pse) add(call.pse->shape);
        if (call.query_rope) add(call.query_rope->shape);
        if (call.key_rope) add(call.key_rope->shape);
        if (call.q_start_idx) add(*call.q_start_idx);
        if (call.kv_start_idx) add(*call.kv_start_idx);
        if (call.actual_seq_qlen) add(*call.actual_seq_qlen);
        if (call.actual_seq_kvlen) add(*call.actual_seq_kvlen);
        if (call.grad) add(call.grad->dy.shape);
        if (field == static_cast<int>(fields.size())) break;
        *fields[static_cast<size_t>(field)] = value;
        const StatusOr<Problem> problem = Validate(call);
        if (!problem.ok()) ExpectCleanText(problem.status().message());
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Validation must stay a small part of a call's cost: measured 170 ns in a release build. Only the
// best of many rounds counts, so a busy machine does not matter.
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
constexpr double kMostNs = 5000.0;
#else
constexpr double kMostNs = 50000.0;
#endif

TEST(HostileTest, IsCheap) {
  Call call = Dense();
  call.query.shape[0] = call.key.shape[0] = call.value.shape[0] = 2097152;
  SetMask(call, 2, {2048, 2048});
  double best_ns = 1e30;
  for (int round = 0; round < 200; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(Validate(call).ok());
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
    best_ns = std::min(best_ns, taken.count() / 20);
  }
  RecordProperty("validate_ns", std::to_string(best_ns));
  EXPECT_LT(best_ns, kMostNs);
}

}  // namespace
}  // namespace fusion_attention
