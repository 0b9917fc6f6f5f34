// Every kernel but the products on every SIMD target that this CPU has, against its contract in
// kernel_table.h written out in plain loops.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>

#include "src/dropout/philox.h"
#include "tests/cc/cpu/kernel_fixture.h"

namespace fusion_attention::cpu {
namespace {

template <typename T>
class Kernels : public KernelFixture<T> {};
TYPED_TEST_SUITE(Kernels, ArithmeticTypes);

TEST(KernelTables, TargetsDiffer) {
  ASSERT_FALSE(Targets().empty());
  std::set<const void*> tables;
  for (const int64_t target : Targets()) {
    tables.insert(reinterpret_cast<const void*>(KernelsOf<float>(target)->products.scores));
    EXPECT_EQ(KernelsOf<float>(target)->lanes, 2 * KernelsOf<double>(target)->lanes);
  }
  EXPECT_EQ(tables.size(), Targets().size());
  EXPECT_EQ(KernelsOf<float>(0), nullptr);
}

TYPED_TEST(Kernels, PackAndStoreTakeAnyStrides) {
  using T = TypeParam;
  const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    for (const int64_t stride : {1, 3, -1}) {
      for (const int64_t dim : kDims) {
        const int64_t ld = RoundUp(dim, kRowPadding);
        const int64_t row = stride < 0 ? -dim - 2 : stride * dim + 2;
        Array<T> tensor = this->RandomArray(5 * std::abs(row) + dim);
        T* first = stride < 0 ? tensor.data() + 4 * std::abs(row) + dim - 1 : tensor.data();
        Array<T> packed(5 * ld);
        EXPECT_TRUE(k.pack({first, dtype, row, stride}, 5, dim, packed.data(), ld));
        Array<T> back(5 * std::abs(row) + dim);
        T* first_back = back.data() + (first - tensor.data());
        k.store(packed.data(), ld, 5, dim, T{2}, {first_back, dtype, row, stride});
        for (int64_t r = 0; r < 5; ++r) {
          for (int64_t c = 0; c < ld; ++c) {
            const int64_t at = r * row + c * stride;
            ASSERT_EQ(packed[r * ld + c], c < dim ? first[at] : T{0});
            if (c < dim) {
              ASSERT_EQ(first_back[at], 2 * first[at]);
            }
          }
        }
        first[row * 3] = std::numeric_limits<T>::infinity();
        EXPECT_FALSE(k.pack({first, dtype, row, stride}, 5, dim, packed.data(), ld));
      }
    }
  }
}

// A tensor's only row may have any stride; nothing may be computed from it that overflows, which
// the sanitizers would report.
TYPED_TEST(Kernels, TheStrideOfAnOnlyRowDoesNotMatter) {
  using T = TypeParam;
  const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  constexpr int64_t kDim = 64, kRow = int64_t{1} << 61;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    Array<T> row = this->RandomArray(kDim);
    Array<T> packed(kDim), back(kDim);
    EXPECT_TRUE(k.pack({row.data(), dtype, kRow, 1}, 1, kDim, packed.data(), kDim));
    k.store(packed.data(), kDim, 1, kDim, T{1}, {back.data(), dtype, kRow, 1});
    for (int64_t c = 0; c < kDim; ++c) ASSERT_EQ(back[c], row[c]);
  }
}

// Where vectors are whole and aligned, and where an address, a width or a stride forbids it. What
// lies between the rows stays as it is.
TYPED_TEST(Kernels, StreamIsStore) {
  using T = TypeParam;
  const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    constexpr int64_t kRows = 5, kLd = 64;
    Array<T> rows = this->RandomArray(kRows * kLd);
    for (const int64_t begin : {0, 1}) {
      for (const int64_t dim : {64, 48, 37}) {
        for (const int64_t row : {128, 67}) {
          Array<T> stored(kRows * 128 + 1), streamed(kRows * 128 + 1);
          k.store(rows.data(), kLd, kRows, dim, T{1}, {stored.data() + begin, dtype, row, 1});
          k.stream(rows.data(), kLd, kRows, dim, {streamed.data() + begin, dtype, row, 1});
          for (int64_t i = 0; i < kRows * 128 + 1; ++i) ASSERT_EQ(streamed[i], stored[i]);
        }
      }
    }
  }
}

