// The products of bfloat16 by the CPU's own instruction, against their contract in product_table.h
// written out in double. Every sum has odd and even numbers of terms: one, a pair, one more.
#include <gtest/gtest.h>
#include <hwy/detect_targets.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "src/base/convert.h"
#include "src/cpu/kernels/tables.h"
#include "src/cpu/targets.h"
#include "tests/cc/cpu/array.h"
#include "tests/cc/cpu/reach.h"

namespace fusion_attention::cpu {
namespace {

using Table = ProductTable<float, Bf16>;

constexpr int64_t kKeys[] = {1, 2, 7, 8, 9, 33, 128};
constexpr int64_t kDims[] = {1, 2, 17, 64, 80, 131, 300};
constexpr double kTolerance = 200 * std::numeric_limits<float>::epsilon();

Bf16 Rounded(double x) { return Bf16{Narrow(kBFloat16Format, x)}; }
double ValueOf(Bf16 x) { return Widen(kBFloat16Format, static_cast<uint16_t>(x)); }

// The targets of this CPU that have the instruction, one or none: TheCpuDecides. They are the
// parameters of the tests below, so where there is none, none of those is listed as passed.
std::vector<Kernels> TargetsWithTheInstruction() {
  std::vector<Kernels> targets;
  for (const Kernels& kernels : RunnableKernels()) {
    if (kernels.bf16 != nullptr) targets.push_back(kernels);
  }
  return targets;
}

bool CpuHasTheInstruction() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

TEST(NativeBf16Products, TheCpuDecides) {
  const auto targets = TargetsWithTheInstruction();
  const bool is_built = NativeBf16Products() != nullptr;
  ASSERT_EQ(targets.size(), is_built && CpuHasTheInstruction() ? 1u : 0u);
  for (const Kernels& kernels : RunnableKernels()) {
    const bool is_native = !targets.empty() && kernels.name == std::string("avx512_bf16");
    kernels.For(DType::kBFloat16, [&](const auto&, const auto& products) {
      const bool rounds = std::is_same_v<decltype(products), const Table&>;
      EXPECT_EQ(rounds, is_native) << kernels.name;
    });
  }
}

class ProductsBf16 : public testing::TestWithParam<Kernels> {
 protected:
  const Table& table() const { return *GetParam().bf16; }
  int64_t block_rows() const { return GetParam().f32->block_rows; }
  double Random() { return std::uniform_real_distribution<double>(-1, 1)(engine_); }
  Array<Bf16> RandomRows(int64_t rows, int64_t dim, int64_t ld) {
    Array<Bf16> array(rows * ld);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < dim; ++c) array[r * ld + c] = Rounded(Random());
    }
    return array;
  }
  // A tile of weights [key][row] and which of them are visible; the others are 0, and what lies
  // behind the last key and the last row is not to be read.
  Array<float> RandomTile(const Reach& reach, int64_t rows, int64_t block_rows,
                          Array<BitWord>& visible) {
    const int64_t keys = reach.keys[kBlockVectors - 1];
    Array<float> tile((keys + kKeyPadding) * block_rows);
    for (int64_t n = 0; n < keys + kKeyPadding; ++n) {
      for (int64_t r = 0; r < block_rows; ++r) {
        const bool inside = n < keys && r < rows;
        const bool seen = inside && IsWithin(reach, n, r, block_rows) && engine_() % 2 == 0;
        if (seen) visible[n / kWordBits * block_rows + r] |= BitWord{1} << (n % kWordBits);
        tile[n * block_rows + r] = !inside ? NAN : seen ? static_cast<float>(Random()) : 0.0f;
      }
    }
    return tile;
  }

