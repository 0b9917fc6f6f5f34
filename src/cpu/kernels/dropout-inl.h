// The dropout bits of a tile: Philox4x32-10 with query rows in 64-bit lanes, one counter per row.
// src/dropout/philox.h is the definition; this gives the same bits, 32 keys of a row per word.
// An element's index need not be a multiple of 4, so each row starts at its own word of a Philox
// block of 4: where one starts inside a block, one more is drawn for the tile, and the surplus bits
// are shifted out.
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

// The even and the odd rows of each vector of a block. Rounds wait for their multiplications, so
// all are drawn together: 0.60 cycles a word of Philox (Zen 5, AVX-512), where two took 0.91, four
// 0.72, eight, which spill, 0.63.
inline constexpr int kDraws = 2 * kBlockVectors;
inline constexpr int64_t kBlocksOfWord = kWordBits / 4;

// What all rows of a tile share: the rule, and the keys of the ten rounds.
struct KeepDraw {
  explicit KeepDraw(const KeepRule& keep) : rule(keep) {
    for (uint32_t i = 0; i < 10; ++i) {
      key0[i] = static_cast<uint32_t>(rule.seed) + i * 0x9E3779B9u;
      key1[i] = static_cast<uint32_t>(rule.seed >> 32) + i * 0xBB67AE85u;
    }
  }
  KeepRule rule;
  uint64_t key0[10];
  uint64_t key1[10];
};

// Block `block` of every row's stream that begins at `first`, [draw][lane]:
// words[word][draw][lane]. Only the low 32 bits of a lane are a word; the high ones are never
// looked at. Not inline: with anything else in registers the compiler spills in every round, and a
// keep bit, all told, takes 0.95 cycles instead of 0.73.
template <class D64>
HWY_NOINLINE void Philox(D64 d, const KeepDraw& draw, const uint64_t* HWY_RESTRICT first,
                         uint64_t block, uint64_t* HWY_RESTRICT words) {
  using V = hn::Vec<D64>;
  const hn::Repartition<uint32_t, D64> d32;
  const int64_t lanes = hn::Lanes(d);
  const auto multiplier0 = hn::BitCast(d32, hn::Set(d, 0xD2511F53u));
  const auto multiplier2 = hn::BitCast(d32, hn::Set(d, 0xCD9E8D57u));
  V w0[kDraws], w1[kDraws], w2[kDraws], w3[kDraws];
#pragma GCC unroll 6
  for (int i = 0; i < kDraws; ++i) {
    w0[i] = hn::Add(hn::Load(d, first + i * lanes), hn::Set(d, block));
    w1[i] = hn::ShiftRight<32>(w0[i]);
    w2[i] = hn::Set(d, draw.rule.offset & 0xFFFFFFFFu);
    w3[i] = hn::Set(d, draw.rule.offset >> 32);
  }
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const V key0 = hn::Set(d, draw.key0[round]);
    const V key1 = hn::Set(d, draw.key1[round]);
#pragma GCC unroll 6
    for (int i = 0; i < kDraws; ++i) {
      const V product0 = hn::MulEven(hn::BitCast(d32, w0[i]), multiplier0);
      const V product2 = hn::MulEven(hn::BitCast(d32, w2[i]), multiplier2);
      w0[i] = hn::Xor3(hn::ShiftRight<32>(product2), w1[i], key0);
      w2[i] = hn::Xor3(hn::ShiftRight<32>(product0), w3[i], key1);
      w1[i] = product2;
      w3[i] = product0;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kDraws; ++i) {
    hn::Store(w0[i], d, words + i * lanes);
    hn::Store(w1[i], d, words + (kDraws + i) * lanes);
    hn::Store(w2[i], d, words + (2 * kDraws + i) * lanes);
    hn::Store(w3[i], d, words + (3 * kDraws + i) * lanes);
  }
}

// The low words of `even` and of `odd` in turn.
template <class D32, class V64>
HWY_INLINE hn::Vec<D32> Alternate(D32 d, V64 even, V64 odd) {
  return hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even));
}