// A stored bias with its own row stride at an odd address, and a line, which kernels read backwards
// from key to key.
TYPED_TEST(Kernels, BiasIsAddedBeforeOrAfterTheScale) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const int64_t keys : kKeys) {
      const int64_t ld = RoundUp(keys, 4) + 1;
      Array<T> s = this->RandomArray((keys + kKeyPadding) * R),
               bias = this->RandomArray(R * ld + 1), max(R);
      const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
      for (const auto& [score_factor, bias_factor] :
           {std::pair{T{1}, T{-1}}, std::pair{T{0.3}, T{1}}, std::pair{T{0}, T{1}}}) {
        for (const bool is_line : {false, true}) {
          Array<T> t((keys + kKeyPadding) * R);
          std::copy_n(s.data(), keys * R, t.data());
          if (is_line) {
            k.add_line(t.data(), bias.data() + keys - 1, keys, score_factor, bias_factor,
                       max.data());
          } else {
            k.add_bias(t.data(), {bias.data() + 1, dtype, ld, 1}, keys, score_factor, bias_factor,
                       max.data());
          }
          for (int64_t r = 0; r < R; ++r) {
            T largest = -std::numeric_limits<T>::infinity();
            for (int64_t n = 0; n < keys; ++n) {
              const T added = is_line ? bias[keys - 1 + r - n] : bias[1 + r * ld + n];
              const double expected =
                  double{score_factor} * s[n * R + r] + double{bias_factor} * added;
              ASSERT_NEAR(t[n * R + r], expected, 4 * std::numeric_limits<T>::epsilon());
              largest = std::max(largest, t[n * R + r]);
            }
            ASSERT_EQ(max[r], largest);
          }
        }
      }
    }
  }
}

// Every 16-bit number, read in transposed squares, is what pack makes of it.
TEST(Kernels16, BiasOf16BitsIsExact) {
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<float>(target);
    const int64_t R = k.block_rows;
    const int64_t keys = 64;
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (int64_t start = 0; start < (1 << 16); start += R * keys) {
        Array<uint16_t> bias(R * keys);
        for (int64_t i = 0; i < R * keys; ++i) bias[i] = static_cast<uint16_t>(start + i);
        Array<float> packed(R * keys), s((keys + kKeyPadding) * R);
        k.pack({bias.data(), dtype, keys, 1}, R, keys, packed.data(), keys);
        k.add_bias(s.data(), {bias.data(), dtype, keys, 1}, keys, 0, 1, nullptr);
        for (int64_t r = 0; r < R; ++r) {
          for (int64_t n = 0; n < keys; ++n) {
            const float expected = packed[r * keys + n];
            ASSERT_TRUE(std::isnan(expected) ? std::isnan(s[n * R + r]) : s[n * R + r] == expected);
          }
        }
      }
    }
  }
}

TYPED_TEST(Kernels, LineProductsAreSumsInDouble) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const int64_t keys : kKeys) {
      Array<T> ds = this->RandomArray(keys * R);
      Array<double> line(keys + R - 1), sums(R);
      for (int64_t i = 0; i < keys + R - 1; ++i) line[i] = double{this->Random()};
      const double* middle = line.data() + keys - 1;
      k.line_products(ds.data(), middle, keys, sums.data());
      for (int64_t r = 0; r < R; ++r) {
        double sum = 0;
        for (int64_t n = 0; n < keys; ++n) sum += double{ds[n * R + r]} * middle[r - n];
        ASSERT_NEAR(sums[r], sum, 1e-14);
      }
    }
  }
}

