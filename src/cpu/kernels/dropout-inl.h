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
// all are drawn together: 0.45 cycles a word of Philox (Zen 5, AVX-512), as fast as four vector
// units can. With ten whole rounds for each block it was 0.60, and then two draws at a time took
// 0.91, four 0.72, eight, which spill, 0.63.
inline constexpr int kDraws = 2 * kBlockVectors;
inline constexpr int64_t kBlocksOfWord = kWordBits / 4;
inline constexpr uint32_t kMultiplier0 = 0xD2511F53;
inline constexpr uint32_t kMultiplier2 = 0xCD9E8D57;

// What all rows of a tile share: the rule, and what the ten rounds add by XOR, twice in each number
// so that it fits both halves of a lane. The upper half of the counter is one number for all, and
// with it half of the first round: its words are in key1[0] and key0[1].
struct KeepDraw {
  explicit KeepDraw(const KeepRule& keep) : rule(keep) {
    constexpr uint64_t kTwice = 0x100000001;
    const uint64_t product2 = (rule.offset & 0xFFFFFFFFu) * kMultiplier2;
    for (uint32_t i = 0; i < 10; ++i) {
      uint32_t word0 = static_cast<uint32_t>(rule.seed) + i * 0x9E3779B9u;
      uint32_t word1 = static_cast<uint32_t>(rule.seed >> 32) + i * 0xBB67AE85u;
      if (i == 0) word0 ^= static_cast<uint32_t>(product2 >> 32);
      if (i == 0) word1 ^= static_cast<uint32_t>(rule.offset >> 32);
      if (i == 1) word0 ^= static_cast<uint32_t>(product2);
      key0[i] = word0 * kTwice;
      key1[i] = word1 * kTwice;
    }
  }
  KeepRule rule;
  uint64_t key0[10];
  uint64_t key1[10];
};

// The rows' streams from one block of each on, [draw][lane]: the first round's product, and what
// the second round makes of the block number's upper half.
template <class D64>
struct KeepStreams {
  static constexpr int64_t kSize = kDraws * hn::MaxLanes(D64());
  HWY_ALIGN uint64_t product0[kSize];
  HWY_ALIGN uint64_t word2[kSize];
  HWY_ALIGN uint64_t word3[kSize];

  // From block first[...] + `block` on.
  HWY_INLINE void Start(const KeepDraw& draw, const uint64_t* HWY_RESTRICT first, uint64_t block) {
    const D64 d;
    const hn::Repartition<uint32_t, D64> d32;
    const int64_t lanes = hn::Lanes(d);
    const auto multiplier0 = hn::BitCast(d32, hn::Set(d, kMultiplier0));
    for (int64_t i = 0; i < kDraws * lanes; i += lanes) {
      const auto counter = hn::Add(hn::Load(d, first + i), hn::Set(d, block));
      const auto w0 = hn::Xor(hn::ShiftRight<32>(counter), hn::Set(d, draw.key0[0]));
      const auto product = hn::MulEven(hn::BitCast(d32, w0), multiplier0);
      hn::Store(hn::MulEven(hn::BitCast(d32, counter), multiplier0), d, product0 + i);
      hn::Store(hn::Xor(hn::ShiftRight<32>(product), hn::Set(d, draw.key1[1])), d, word2 + i);
      hn::Store(product, d, word3 + i);
    }
  }
};

// The low and the high words of `even` and of `odd` in turn.
template <class D32, class V64>
HWY_INLINE hn::Vec<D32> LowWords(D32 d, V64 even, V64 odd) {
  return hn::OddEven(hn::DupEven(hn::BitCast(d, odd)), hn::BitCast(d, even));
}
template <class D32, class V64>
HWY_INLINE hn::Vec<D32> HighWords(D32 d, V64 even, V64 odd) {
  return hn::OddEven(hn::BitCast(d, odd), hn::DupOdd(hn::BitCast(d, even)));
}

