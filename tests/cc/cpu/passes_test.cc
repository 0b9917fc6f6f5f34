// Laws of the two passes that hold bit for bit on every SIMD target: ropes are channels behind the
// others, slopes are a bias, and gradients do not depend on the number of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "src/problem/shapes.h"
#include "tests/cc/cpu/call.h"

namespace fusion_attention::cpu {
namespace {

// Long enough that three threads share its grids and the halves of their keys.
Problem LongProblem(DType dtype) {
  Problem p;
  p.dtype = dtype;
  p.layout = Layout::kBSND;
  p.batch = 1;
  p.q_heads = 4;
  p.kv_heads = 2;
  p.q_len = 301;
  p.kv_len = 533;
  p.head_dim = 20;
  p.value_dim = 18;
  p.scale = -0.3;
  p.numels = p.q_heads * p.q_len * p.kv_len;
  return p;
}

// Two sequences and tokens of none behind them.
Problem PackedProblem(DType dtype) {
  Problem p = LongProblem(dtype);
  p.layout = Layout::kTND;
  p.q_len = 150;
  p.kv_len = 170;
  p.packed = {{.batch = 0, .q_len = 65, .kv_len = 80},
              {.batch = 1, .q_begin = 65, .q_len = 70, .kv_begin = 80, .kv_len = 75}};
  p.batch = 2;
  p.mask.full = false;
  p.mask.sparse_mode = 3;
  return p;
}

// `own` with the channels of `rope` behind its own.
Tensor Joined(const Problem& p, const Tensor& own, const Tensor& rope, int64_t heads,
              int64_t tokens) {
  Tensor joined(p, heads, tokens, own.dim + rope.dim);
  const auto size = static_cast<size_t>(SizeOf(p.dtype));
  const size_t own_row = static_cast<size_t>(own.dim) * size;
  const size_t rope_row = static_cast<size_t>(rope.dim) * size;
  char* to = joined.bytes.data();
  for (size_t row = 0; row * own_row < own.bytes.size(); ++row) {
    std::memcpy(to, own.bytes.data() + row * own_row, own_row);
    std::memcpy(to + own_row, rope.bytes.data() + row * rope_row, rope_row);
    to += own_row + rope_row;
  }
  return joined;
}

void ExpectSameAttention(const Results& a, const Results& b) {
  EXPECT_EQ(a.out.bytes, b.out.bytes);
  EXPECT_EQ(a.max, b.max);
  EXPECT_EQ(a.sum, b.sum);
  EXPECT_EQ(a.dv.bytes, b.dv.bytes);
}

void ExpectRopesToBeChannels(const Problem& p, const Kernels& kernels, int threads) {
  SCOPED_TRACE(testing::Message() << kernels.name << " " << Name(p.dtype) << " rope " << p.rope_dim
                                  << " threads " << threads);
  const Operands parts(p, 1);
  Problem joined = p;
  joined.head_dim += p.rope_dim;
  joined.rope_dim = 0;
  Operands whole(joined, 1);
  whole.query = Joined(p, parts.query, parts.query_rope, p.q_heads, p.q_len);
  whole.key = Joined(p, parts.key, parts.key_rope, p.kv_heads, p.kv_len);
  whole.value = parts.value;
  whole.dy = parts.dy;
  const Results a = RunBoth(p, parts, kernels, threads);
  const Results b = RunBoth(joined, whole, kernels, threads);
  ExpectSameAttention(a, b);
  EXPECT_EQ(Joined(p, a.dq, a.dq_rope, p.q_heads, p.q_len).bytes, b.dq.bytes);
  EXPECT_EQ(Joined(p, a.dk, a.dk_rope, p.kv_heads, p.kv_len).bytes, b.dk.bytes);
}

TEST(CpuPasses, RopesAreChannelsBehindTheOthers) {
  for (const Kernels& kernels : RunnableKernels()) {
    for (const DType dtype :
         {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
      for (Problem p : {LongProblem(dtype), PackedProblem(dtype)}) {
        for (const int64_t rope_dim : {1, 20}) {
          p.rope_dim = rope_dim;
          for (const int threads : {1, 3}) ExpectRopesToBeChannels(p, kernels, threads);
        }
      }
    }
    // More channels than pass at once.
    Problem p = PackedProblem(DType::kFloat32);
    p.head_dim = 150;
    p.rope_dim = 147;
    ExpectRopesToBeChannels(p, kernels, 1);
  }
}

double Distance(const Problem& p, const Sequence& sequence, int64_t row, int64_t key) {
  const double d = std::abs(static_cast<double>(key - row + p.StartOffset(sequence)));
  return -(p.pse.distance == PseDistance::kLinear ? d : std::sqrt(d));
}

PseSpec Slopes(PseDistance distance, int64_t start_offset, int64_t batch) {
  return {.kind = PseKind::kSlopes,
          .after_scale = true,
          .distance = distance,
          .start_offset = start_offset,
          .batch = batch,
          .rows = 1,
          .keys = 1};
}

// Against the same numbers given as a bias, and its gradient summed here.
void ExpectSlopesToBeABias(const Problem& p, const Kernels& kernels) {
  SCOPED_TRACE(testing::Message() << kernels.name << " " << Name(p.dtype) << " " << Name(p.layout)
                                  << " scale " << p.scale << " root "
                                  << (p.pse.distance == PseDistance::kSquareRoot));
  Operands o(p, 1);
  o.pse = {0.125f, 0.01f, -0.02f, 0.0f};
  Problem dense = p;
  dense.pse = {.kind = PseKind::kDense,
               .after_scale = true,
               .batch = p.sequences(),
               .rows = p.q_len,
               .keys = p.kv_len};
  Operands biased = o;
  biased.pse.clear();
  for (int64_t s = 0; s < p.sequences(); ++s) {
    for (const double slope : o.pse) {
      for (int64_t row = 0; row < p.q_len; ++row) {
        for (int64_t key = 0; key < p.kv_len; ++key) {
          biased.pse.push_back(slope * Distance(p, p.SequenceAt(s), row, key));
        }
      }
    }
  }
  const Results a = RunBoth(p, o, kernels, 1);
  const Results b = RunBoth(dense, biased, kernels, 1);
  ExpectSameAttention(a, b);
  EXPECT_EQ(a.dq.bytes, b.dq.bytes);
  EXPECT_EQ(a.dk.bytes, b.dk.bytes);
  for (int64_t head = 0; head < p.q_heads; ++head) {
    double sum = 0, size = 0;
    for (int64_t s = 0; s < p.sequences(); ++s) {
      for (int64_t row = 0; row < p.q_len; ++row) {
        for (int64_t key = 0; key < p.kv_len; ++key) {
          // dpse of a bias that comes after the scale is dS itself.
          const int64_t at = ((s * p.q_heads + head) * p.q_len + row) * p.kv_len + key;
          const double term =
              b.dpse[static_cast<size_t>(at)] * Distance(p, p.SequenceAt(s), row, key);
          sum += term;
          size += std::abs(term);
        }
      }
    }
    EXPECT_NEAR(a.dpse[static_cast<size_t>(head)], sum,
                1e-12 * size + std::ldexp(std::abs(sum), -24));
  }
}

TEST(CpuPasses, SlopesAreTheBiasThatTheyStandFor) {
  for (const Kernels& kernels : RunnableKernels()) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      for (const PseDistance distance : {PseDistance::kLinear, PseDistance::kSquareRoot}) {
        Problem p = LongProblem(dtype);
        p.pse = Slopes(distance, -40, 1);
        for (const double scale : {0.5, -0.5, 0.0}) {
          p.scale = scale;
          ExpectSlopesToBeABias(p, kernels);
        }
        // Mode 8: only the first sequence starts elsewhere.
        p = PackedProblem(dtype);
        p.mask.sparse_mode = 8;
        p.mask.band_sequence = 0;
        p.mask.pre_tockens = 30;
        p.pse = Slopes(distance, -15, 1);
        ExpectSlopesToBeABias(p, kernels);
      }
    }
  }
}

// Several columns of keys, whose sums of dQ go from thread to thread.
TEST(CpuPasses, GradientsDependOnNoSchedule) {
  for (const Kernels& kernels : RunnableKernels()) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const int64_t sparse_mode : {0, 3}) {
        SCOPED_TRACE(testing::Message()
                     << kernels.name << " " << Name(dtype) << " " << sparse_mode);
        Problem p = LongProblem(dtype);
        p.q_heads = p.kv_heads = 1;
        p.head_dim = p.value_dim = 250;  // 1024 keys are a chunk
        p.kv_len = 1300;
        p.mask.full = sparse_mode == 0;
        p.mask.sparse_mode = sparse_mode;
        const Operands o(p, 1);
        const Results expected = RunBoth(p, o, kernels, 1);
        for (const int threads : {2, 3, 7}) {
          const Results actual = RunBoth(p, o, kernels, threads);
          EXPECT_EQ(actual.dq.bytes, expected.dq.bytes) << threads;
          EXPECT_EQ(actual.dk.bytes, expected.dk.bytes) << threads;
          EXPECT_EQ(actual.dv.bytes, expected.dv.bytes) << threads;
        }
      }
    }
  }
}