TYPED_TEST(Kernels, SoftmaxInTwoStepsEqualsTheDefinition) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    constexpr int64_t kCount = 33;
    Array<T> first = this->RandomArray(kCount * R), second = this->RandomArray(kCount * R);
    Array<BitWord> visible = this->RandomBits(kCount, R);
    for (int64_t r = 0; r < R; ++r)
      visible[r] = r == 2 ? 0 : visible[r] | 1;  // row 2 sees nothing yet
    for (int64_t r = 0; r < R; ++r) visible[R + r] = r == 2 ? 0 : visible[R + r];
    Array<T> s1(kCount * R), s2(kCount * R), max(R), m(R), l(R), alpha(R);
    std::copy_n(first.data(), kCount * R, s1.data());
    std::copy_n(second.data(), kCount * R, s2.data());
    std::fill_n(m.data(), R, -std::numeric_limits<T>::infinity());
    k.mask(s1.data(), visible.data(), kCount, max.data());
    k.online_softmax(s1.data(), kCount, R, T{3}, max.data(), m.data(), l.data(), alpha.data());
    EXPECT_EQ(l[2], T{0});
    for (int64_t r = 0; r < R; ++r) {
      T largest = second[r];
      for (int64_t n = 1; n < kCount; ++n) largest = std::max(largest, second[n * R + r]);
      max[r] = largest;
    }
    k.online_softmax(s2.data(), kCount, R, T{3}, max.data(), m.data(), l.data(), alpha.data());
    for (int64_t r = 0; r < R; ++r) {
      double largest = -INFINITY, sum = 0;
      for (int64_t n = 0; n < kCount; ++n) {
        if (this->Bit(visible, R, n, r)) largest = std::max(largest, 3.0 * first[n * R + r]);
        largest = std::max(largest, 3.0 * second[n * R + r]);
      }
      for (int64_t n = 0; n < kCount; ++n) {
        const double e = std::exp(3.0 * first[n * R + r] - largest);
        if (!this->Bit(visible, R, n, r)) {
          ASSERT_EQ(s1[n * R + r], T{0});
        }
        if (this->Bit(visible, R, n, r)) {
          sum += e;
          ASSERT_NEAR(s1[n * R + r] * alpha[r], e, this->Tolerance());
        }
        sum += std::exp(3.0 * second[n * R + r] - largest);
      }
      ASSERT_NEAR(m[r], largest, this->Tolerance());
      ASSERT_NEAR(l[r], sum, this->Tolerance() * sum);
    }
  }
}

// exp is bare in Probabilities with scale 1, maximum 0 and weight 1. The bound is the one that
// docs/numerics.md derives.
TYPED_TEST(Kernels, ProbabilitiesAreExpFromTheFirstNormalNumberOn) {
  using T = TypeParam;
  constexpr T kLowest = sizeof(T) == 4 ? T{-87.33} : T{-708};
  constexpr int64_t kCount = 127;  // 31 fours, a two and a one
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    Array<T> max(R), weight(R);
    std::fill_n(weight.data(), R, T{1});
    Array<T> x((kCount + kKeyPadding) * R);
    for (int64_t i = 0; i < kCount * R; ++i) {
      x[i] = kLowest * static_cast<T>(i) / static_cast<T>(kCount * R);
    }
    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    const T special[] = {T{0}, -T{0}, -inf, nan, kLowest - 1, std::numeric_limits<T>::lowest()};
    std::copy(std::begin(special), std::end(special), x.data() + 3 * R);
    Array<T> e = x.Copy();
    k.probabilities(e.data(), kCount, T{1}, max.data(), weight.data(), nullptr);
    constexpr double kUnit = std::numeric_limits<T>::epsilon() / 2;
    const double growth = sizeof(T) == 4 && target != HWY_SSE4 ? 0.25 : 1.25;
    for (int64_t i = 0; i < kCount * R; ++i) {
      if (i >= 3 * R && i < 3 * R + 6) continue;
      const double exact = std::exp(static_cast<double>(x[i]));
      ASSERT_NEAR(e[i], exact, (2.6 + growth * std::abs(x[i])) * kUnit * exact) << x[i];
    }
    const T* s = e.data() + 3 * R;
    EXPECT_EQ(s[0], 1);
    EXPECT_EQ(s[1], 1);
    EXPECT_EQ(s[2], 0);
    EXPECT_TRUE(std::isnan(s[3]));
    EXPECT_EQ(s[4], 0);
    EXPECT_EQ(s[5], 0);
  }
}

