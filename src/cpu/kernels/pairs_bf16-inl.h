// Pairs: what the CPU's own bfloat16 products multiply (products_bf16-inl.h). A pair is two
// bfloat16 numbers that lie next to each other along the contraction, the first in the low half of
// 32 bits. Packed rows are pairs of channels as they lie. Everything else is brought to pairs here,
// once a tile: the transposed query and dO to [channel / 2][row], summands to [row / 2][channel],
// weights and score gradients to pairs of keys or of rows, rounded to nearest even.
#if defined(FUSION_ATTENTION_PAIRS_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_PAIRS_BF16_INL_H_
#undef FUSION_ATTENTION_PAIRS_BF16_INL_H_
#else
#define FUSION_ATTENTION_PAIRS_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "src/cpu/kernels/product_table.h"
#include "src/cpu/kernels/rows-inl.h"
#include "src/cpu/kernels/transpose-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace bf16 {

using Pair = uint32_t;

inline constexpr hn::ScalableTag<float> kSums;
inline constexpr hn::ScalableTag<Pair> kPairs;
using Sums = hn::Vec<decltype(kSums)>;
using Pairs = hn::Vec<decltype(kPairs)>;

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kBlockRows = kBlockVectors * kLanes;

// Operands are read through copies: they are written as single numbers too.
HWY_INLINE Pairs LoadPairs(const Bf16* p) {
  return hn::Load(kPairs, reinterpret_cast<const Pair*>(p));
}
HWY_INLINE Pair PairAt(const Bf16* p) {
  Pair pair;
  std::memcpy(&pair, p, sizeof(pair));
  return pair;
}
HWY_INLINE Pairs Broadcast(const Bf16* p) { return hn::Set(kPairs, PairAt(p)); }
HWY_INLINE void StorePairs(Pairs pairs, Bf16* p) {
  hn::Store(pairs, kPairs, reinterpret_cast<Pair*>(p));
}

// From two halves to pairs of their elements.
HWY_INLINE Pairs Interleave(__m512i halves) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return Pairs{_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves)};
}

// Asks for as many rows behind these, which are the next tile's: keys and values come from L3 where
// heads take turns, and waiting for them took 6 % of a forward pass at 64 channels, now 3 %.
inline bool Pack(const SourceRows& src, int64_t rows, int64_t dim, Bf16* HWY_RESTRICT dst,
                 int64_t ld) {
  const hn::FixedTag<uint16_t, 16> d;  // rows are multiples of 16 elements
  constexpr int64_t kBytes = sizeof(Bf16);
  const auto exponent = hn::Set(d, 0x7F80);
  auto largest = hn::Zero(d);
  HWY_ALIGN uint16_t some[16];
  const int64_t whole = src.channel_stride == 1 ? dim / 16 * 16 : 0;
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = static_cast<const char*>(src.data) + r * src.row_stride * kBytes;
    const uintptr_t ahead = AddressOf(row, rows, src.row_stride, kBytes);
    auto* HWY_RESTRICT to = reinterpret_cast<uint16_t*>(dst + r * ld);
    for (int64_t c = 0; c < whole; c += 16) {
      const auto v = hn::LoadU(d, reinterpret_cast<const uint16_t*>(row + c * kBytes));
      __builtin_prefetch(reinterpret_cast<const char*>(ahead + static_cast<uintptr_t>(c * kBytes)),
                         0, 2);
      largest = hn::Max(largest, hn::And(v, exponent));
      hn::Store(v, d, to + c);
    }
    for (int64_t c = whole; c < ld; c += 16) {
      std::memset(some, 0, sizeof(some));
      for (int64_t i = 0; i < HWY_MIN(16, dim - c); ++i) {
        std::memcpy(some + i, row + (c + i) * src.channel_stride * kBytes, kBytes);
      }
      const auto v = hn::Load(d, some);
      largest = hn::Max(largest, hn::And(v, exponent));
      hn::Store(v, d, to + c);
    }
  }
  return hn::AllFalse(d, hn::Eq(largest, exponent));
}

// Pairs of channels move as one 32-bit number. The sign is 1, -1 or 0, so products are exact.
inline void TransposePairs(const Bf16* src, int64_t ld, int64_t rows, int64_t dim, float sign,
                           Bf16* dst) {
  const auto factor = hn::Set(kSums, sign);
  const auto high = hn::Set(kPairs, 0xFFFF0000u);
  const auto times_sign = [factor, high](Pairs both) HWY_ATTR {
    const auto second = hn::Mul(hn::BitCast(kSums, hn::And(both, high)), factor);
    const auto first = hn::Mul(hn::BitCast(kSums, hn::ShiftLeft<16>(both)), factor);
    return hn::Or(hn::And(hn::BitCast(kPairs, second), high),
                  hn::ShiftRight<16>(hn::BitCast(kPairs, first)));
  };
  TransposeRows(reinterpret_cast<const Pair*>(src), ld / 2, rows, (dim + 1) / 2, times_sign,
                reinterpret_cast<Pair*>(dst));
}