  std::mt19937 engine_{1};
};

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ProductsBf16);
INSTANTIATE_TEST_SUITE_P(ThisCpu, ProductsBf16, testing::ValuesIn(TargetsWithTheInstruction()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(ProductsBf16, PackMovesBitsOfAnyStrides) {
  const Table& x = table();
  for (const int64_t stride : {1, 3}) {
    for (const int64_t dim : kDims) {
      const int64_t ld = RoundUp(dim, kRowPadding), row = stride * dim + 1;
      Array<Bf16> tensor = RandomRows(5, row, row), packed(5 * ld);
      const SourceRows src{tensor.data(), DType::kBFloat16, row, stride};
      EXPECT_TRUE(x.pack(src, 5, dim, packed.data(), ld));
      for (int64_t r = 0; r < 5; ++r) {
        for (int64_t c = 0; c < ld; ++c) {
          ASSERT_EQ(packed[r * ld + c], c < dim ? tensor[r * row + c * stride] : Bf16{});
        }
      }
      for (const double special : {HUGE_VAL, -HUGE_VAL, double{NAN}}) {
        tensor[3 * row + (dim - 1) * stride] = Rounded(special);
        EXPECT_FALSE(x.pack(src, 5, dim, packed.data(), ld));
      }
    }
  }
}

TEST_P(ProductsBf16, ScoresAreDotProductsTimesTheSign) {
  const Table& x = table();
  const int64_t R = block_rows();
  for (const int64_t rows : {int64_t{1}, R / 3 + 1, R}) {
    for (const int64_t keys : kKeys) {
      for (const int64_t dim : kDims) {
        const int64_t ld = RoundUp(dim, kRowPadding);
        Array<Bf16> query = RandomRows(R, dim, ld), qt(R * ld);
        Array<Bf16> key = RandomRows(keys + kKeyPadding, dim, ld);
        Array<float> s((keys + kKeyPadding) * R), max(R);
        for (const float sign : {1.0f, -1.0f, 0.0f}) {
          x.transpose(query.data(), ld, rows, dim, sign, qt.data());
          x.scores(qt.data(), key.data(), ld, FullReach((rows + R / 3 - 1) / (R / 3), keys), dim,
                   s.data(), max.data());
          for (int64_t r = 0; r < rows; ++r) {
            float largest = -INFINITY;
            for (int64_t n = 0; n < keys; ++n) {
              double sum = 0;
              for (int64_t c = 0; c < dim; ++c) {
                sum += ValueOf(key[n * ld + c]) * ValueOf(query[r * ld + c]);
              }
              ASSERT_NEAR(s[n * R + r], sign * sum, kTolerance);
              largest = std::max(largest, s[n * R + r]);
            }
            ASSERT_EQ(max[r], largest);
          }
        }
      }
    }
  }
}

TEST_P(ProductsBf16, GradientsOfScoresAreScoresThatGoOn) {
  const Table& x = table();
  const int64_t R = block_rows();
  for (const auto& [keys, dim, vectors] : WholeTiles(kKeys, kDims)) {
    const int64_t ld = RoundUp(dim, kRowPadding), size = (keys + kKeyPadding) * R;
    const Reach reach = FullReach(vectors, keys);
    Array<Bf16> dyt = RandomRows(ld, R, R), v = RandomRows(keys + kKeyPadding, dim, ld);
    const int64_t words = (keys + kKeyPadding + kWordBits) / kWordBits * R;
    Array<float> p(size), delta(R), dp(size), ds(size);
    Array<BitWord> keep(words);
    for (int64_t i = 0; i < size; ++i) p[i] = static_cast<float>(Random());
    for (int64_t r = 0; r < R; ++r) delta[r] = static_cast<float>(Random());
    for (int64_t i = 0; i < words; ++i) keep[i] = static_cast<BitWord>(engine_());
    x.scores(dyt.data(), v.data(), ld, reach, dim, dp.data(), nullptr);
    for (const bool drops : {false, true}) {
      Array<float> kept = p.Copy();
      x.gradient_of_scores(dyt.data(), v.data(), ld, reach, dim, kept.data(), delta.data(),
                           drops ? keep.data() : nullptr, ds.data());
      for (int64_t n = 0; n < keys; ++n) {
        for (int64_t r = 0; r < vectors * R / kBlockVectors; ++r) {
          const int64_t i = n * R + r;
          const bool is_kept = !drops || (keep[n / kWordBits * R + r] >> (n % kWordBits) & 1) != 0;
          ASSERT_EQ(ds[i], p[i] * ((is_kept ? dp[i] : 0.0f) - delta[r]));
          ASSERT_EQ(kept[i], is_kept ? p[i] : 0.0f);
        }
      }
    }
  }
}

TEST_P(ProductsBf16, AccumulateTakesRoundedWeights) {
  const Table& x = table();
  const int64_t R = block_rows();
  for (const auto& [keys, dim, reach] : TileShapes(kKeys, kDims)) {
    const int64_t ld = RoundUp(dim, kRowPadding);
    Array<BitWord> visible((keys / kWordBits + 1) * R);
    Array<float> p = RandomTile(reach, R, R, visible), rounded = p.Copy();
    Array<Bf16> value = RandomRows(keys, dim, ld), summands((keys + 1) * ld);
    Array<float> alpha(R), out(ld * R), out_visible(ld * R);
    for (int64_t r = 0; r < R; ++r) alpha[r] = static_cast<float>(Random());
    for (int64_t i = 0; i < ld * R; ++i) out[i] = out_visible[i] = static_cast<float>(i % 7);
    const Bf16* v = x.summands(value.data(), ld, keys, summands.data());
    const Bf16* weights = x.weights(rounded.data(), keys);
    x.accumulate(weights, v, ld, reach, dim, alpha.data(), out.data());
    x.accumulate_visible(weights, v, ld, keys, dim, visible.data(), alpha.data(),
                         out_visible.data());
    for (int64_t c = 0; c < dim; ++c) {
      for (int64_t r = 0; r < R; ++r) {
        double sum = double{alpha[r]} * static_cast<double>((c * R + r) % 7);
        for (int64_t n = 0; n < keys; ++n) {
          sum += ValueOf(Rounded(p[n * R + r])) * ValueOf(value[n * ld + c]);
        }
        ASSERT_NEAR(out[c * R + r], sum, kTolerance);
        ASSERT_EQ(out[c * R + r], out_visible[c * R + r]);
      }
    }
    // A NaN reaches the rows that see its key, and no other.
    const int64_t spoilt = keys / 2;
    for (int64_t c = 0; c < dim; ++c) value[spoilt * ld + c] = Rounded(NAN);
    v = x.summands(value.data(), ld, keys, summands.data());
    std::fill_n(out_visible.data(), ld * R, 0.0f);
    x.accumulate_visible(weights, v, ld, keys, dim, visible.data(), nullptr, out_visible.data());
    for (int64_t r = 0; r < R; ++r) {
      const bool sees = (visible[spoilt / kWordBits * R + r] >> (spoilt % kWordBits) & 1) != 0;
      for (int64_t c = 0; c < dim; ++c) ASSERT_EQ(std::isnan(out_visible[c * R + r]), sees);
    }
  }
}

TEST_P(ProductsBf16, GradientsSumRoundedProductsOverRowsOrKeys) {
  const Table& x = table();
  const int64_t R = block_rows();
  for (const int64_t rows : {int64_t{1}, R - 1, R}) {
    for (const auto& [keys, dim, whole] : TileShapes(kKeys, kDims)) {
      const Reach reach{(rows + R / 3 - 1) / (R / 3), {whole.keys[0], whole.keys[1], keys}};
      const int64_t ld = RoundUp(dim, kRowPadding);
      Array<BitWord> visible((keys / kWordBits + 1) * R);
      Array<float> p = RandomTile(reach, rows, R, visible), ds = p.Copy();
      for (int64_t i = 0; i < keys * R; ++i) ds[i] *= -2.5f;
      Array<Bf16> memory(kGradientTiles<float, Bf16> * (keys + kKeyPadding) * R);
      const auto a = x.gradient_operands(p.data(), ds.data(), keys, rows, memory.data());
      Array<Bf16> dy = RandomRows(rows, dim, ld), key = RandomRows(keys, dim, ld);
      Array<Bf16> of_dy((rows + 1) * ld), of_key((keys + 1) * ld);
      const Bf16* by_row = x.summands(dy.data(), ld, rows, of_dy.data());
      const Bf16* by_key = x.summands(key.data(), ld, keys, of_key.data());
      Array<float> dv(keys * ld), dk(keys * ld), dq(rows * ld);
      Array<float> dv_visible(keys * ld), dq_visible(rows * ld);
      x.gradient_of_keys(a.p, reach, rows, by_row, ld, dv.data());
      x.gradient_of_keys(a.ds, reach, rows, by_row, ld, dk.data());
      x.gradient_of_rows(a.ds_over_keys, reach, rows, by_key, ld, dq.data());
      x.gradient_of_keys_visible(a.p, keys, rows, by_row, ld, visible.data(), dv_visible.data());
      x.gradient_of_rows_visible(a.ds_over_keys, keys, rows, by_key, ld, visible.data(),
                                 dq_visible.data());
      for (int64_t c = 0; c < ld; ++c) {
        for (int64_t n = 0; n < keys; ++n) {
          double v = 0, k = 0;
          for (int64_t r = 0; r < rows; ++r) {
            v += ValueOf(Rounded(p[n * R + r])) * ValueOf(dy[r * ld + c]);
            k += ValueOf(Rounded(ds[n * R + r])) * ValueOf(dy[r * ld + c]);
          }
          ASSERT_NEAR(dv[n * ld + c], v, kTolerance);
          ASSERT_NEAR(dk[n * ld + c], k, 3 * kTolerance);
          ASSERT_EQ(dv[n * ld + c], dv_visible[n * ld + c]);
        }
        for (int64_t r = 0; r < rows; ++r) {
          double q = 0;
          for (int64_t n = 0; n < keys; ++n) {
            q += ValueOf(Rounded(ds[n * R + r])) * ValueOf(key[n * ld + c]);
          }
          ASSERT_NEAR(dq[r * ld + c], q, 3 * kTolerance);
          ASSERT_EQ(dq[r * ld + c], dq_visible[r * ld + c]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fusion_attention::cpu
