// The dropout bits of a tile: Philox4x32-10 with query rows in 64-bit lanes, one counter per row.
// src/dropout/philox.h is the definition; this gives the same bits, 32 keys of a row per word.
// An element's index need not be a multiple of 4, so each row starts at its own word of a block: 9
// blocks cover any 32 keys, and the surplus bits are shifted out at the end.
#if defined(FUSION_ATTENTION_DROPOUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_DROPOUT_INL_H_
#undef FUSION_ATTENTION_DROPOUT_INL_H_
#else
#define FUSION_ATTENTION_DROPOUT_INL_H_
#endif

#include <hwy/highway.h>

#include "src/cpu/kernels/kernel_table.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The low 32 bits of each lane are one word of the counter; the high bits are never looked at.
template <class V>
struct PhiloxWords {
  V w0, w1, w2, w3;
};

template <class D64, class V = hn::Vec<D64>>
HWY_INLINE PhiloxWords<V> Philox(D64 d, PhiloxWords<V> x, uint32_t key0, uint32_t key1) {
  const hn::Repartition<uint32_t, D64> d32;
  const auto multiplier0 = hn::BitCast(d32, hn::Set(d, 0xD2511F53u));
  const auto multiplier2 = hn::BitCast(d32, hn::Set(d, 0xCD9E8D57u));
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const V product0 = hn::MulEven(hn::BitCast(d32, x.w0), multiplier0);
    const V product2 = hn::MulEven(hn::BitCast(d32, x.w2), multiplier2);
    x.w0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(product2), x.w1), hn::Set(d, uint64_t{key0}));
    x.w2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(product0), x.w3), hn::Set(d, uint64_t{key1}));
    x.w1 = product2;
    x.w3 = product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return x;
}

// Appends one word's keep bit below the bits gathered so far.
template <class V>
HWY_INLINE V AppendKeep(V bits, V word, V low_mask, V below_threshold) {
  // below_threshold - low wraps, which sets its top bit, exactly when low >= threshold.
  const V low = hn::And(word, low_mask);
  return hn::Or(hn::Add(bits, bits), hn::ShiftRight<63>(hn::Sub(below_threshold, low)));
}

template <typename T>
void KeepBits(const uint64_t* first, int64_t keys, const KeepRule& rule, BitWord* keep) {
  const hn::ScalableTag<uint64_t> d;
  using V = hn::Vec<decltype(d)>;
  const hn::Rebind<uint32_t, decltype(d)> d32;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * hn::Lanes(hn::ScalableTag<T>());
  const V low_mask = hn::Set(d, uint64_t{rule.low_mask});
  const V below_threshold = hn::Set(d, uint64_t{rule.threshold} - 1);
  const V three = hn::Set(d, uint64_t{3});
  const uint32_t key0 = static_cast<uint32_t>(rule.seed);
  const uint32_t key1 = static_cast<uint32_t>(rule.seed >> 32);
  const V offset0 = hn::Set(d, rule.offset & 0xFFFFFFFFu);
  const V offset1 = hn::Set(d, rule.offset >> 32);
  for (int64_t r = 0; r < block_rows; r += lanes) {
    const V element = hn::Load(d, first + r);
    for (int64_t n = 0; n < keys; n += kWordBits) {
      const V start = hn::Add(element, hn::Set(d, static_cast<uint64_t>(n)));
      const V skip = hn::And(start, three);
      const V block = hn::ShiftRight<2>(start);
      const int64_t last = hn::AllTrue(d, hn::Eq(skip, hn::Zero(d))) ? 7 : 8;
      V bits = hn::Zero(d);
      for (int64_t b = last; b >= 0; --b) {
        const V counter = hn::Add(block, hn::Set(d, static_cast<uint64_t>(b)));
        const auto x = Philox(
            d, PhiloxWords<V>{counter, hn::ShiftRight<32>(counter), offset0, offset1}, key0, key1);
        bits = AppendKeep(bits, x.w3, low_mask, below_threshold);
        bits = AppendKeep(bits, x.w2, low_mask, below_threshold);
        bits = AppendKeep(bits, x.w1, low_mask, below_threshold);
        bits = AppendKeep(bits, x.w0, low_mask, below_threshold);
      }
      const V word = hn::And(hn::Shr(bits, skip), hn::Set(d, uint64_t{0xFFFFFFFFu}));
      hn::StoreU(hn::TruncateTo(d32, word), d32, keep + n / kWordBits * block_rows + r);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