TYPED_TEST(Kernels, ScoreGradientsSelect) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    constexpr int64_t kCount = 40;
    Array<BitWord> visible = this->RandomBits(kCount, R), keep = this->RandomBits(kCount, R);
    Array<T> s = this->RandomArray(kCount * R), dp = this->RandomArray(kCount * R);
    Array<T> max = this->RandomArray(R), weight = this->RandomArray(R),
             delta = this->RandomArray(R);
    Array<T> p(kCount * R), ds(kCount * R);
    std::copy_n(s.data(), kCount * R, p.data());
    std::copy_n(dp.data(), kCount * R, ds.data());
    for (int64_t r = 0; r < R; ++r) {
      if (!this->Bit(visible, R, 5, r)) ds[5 * R + r] = NAN;
    }
    k.probabilities(p.data(), kCount, T{2}, max.data(), weight.data(), visible.data());
    k.score_gradients(p.data(), ds.data(), kCount, delta.data(), visible.data(), keep.data());
    for (int64_t n = 0; n < kCount; ++n) {
      for (int64_t r = 0; r < R; ++r) {
        const double full = std::exp(2.0 * s[n * R + r] - max[r]) * weight[r];
        const bool seen = this->Bit(visible, R, n, r), kept = this->Bit(keep, R, n, r);
        const double gradient = full * ((kept ? dp[n * R + r] : 0.0) - delta[r]);
        ASSERT_NEAR(p[n * R + r], seen && kept ? full : 0.0, 20 * this->Tolerance());
        ASSERT_NEAR(ds[n * R + r], seen ? gradient : 0.0, 60 * this->Tolerance());
      }
    }
  }
}

// Rows that all begin with a block of Philox and rows at every phase of one, blocks that cross
// 2^32.
// Of every dtype, because words of which few bits count are compared together.
TYPED_TEST(Kernels, KeepBitsAreTheDefinition) {
  using T = TypeParam;
  constexpr uint64_t kSeed = 0xFEDCBA9876543210u, kOffset = 0x123456789ABCu;
  std::vector<KeepThreshold> rules{{.low_mask = 0, .threshold = 1}};  // keeps nothing
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const double keep_prob : {0.9, 0.5, 1 - 1e-8, 1e-8}) {
      rules.push_back(KeepThresholdOf(dtype, keep_prob));
    }
  }
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const KeepThreshold rule : rules) {
      for (const uint64_t first : {uint64_t{0}, uint64_t{7}, uint64_t{0x3FFFFFFE0}}) {
        for (const uint64_t row_stride : {uint64_t{1000}, uint64_t{1001}, uint64_t{0x500000003}}) {
          for (const int64_t keys : {1, 32, 33, 64, 70}) {
            Array<BitWord> keep(3 * R);
            k.keep_bits(first, row_stride, keys, {kSeed, kOffset, rule.low_mask, rule.threshold},
                        keep.data());
            for (int64_t r = 0; r < R; ++r) {
              for (int64_t n = 0; n < keys; ++n) {
                const uint64_t element =
                    first + static_cast<uint64_t>(r) * row_stride + static_cast<uint64_t>(n);
                ASSERT_EQ(this->Bit(keep, R, n, r), Keep(kSeed, kOffset, element, rule));
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace fusion_attention::cpu