// Element (r, c) comes to dst[(r / 2 * ld + c) * 2 + r % 2]; an odd last row gets zeros beside it.
inline const Bf16* Summands(const Bf16* HWY_RESTRICT src, int64_t ld, int64_t rows,
                            Bf16* HWY_RESTRICT dst) {
  const hn::FixedTag<uint16_t, 16> half;
  for (int64_t r = 0; r < rows; r += 2) {
    const auto* first = reinterpret_cast<const uint16_t*>(src + r * ld);
    for (int64_t c = 0; c < ld; c += kLanes) {
      auto pairs = hn::PromoteTo(kPairs, hn::Load(half, first + c));
      if (r + 1 < rows) {
        const auto second = hn::PromoteTo(kPairs, hn::Load(half, first + ld + c));
        pairs = hn::Or(pairs, hn::ShiftLeft<16>(second));
      }
      StorePairs(pairs, dst + r * ld + 2 * c);
    }
  }
  return dst;
}

}  // namespace bf16
}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();

// Highway 1.0.3 has no target with avx512_bf16, so functions that need it get one more attribute
// than the others of AVX3. Only their table leads to them: nothing that runs elsewhere is compiled
// with it.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace bf16 {

// 32 floats rounded to nearest even: `first` in the lower half of the vector.
HWY_INLINE __m512i Round(Sums first, Sums second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.raw, first.raw));
}

// To [key / 2][row], over the tile itself: what is written lies before what is still to be read.
inline const Bf16* Weights(float* p, int64_t keys) {
  auto* pairs = reinterpret_cast<Bf16*>(p);
  for (int64_t n = 0; n < keys; n += 2) {
#pragma GCC unroll 32
    for (int64_t j = 0; j < kBlockRows; j += kLanes) {
      const float* HWY_RESTRICT pn = p + n * kBlockRows + j;
      const Sums first = hn::Load(kSums, pn);
      const Sums second = n + 1 < keys ? hn::Load(kSums, pn + kBlockRows) : hn::Zero(kSums);
      StorePairs(Interleave(Round(first, second)), pairs + n * kBlockRows + 2 * j);
    }
  }
  return pairs;
}

// The lanes of vector j that are below `rows`.
HWY_INLINE __mmask16 Below(int64_t rows, int64_t j) {
  const int64_t lanes = HWY_MIN(HWY_MAX(rows - j, 0), kLanes);
  return static_cast<__mmask16>((1u << lanes) - 1);
}

// Two keys at a time: p and ds to [key][row], which are pairs of rows, and ds to [key / 2][row]. An
// odd last key or row gets zeros beside it.
inline GradientOperands<Bf16> RoundGradients(const float* HWY_RESTRICT p,
                                             const float* HWY_RESTRICT ds, int64_t keys,
                                             int64_t rows, Bf16* memory) {
  const int64_t tile = RoundUp(keys, kKeyPair) * kBlockRows;
  Bf16* HWY_RESTRICT of_p = memory;
  Bf16* HWY_RESTRICT of_ds = memory + tile;
  Bf16* HWY_RESTRICT over_keys = memory + 2 * tile;
  for (int64_t n = 0; n < keys; n += 2) {
#pragma GCC unroll 32
    for (int64_t j = 0; j < kBlockRows; j += kLanes) {
      const __mmask16 first = Below(rows, j);
      const __mmask16 second = n + 1 < keys ? first : 0;
      const int64_t at = n * kBlockRows + j;
      const auto load = [at, first, second](const float* tile) {
        return Round(Sums{_mm512_maskz_load_ps(first, tile + at)},
                     Sums{_mm512_maskz_load_ps(second, tile + at + kBlockRows)});
      };
      const auto store_rows = [at](__m512i halves, Bf16* tile) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile + at), _mm512_castsi512_si256(halves));
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile + at + kBlockRows),
                           _mm512_extracti64x4_epi64(halves, 1));
      };
      store_rows(load(p), of_p);
      const __m512i gradients = load(ds);
      store_rows(gradients, of_ds);
      StorePairs(Interleave(gradients), over_keys + n * kBlockRows + 2 * j);
    }
  }
  return {of_p, of_ds, over_keys};
}

}  // namespace bf16
}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_POP_ATTRIBUTES
#endif  // HWY_TARGET == HWY_AVX3
#endif
