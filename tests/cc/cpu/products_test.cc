// The products of the arithmetic type itself on every SIMD target that this CPU has, against their
// contract in product_table.h written out in double. Those of bfloat16 have a test of their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "tests/cc/cpu/kernel_fixture.h"
#include "tests/cc/cpu/reach.h"

namespace fusion_attention::cpu {
namespace {

template <typename T>
class Products : public KernelFixture<T> {};
TYPED_TEST_SUITE(Products, ArithmeticTypes);

TYPED_TEST(Products, TransposesAreInverse) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const int64_t rows : {int64_t{1}, R - 1, R}) {
      for (const int64_t dim : kDims) {
        const int64_t ld = RoundUp(dim, kRowPadding);
        Array<T> src = this->RandomArray(R * ld), t(ld * R), back(R * ld), factor(R);
        for (int64_t r = 0; r < R; ++r) factor[r] = static_cast<T>(r + 1);
        k.products.transpose(src.data(), ld, rows, dim, T{-1}, t.data());
        k.transpose_back(t.data(), rows, dim, factor.data(), back.data(), ld);
        for (int64_t c = 0; c < dim; ++c) {
          for (int64_t r = 0; r < R; ++r) {
            ASSERT_EQ(t[c * R + r], r < rows ? -src[r * ld + c] : T{0});
            if (r < rows) {
              ASSERT_EQ(back[r * ld + c], -src[r * ld + c] * (r + 1));
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(Products, ScoresAreDotProductsWithinReach) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const int64_t keys : kKeys) {
      for (const Reach& reach :
           {FullReach(1, keys), FullReach(2, keys), FullReach(3, keys), RaggedReach(keys)}) {
        for (const int64_t dim : kDims) {
          const int64_t ld = RoundUp(dim, kRowPadding);
          Array<T> qt = this->RandomArray(ld * R),
                   key = this->RandomArray((keys + kKeyPadding) * ld);
          Array<T> s((keys + kKeyPadding) * R), max(R);
          k.products.scores(qt.data(), key.data(), ld, reach, dim, s.data(), max.data());
          for (int64_t r = 0; r < reach.vectors * k.lanes; ++r) {
            T largest = -std::numeric_limits<T>::infinity();
            for (int64_t n = 0; n < keys; ++n) {
              if (!IsWithin(reach, n, r, R)) continue;
              double sum = 0;
              for (int64_t c = 0; c < dim; ++c) sum += double{key[n * ld + c]} * qt[c * R + r];
              ASSERT_NEAR(s[n * R + r], sum, this->Tolerance());
              largest = std::max(largest, s[n * R + r]);
            }
            if (reach.keys[0] == keys) {
              ASSERT_EQ(max[r], largest);
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(Products, GradientsOfScoresAreScoresThatGoOn) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const auto& [keys, dim, vectors] : WholeTiles(kKeys, kDims)) {
      const int64_t ld = RoundUp(dim, kRowPadding), size = (keys + kKeyPadding) * R;
      const Reach reach = FullReach(vectors, keys);
      Array<T> dyt = this->RandomArray(ld * R), v = this->RandomArray((keys + kKeyPadding) * ld);
      Array<T> p = this->RandomArray(size), delta = this->RandomArray(R), dp(size), ds(size);
      Array<BitWord> keep = this->RandomBits(keys + kKeyPadding, R);
      k.products.scores(dyt.data(), v.data(), ld, reach, dim, dp.data(), nullptr);
      for (const bool drops : {false, true}) {
        Array<T> kept = p.Copy();
        k.products.gradient_of_scores(dyt.data(), v.data(), ld, reach, dim, kept.data(),
                                      delta.data(), drops ? keep.data() : nullptr, ds.data());
        for (int64_t n = 0; n < keys; ++n) {
          for (int64_t r = 0; r < vectors * k.lanes; ++r) {
            const int64_t i = n * R + r;
            const bool is_kept = !drops || this->Bit(keep, R, n, r);
            ASSERT_EQ(ds[i], p[i] * ((is_kept ? dp[i] : T{0}) - delta[r]));
            ASSERT_EQ(kept[i], is_kept ? p[i] : T{0});
          }
        }
      }
    }
  }
}

TYPED_TEST(Products, SumsOfVisiblePairsAreTheFastOnesBitForBit) {
  using T = TypeParam;
  for (const int64_t target : Targets()) {
    const auto& k = *KernelsOf<T>(target);
    const int64_t R = k.block_rows;
    for (const auto& [keys, dim, reach] : TileShapes(kKeys, kDims)) {
      const int64_t ld = RoundUp(dim, kRowPadding);
      Array<BitWord> visible = this->RandomBits(keys, R);
      Array<T> p = this->RandomArray(keys * R), b = this->RandomArray(std::max(keys, R) * ld);
      for (int64_t n = 0; n < keys; ++n) {
        for (int64_t r = 0; r < R; ++r) {
          if (!IsWithin(reach, n, r, R)) {
            visible[n / kWordBits * R + r] &= ~(BitWord{1} << (n % kWordBits));
          }
          p[n * R + r] = this->Bit(visible, R, n, r) ? p[n * R + r] : T{0};
        }
      }
      Array<T> alpha = this->RandomArray(R), out(ld * R), out_visible(ld * R);
      for (int64_t i = 0; i < ld * R; ++i) out[i] = out_visible[i] = static_cast<T>(i % 7);
      k.products.accumulate(p.data(), b.data(), ld, reach, dim, alpha.data(), out.data());
      k.products.accumulate_visible(p.data(), b.data(), ld, keys, dim, visible.data(), alpha.data(),
                                    out_visible.data());
      for (int64_t c = 0; c < dim; ++c) {
        for (int64_t r = 0; r < R; ++r) {
          double sum = double{alpha[r]} * static_cast<double>((c * R + r) % 7);
          for (int64_t n = 0; n < keys; ++n) sum += double{p[n * R + r]} * b[n * ld + c];
          ASSERT_NEAR(out[c * R + r], sum, this->Tolerance());
          ASSERT_EQ(out[c * R + r], out_visible[c * R + r]);
        }
      }
      // As dK and dV use it (i is the key), then as dQ does (i is the row).
      for (const bool by_key : {true, false}) {
        const int64_t rows = by_key ? keys : R - 1, depth = by_key ? R - 1 : keys;
        const int64_t a_row = by_key ? R : 1, a_depth = by_key ? 1 : R;
        Array<T> c(rows * ld), c_visible(rows * ld);
        const auto& x = k.products;
        (by_key ? x.gradient_of_keys : x.gradient_of_rows)(p.data(), reach, R - 1, b.data(), ld,
                                                           c.data());
        (by_key ? x.gradient_of_keys_visible : x.gradient_of_rows_visible)(
            p.data(), keys, R - 1, b.data(), ld, visible.data(), c_visible.data());
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < ld; ++j) {
            double sum = 0;
            for (int64_t d = 0; d < depth; ++d)
              sum += double{p[i * a_row + d * a_depth]} * b[d * ld + j];
            ASSERT_NEAR(c[i * ld + j], sum, this->Tolerance());
            ASSERT_EQ(c[i * ld + j], c_visible[i * ld + j]);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace fusion_attention::cpu