// Block `block` of every row's stream: words[word][row]. In a lane the low 32 bits are a word, the
// high ones are never looked at. Not inline: with anything else in registers the compiler spills in
// every round, which cost a third of a keep bit's time.
template <class D64>
HWY_NOINLINE void Philox(D64 d, const KeepDraw& draw, const KeepStreams<D64>& streams,
                         uint64_t block, uint32_t* HWY_RESTRICT words) {
  using V = hn::Vec<D64>;
  const hn::Repartition<uint32_t, D64> d32;
  const int64_t lanes = hn::Lanes(d);
  const auto multiplier0 = hn::BitCast(d32, hn::Set(d, kMultiplier0));
  const auto multiplier2 = hn::BitCast(d32, hn::Set(d, kMultiplier2));
  V w0[kDraws], w1[kDraws], w2[kDraws], w3[kDraws];
#pragma GCC unroll 6
  for (int i = 0; i < kDraws; ++i) {
    const V product0 =
        hn::Add(hn::Load(d, streams.product0 + i * lanes), hn::Set(d, block * kMultiplier0));
    const V first2 = hn::Xor(hn::ShiftRight<32>(product0), hn::Set(d, draw.key1[0]));
    w1[i] = hn::MulEven(hn::BitCast(d32, first2), multiplier2);
    w0[i] = hn::Xor(hn::ShiftRight<32>(w1[i]), hn::Set(d, draw.key0[1]));
    w2[i] = hn::Xor(hn::Load(d, streams.word2 + i * lanes), product0);
    w3[i] = hn::Load(d, streams.word3 + i * lanes);
  }
#pragma GCC unroll 10
  for (int round = 2; round < 9; ++round) {
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
  const auto key0 = hn::BitCast(d32, hn::Set(d, draw.key0[9]));
  const auto key1 = hn::BitCast(d32, hn::Set(d, draw.key1[9]));
  const int64_t block_rows = kDraws * lanes;
#pragma GCC unroll 3
  for (int i = 0; i < kDraws; i += 2) {
    const V even0 = hn::MulEven(hn::BitCast(d32, w0[i]), multiplier0);
    const V even2 = hn::MulEven(hn::BitCast(d32, w2[i]), multiplier2);
    const V odd0 = hn::MulEven(hn::BitCast(d32, w0[i + 1]), multiplier0);
    const V odd2 = hn::MulEven(hn::BitCast(d32, w2[i + 1]), multiplier2);
    uint32_t* to = words + i * lanes;
    hn::Store(hn::Xor3(HighWords(d32, even2, odd2), LowWords(d32, w1[i], w1[i + 1]), key0), d32,
              to);
    hn::Store(LowWords(d32, even2, odd2), d32, to + block_rows);
    hn::Store(hn::Xor3(HighWords(d32, even0, odd0), LowWords(d32, w3[i], w3[i + 1]), key1), d32,
              to + 2 * block_rows);
    hn::Store(LowWords(d32, even0, odd0), d32, to + 3 * block_rows);
  }
}

// Sets the bit `bit` of `bits` where the word is kept: low >= threshold, both below 2^31.
template <class D32, class V32 = hn::Vec<D32>>
HWY_INLINE V32 WithKept(D32 d, const KeepRule& rule, V32 word, V32 bit, V32 bits) {
  const hn::RebindToSigned<D32> di;
  const auto low = hn::BitCast(di, hn::And(word, hn::Set(d, rule.low_mask)));
  const auto kept = hn::Gt(low, hn::Set(di, static_cast<int32_t>(rule.threshold) - 1));
  return hn::IfThenElse(hn::RebindMask(d, kept), hn::Or(bits, bit), bits);
}

// The keep bits of a tile, 32 keys at a time.
template <class D32>
class KeepWords {
 public:
  using V32 = hn::Vec<D32>;
  using D64 = hn::RepartitionToWide<D32>;

  // Row `first[...]` begins at that block; `blocks` of each will be drawn.
  KeepWords(const KeepDraw& draw, const uint64_t* first, int64_t blocks)
      : draw_(draw), first_(first), blocks_(blocks) {
    streams_.Start(draw, first, 0);
    for (int64_t i = 0; i < kDraws * static_cast<int64_t>(hn::Lanes(D64())); ++i) {
      wraps_ |= (first[i] & 0xFFFFFFFFu) + static_cast<uint64_t>(blocks) > uint64_t{1} << 32;
    }
  }

  // One word for each row: the bits of the next kBlocksOfWord blocks, as far as there are any.
  HWY_INLINE void Next(V32 (&bits)[kBlockVectors]) {
    const D32 d;
    const int64_t lanes = hn::Lanes(d);
    HWY_ALIGN uint32_t words[4 * kBlockVectors * hn::MaxLanes(d)];
#pragma GCC unroll 3
    for (int j = 0; j < kBlockVectors; ++j) bits[j] = hn::Zero(d);
    auto bit = hn::Set(d, 1u);
    const int64_t end = HWY_MIN(blocks_, block_ + kBlocksOfWord);
    for (; block_ < end; ++block_) {
      Draw(words);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
#pragma GCC unroll 3
        for (int j = 0; j < kBlockVectors; ++j) {
          const V32 word = hn::Load(d, words + (n * kBlockVectors + j) * lanes);
          bits[j] = WithKept(d, draw_.rule, word, bit, bits[j]);
        }
        bit = hn::Add(bit, bit);
      }
    }
  }

 private:
  // Once in 2^34 elements the lower half of a block number wraps inside a tile: then every block
  // starts its streams anew.
  HWY_INLINE void Draw(uint32_t* HWY_RESTRICT words) {
    const auto block = static_cast<uint64_t>(block_);
    if (wraps_) streams_.Start(draw_, first_, block);
    Philox(D64(), draw_, streams_, wraps_ ? 0 : block, words);
  }

  const KeepDraw& draw_;
  const uint64_t* first_;
  int64_t blocks_;
  int64_t block_ = 0;
  bool wraps_ = false;
  KeepStreams<D64> streams_;
};

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
  const bool aligned = (first | row_stride) % 4 == 0;
  KeepWords<decltype(d)> words(draw, blocks, (keys + (aligned ? 0 : 3) + 3) / 4);
  V32 word[kBlockVectors], next[kBlockVectors];
  words.Next(word);
  for (int64_t n = 0; n < keys; n += kWordBits) {
    words.Next(next);
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
