// The dropout bits of a tile: Philox4x32-10 with query rows in 64-bit lanes, one counter per row.
// src/dropout/philox.h is the definition; this gives the same bits, 32 keys of a row per word.
// An element's index need not be a multiple of 4, so each row starts at its own word of a block: a
// block more than the keys need is drawn then, and the surplus bits are shifted out at the end.
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

// Rounds wait for their multiplications, so four blocks are drawn together: two for the even and
// two for the odd rows of a vector. Zen 5, AVX-512: 0.86 cycles a word; with two together 1.10,
// with eight, which spill, 1.14.
inline constexpr int kBlocksAtOnce = 2;
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

// The ten rounds on kCount counters. Only the low 32 bits of a lane are a word; the high ones are
// never looked at.
template <int kCount, class D64, class V = hn::Vec<D64>>
HWY_INLINE void Philox(D64 d, const KeepDraw& draw, V (&w0)[kCount], V (&w1)[kCount],
                       V (&w2)[kCount], V (&w3)[kCount]) {
  const hn::Repartition<uint32_t, D64> d32;
  const auto multiplier0 = hn::BitCast(d32, hn::Set(d, 0xD2511F53u));
  const auto multiplier2 = hn::BitCast(d32, hn::Set(d, 0xCD9E8D57u));
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const V key0 = hn::Set(d, draw.key0[round]);
    const V key1 = hn::Set(d, draw.key1[round]);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const V product0 = hn::MulEven(hn::BitCast(d32, w0[i]), multiplier0);
      const V product2 = hn::MulEven(hn::BitCast(d32, w2[i]), multiplier2);
      w0[i] = hn::Xor(hn::Xor(hn::ShiftRight<32>(product2), w1[i]), key0);
      w2[i] = hn::Xor(hn::Xor(hn::ShiftRight<32>(product0), w3[i]), key1);
      w1[i] = product2;
      w3[i] = product0;
    }
  }
}

// The low words of `even` and of `odd` in turn.
template <class D32, class V64>
HWY_INLINE hn::Vec<D32> Alternate(D32 d, V64 even, V64 odd) {
  return hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even));
}

// Draws kBlocks blocks from `block` on for a vector of rows. Sets in `bits` the bits of the words
// that are kept, from `bit` on, and leaves `bit` behind the last.
template <int kBlocks, class D32, class V64, class V32 = hn::Vec<D32>>
HWY_INLINE void DrawBlocks(D32 d, const KeepDraw& draw, V64 even, V64 odd, int64_t block, V32& bits,
                           V32& bit) {
  const hn::RepartitionToWide<D32> d64;
  const hn::RebindToSigned<D32> di;
  V64 w0[2 * kBlocks], w1[2 * kBlocks], w2[2 * kBlocks], w3[2 * kBlocks];
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kBlocks; ++i) {
    w0[i] = hn::Add(i % 2 == 0 ? even : odd, hn::Set(d64, static_cast<uint64_t>(block + i / 2)));
    w1[i] = hn::ShiftRight<32>(w0[i]);
    w2[i] = hn::Set(d64, draw.rule.offset & 0xFFFFFFFFu);
    w3[i] = hn::Set(d64, draw.rule.offset >> 32);
  }
  Philox<2 * kBlocks>(d64, draw, w0, w1, w2, w3);
  // Kept iff low >= threshold; both are below 2^31.
  const auto low_mask = hn::Set(d, draw.rule.low_mask);
  const auto dropped = hn::Set(di, static_cast<int32_t>(draw.rule.threshold) - 1);
#pragma GCC unroll 2
  for (int i = 0; i < kBlocks; ++i) {
    const V32 words[4] = {
        Alternate(d, w0[2 * i], w0[2 * i + 1]), Alternate(d, w1[2 * i], w1[2 * i + 1]),
        Alternate(d, w2[2 * i], w2[2 * i + 1]), Alternate(d, w3[2 * i], w3[2 * i + 1])};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const auto kept = hn::Gt(hn::BitCast(di, hn::And(words[j], low_mask)), dropped);
      bits = hn::IfThenElse(hn::RebindMask(d, kept), hn::Or(bits, bit), bits);
      bit = hn::Add(bit, bit);
    }
  }
}

// One word for each row: the bits of at most kBlocksOfWord blocks, `block` and on, below `end`.
template <class D32, class V64>
HWY_INLINE hn::Vec<D32> DrawWord(D32 d, const KeepDraw& draw, V64 even, V64 odd, int64_t block,
                                 int64_t end) {
  end = HWY_MIN(end, block + kBlocksOfWord);
  auto bits = hn::Zero(d);
  auto bit = hn::Set(d, 1u);
  for (; block + kBlocksAtOnce <= end; block += kBlocksAtOnce) {
    DrawBlocks<kBlocksAtOnce>(d, draw, even, odd, block, bits, bit);
  }
  if (block < end) DrawBlocks<1>(d, draw, even, odd, block, bits, bit);
  return bits;
}

template <typename T>
void KeepBits(uint64_t first, uint64_t row_stride, int64_t rows, int64_t keys, const KeepRule& rule,
              BitWord* keep) {
  const hn::Rebind<uint32_t, hn::ScalableTag<T>> d;
  const hn::RepartitionToWide<decltype(d)> d64;
  const int64_t lanes = hn::Lanes(d);
  const int64_t block_rows = kBlockVectors * lanes;
  const KeepDraw draw(rule);
  HWY_ALIGN uint64_t starts[2][hn::MaxLanes(d64)];
  for (int64_t r = 0; r < rows; r += lanes) {
    for (int64_t i = 0; i < lanes; ++i) {
      starts[i % 2][i / 2] = first + static_cast<uint64_t>(r + i) * row_stride;
    }
    const auto even = hn::Load(d64, starts[0]);
    const auto odd = hn::Load(d64, starts[1]);
    const auto skip = hn::And(Alternate(d, even, odd), hn::Set(d, 3u));
    const auto even_block = hn::ShiftRight<2>(even);
    const auto odd_block = hn::ShiftRight<2>(odd);
    const bool aligned = hn::AllTrue(d, hn::Eq(skip, hn::Zero(d)));
    const int64_t blocks = (keys + (aligned ? 0 : 3) + 3) / 4;
    auto word = DrawWord(d, draw, even_block, odd_block, 0, blocks);
    for (int64_t n = 0; n < keys; n += kWordBits) {
      const int64_t block = n / 4 + kBlocksOfWord;
      const auto next = DrawWord(d, draw, even_block, odd_block, block, blocks);
      // skip is at most 3, and 0 shifts the whole next word out.
      const auto from_next = hn::Shl(hn::Add(next, next), hn::Sub(hn::Set(d, 31u), skip));
      hn::StoreU(hn::Or(hn::Shr(word, skip), from_next), d, keep + n / kWordBits * block_rows + r);
      word = next;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