// One slope for each sequence and one for all, under every schedule.
TEST(CpuPasses, SlopeGradientsDependOnNoSchedule) {
  for (const Kernels& kernels : RunnableKernels()) {
    for (Problem p : {LongProblem(DType::kFloat32), PackedProblem(DType::kBFloat16)}) {
      SCOPED_TRACE(kernels.name);
      p.pse = Slopes(PseDistance::kSquareRoot, int64_t{1} << 40, p.sequences());
      Operands o(p, 1);
      for (int64_t i = 0; i < p.sequences() * p.q_heads; ++i) {
        o.pse.push_back(std::ldexp(1.0, -20 - static_cast<int>(i % p.q_heads)));
      }
      const std::vector<double> expected = RunBoth(p, o, kernels, 1).dpse;
      EXPECT_EQ(RunBoth(p, o, kernels, 3).dpse, expected);
      EXPECT_EQ(RunBoth(p, o, kernels, 16).dpse, expected);
      for (const double slope : expected) EXPECT_NE(slope, 0);

      const int64_t sequences = p.sequences();
      p.pse.batch = 1;
      o.pse.resize(static_cast<size_t>(p.q_heads));
      const std::vector<double> shared = RunBoth(p, o, kernels, 1).dpse;
      EXPECT_EQ(RunBoth(p, o, kernels, 3).dpse, shared);
      for (int64_t head = 0; head < p.q_heads; ++head) {
        double sum = 0;
        for (int64_t s = 0; s < sequences; ++s) {
          sum += expected[static_cast<size_t>(s * p.q_heads + head)];
        }
        EXPECT_NEAR(shared[static_cast<size_t>(head)], sum, 1e-6 * std::abs(sum));
      }
    }
  }
}

