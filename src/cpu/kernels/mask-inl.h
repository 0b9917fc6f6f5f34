// Bits that say which pairs of a tile take part: read from the bytes of a dense mask, and used to
// select. Masks and dropout select, they never multiply: a NaN behind a mask is gone.
#if defined(FUSION_ATTENTION_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_MASK_INL_H_
#undef FUSION_ATTENTION_MASK_INL_H_
#else
#define FUSION_ATTENTION_MASK_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>
#include <limits>

#include "src/cpu/kernels/kernel_table.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
inline constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

// The bits of one key for a vector of rows. `words` points at the key's word of the first row.
template <class D>
HWY_INLINE hn::Mask<D> RowsWithBit(D d, const BitWord* words, int64_t key) {
  const hn::RebindToUnsigned<D> du;
  using Lane = hn::TFromD<decltype(du)>;
  const auto bit = hn::Set(du, Lane{1} << (key % kWordBits));
  if constexpr (sizeof(Lane) == sizeof(BitWord)) {
    return hn::RebindMask(d, hn::TestBit(hn::Load(du, words), bit));
  } else {
    const hn::Rebind<BitWord, D> d32;
    return hn::RebindMask(d, hn::TestBit(hn::PromoteTo(du, hn::LoadU(d32, words)), bit));
  }
}

inline void HideMasked(const uint8_t* mask, int64_t row_stride, int64_t rows, int64_t keys,
                       int64_t block_rows, BitWord* bits) {
  const hn::CappedTag<uint8_t, kWordBits> d;
  const int64_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d);
  HWY_ALIGN uint8_t some[kWordBits];
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* row = mask + r * row_stride;
    // No hardware prefetcher follows rows that are pages apart; the next tile is likely the same
    // keys for the block of rows below.
    for (int64_t k = 0; k < keys; k += 64) __builtin_prefetch(row + block_rows * row_stride + k);
    for (int64_t k = 0; k < keys; k += kWordBits) {
      const uint8_t* bytes = row + k;
      if (keys - k < kWordBits) {
        std::memset(some, 1, sizeof(some));
        std::memcpy(some, bytes, static_cast<size_t>(keys - k));
        bytes = some;
      }
      uint8_t seen[8 + kWordBits / 8];  // StoreMaskBits may write 8 bytes
      for (int64_t i = 0; i < kWordBits; i += lanes) {
        hn::StoreMaskBits(d, hn::Eq(hn::LoadU(d, bytes + i), zero), seen + i / 8);
      }
      BitWord word;
      std::memcpy(&word, seen, sizeof(word));
      bits[k / kWordBits * block_rows + r] &= word;
    }
  }
}

template <typename T>
void MaskScores(T* HWY_RESTRICT s, const BitWord* HWY_RESTRICT visible, int64_t keys,
                T* HWY_RESTRICT tile_max) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  const auto hidden = hn::Set(d, kMinusInfinity<T>);
  for (int64_t j = 0; j < block_rows; j += lanes) {
    auto max = hidden;
    for (int64_t n = 0; n < keys; ++n) {
      T* p = s + n * block_rows + j;
      const auto seen = RowsWithBit(d, visible + n / kWordBits * block_rows + j, n);
      const auto t = hn::IfThenElse(seen, hn::Load(d, p), hidden);
      hn::Store(t, d, p);
      max = hn::Max(max, t);
    }
    hn::Store(max, d, tile_max + j);
  }
}

template <typename T>
void Drop(T* HWY_RESTRICT p, const BitWord* HWY_RESTRICT keep, int64_t keys) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  for (int64_t n = 0; n < keys; ++n) {
    for (int64_t j = 0; j < block_rows; j += lanes) {
      T* q = p + n * block_rows + j;
      const auto kept = RowsWithBit(d, keep + n / kWordBits * block_rows + j, n);
      hn::Store(hn::IfThenElseZero(kept, hn::Load(d, q)), d, q);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