// Sets the bit `bit` of `bits` where the word is kept: low >= threshold, both below 2^31.
template <class D32, class V32 = hn::Vec<D32>>
HWY_INLINE V32 WithKept(D32 d, const KeepRule& rule, V32 word, V32 bit, V32 bits) {
  const hn::RebindToSigned<D32> di;
  const auto low = hn::BitCast(di, hn::And(word, hn::Set(d, rule.low_mask)));
  const auto kept = hn::Gt(low, hn::Set(di, static_cast<int32_t>(rule.threshold) - 1));
  return hn::IfThenElse(hn::RebindMask(d, kept), hn::Or(bits, bit), bits);
}

// One word for each row of a block: the bits of at most kBlocksOfWord Philox blocks, from `block`
// on and below `end`.
template <class D32, class V32 = hn::Vec<D32>>
HWY_INLINE void DrawWord(D32 d, const KeepDraw& draw, const uint64_t* HWY_RESTRICT first,
                         int64_t block, int64_t end, V32 (&bits)[kBlockVectors]) {
  const hn::RepartitionToWide<D32> d64;
  const int64_t lanes = hn::Lanes(d64);
  HWY_ALIGN uint64_t words[4 * kDraws * hn::MaxLanes(d64)];
#pragma GCC unroll 3
  for (int j = 0; j < kBlockVectors; ++j) bits[j] = hn::Zero(d);
  auto bit = hn::Set(d, 1u);
  for (end = HWY_MIN(end, block + kBlocksOfWord); block < end; ++block) {
    Philox(d64, draw, first, static_cast<uint64_t>(block), words);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
#pragma GCC unroll 3
      for (int j = 0; j < kBlockVectors; ++j) {
        const uint64_t* even = words + (n * kDraws + 2 * j) * lanes;
        const V32 word = Alternate(d, hn::Load(d64, even), hn::Load(d64, even + lanes));
        bits[j] = WithKept(d, draw.rule, word, bit, bits[j]);
      }
      bit = hn::Add(bit, bit);
    }
  }
}

template <typename T>
void KeepBits(uint64_t first, uint64_t row_stride, int64_t keys, const KeepRule& rule,
              BitWord* keep) {
  const hn::Rebind<uint32_t, hn::ScalableTag<T>> d;
  const hn::RepartitionToWide<decltype(d)> d64;
  using V32 = hn::Vec<decltype(d)>;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  const KeepDraw draw(rule);
  const int64_t half = hn::Lanes(d64);
  HWY_ALIGN uint64_t blocks[kDraws * hn::MaxLanes(d64)];
  HWY_ALIGN uint32_t skips[kBlockVectors * hn::MaxLanes(d)];
  for (int64_t r = 0; r < block_rows; ++r) {
    const uint64_t element = first + static_cast<uint64_t>(r) * row_stride;
    blocks[(r / lanes * 2 + r % 2) * half + r % lanes / 2] = element / 4;
    skips[r] = static_cast<uint32_t>(element % 4);
  }
  V32 word[kBlockVectors], next[kBlockVectors];
  const bool aligned = (first | row_stride) % 4 == 0;
  const int64_t end = (keys + (aligned ? 0 : 3) + 3) / 4;
  DrawWord(d, draw, blocks, 0, end, word);
  for (int64_t n = 0; n < keys; n += kWordBits) {
    DrawWord(d, draw, blocks, n / 4 + kBlocksOfWord, end, next);
    for (int j = 0; j < kBlockVectors; ++j) {
      // skip is at most 3, and 0 shifts the whole next word out.
      const auto skip = hn::Load(d, skips + j * lanes);
      const auto from_next = hn::Shl(hn::Add(next[j], next[j]), hn::Sub(hn::Set(d, 31u), skip));
      hn::StoreU(hn::Or(hn::Shr(word[j], skip), from_next), d,
                 keep + n / kWordBits * block_rows + j * lanes);
      word[j] = next[j];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