// A gradient of pse is written whole where there is no score that it could come from.
TEST(CpuPasses, BiasOfNoScoresHasNoGradient) {
  for (const Kernels& kernels : RunnableKernels()) {
    SCOPED_TRACE(kernels.name);
    for (const bool no_batch : {false, true}) {
      Problem p = LongProblem(DType::kFloat32);
      (no_batch ? p.batch : p.q_len) = 0;
      p.numels = 0;
      p.pse = {.kind = PseKind::kDense, .batch = 1, .rows = 1, .keys = p.kv_len};
      Operands o(p, 1);
      o.pse.assign(static_cast<size_t>(p.q_heads * p.kv_len), 1);
      for (const double gradient : RunBoth(p, o, kernels, 1).dpse) ASSERT_EQ(gradient, 0);
    }
  }
}

// With a scale of 1 there is no difference, with any other the bias keeps its size.
TEST(CpuPasses, BiasBeforeAndAfterTheScale) {
  for (const Kernels& kernels : RunnableKernels()) {
    SCOPED_TRACE(kernels.name);
    Problem p = LongProblem(DType::kFloat32);
    p.scale = 1;
    p.pse = {.kind = PseKind::kDense, .batch = 1, .rows = 1, .keys = p.kv_len};
    Operands o(p, 1);
    for (int64_t i = 0; i < p.q_heads * p.kv_len; ++i) {
      o.pse.push_back(std::sin(static_cast<double>(i)));
    }
    const Results before = RunBoth(p, o, kernels, 1);
    p.pse.after_scale = true;
    const Results after = RunBoth(p, o, kernels, 1);
    ExpectSameAttention(before, after);
    EXPECT_EQ(before.dpse, after.dpse);

    // A power of two as scale moves no bit of bias / scale.
    for (const double scale : {0.25, -0.25}) {
      p.scale = scale;
      p.pse.after_scale = true;
      const Results whole = RunBoth(p, o, kernels, 1);
      Operands divided = o;
      for (double& x : divided.pse) x /= scale;
      p.pse.after_scale = false;
      const Results early = RunBoth(p, divided, kernels, 1);
      ExpectSameAttention(whole, early);
      for (size_t i = 0; i < whole.dpse.size(); ++i) {
        EXPECT_EQ(whole.dpse[i] * scale, early.dpse[i]);
      }
    }
  }
}

}  // namespace
}  // namespace fusion_attention::cpu
