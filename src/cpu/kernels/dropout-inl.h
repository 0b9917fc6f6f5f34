// The dropout bits of a tile: Philox4x32-10 with query rows in lanes, one counter per row.
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

// Philox blocks of a row that are drawn together. A round's results wait for each other for nine
// cycles, so it takes the words of two blocks to keep four vector units busy: 24 registers, and 94
// cycles a block instead of 117 (Zen 5, AVX-512). Words must be packed for that, 16 rows to a
// vector; with each in 64 bits, as it is multiplied, the words of one block fill as many registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM
inline constexpr int kBlocksAtOnce = 2;
#else
inline constexpr int kBlocksAtOnce = 1;
#endif
inline constexpr int64_t kBlocksOfWord = kWordBits / 4;
inline constexpr uint32_t kMultiplier0 = 0xD2511F53;
inline constexpr uint32_t kMultiplier2 = 0xCD9E8D57;

// What the ten rounds add by XOR. The upper half of the counter is one number for all rows of a
// tile, and with it half of the first round: its words are in key1[0] and key0[1].
struct KeepKeys {
  explicit KeepKeys(const KeepRule& rule) {
    const uint64_t product2 = (rule.offset & 0xFFFFFFFFu) * kMultiplier2;
    for (uint32_t i = 0; i < 10; ++i) {
      key0[i] = static_cast<uint32_t>(rule.seed) + i * 0x9E3779B9u;
      key1[i] = static_cast<uint32_t>(rule.seed >> 32) + i * 0xBB67AE85u;
    }
    key0[0] ^= static_cast<uint32_t>(product2 >> 32);
    key1[0] ^= static_cast<uint32_t>(rule.offset >> 32);
    key0[1] ^= static_cast<uint32_t>(product2);
  }
  uint32_t key0[10];
  uint32_t key1[10];
};

// The products of a vector of words, one for each row, with a multiplier: 64 bits each.
template <class D32>
struct KeepProducts {
  using D64 = hn::RepartitionToWide<D32>;
  using V32 = hn::Vec<D32>;
  using V64 = hn::Vec<D64>;

  static HWY_INLINE KeepProducts Of(V32 words, V32 multiplier) {
    return {hn::MulEven(words, multiplier), hn::MulEven(hn::DupOdd(words), multiplier)};
  }
  HWY_INLINE V32 High() const {
    const D32 d;
    return hn::OddEven(hn::BitCast(d, odd), hn::DupOdd(hn::BitCast(d, even)));
  }
  // Written so that it is one instruction with AVX-512; OddEven would be two.
  HWY_INLINE V32 Low() const {
    const D32 d;
    const auto odd_rows = hn::MaskFromVec(hn::OddEven(hn::Set(d, ~0u), hn::Zero(d)));
    return hn::IfThenElse(odd_rows, hn::DupEven(hn::BitCast(d, odd)), hn::BitCast(d, even));
  }

  V64 even;  // of rows 0, 2, ...
  V64 odd;
};

// The rows' streams from one block of each on: the first round's product, and what the second round
// makes of the block number's upper half.
template <class D32>
struct KeepStreams {
  using Products = KeepProducts<D32>;
  using D64 = typename Products::D64;
  static constexpr int64_t kRows = kBlockVectors * hn::MaxLanes(D32());
  HWY_ALIGN uint64_t product0[kRows];  // even rows of a vector, then its odd ones
  HWY_ALIGN uint32_t word2[kRows];
  HWY_ALIGN uint32_t word3[kRows];

  // From block first[...] + `block` on; `first` in the order of product0.
  HWY_INLINE void Start(const KeepKeys& keys, const uint64_t* HWY_RESTRICT first, uint64_t block) {
    const D32 d;
    const D64 d64;
    const int64_t half = hn::Lanes(d64);
    const auto multiplier0 = hn::Set(d, kMultiplier0);
    for (int64_t r = 0; r < kRows; r += 2 * half) {
      const auto even = hn::Add(hn::Load(d64, first + r), hn::Set(d64, block));
      const auto odd = hn::Add(hn::Load(d64, first + r + half), hn::Set(d64, block));
      hn::Store(hn::MulEven(hn::BitCast(d, even), multiplier0), d64, product0 + r);
      hn::Store(hn::MulEven(hn::BitCast(d, odd), multiplier0), d64, product0 + r + half);
      const auto upper = Products{even, odd}.High();
      const auto product = Products::Of(hn::Xor(upper, hn::Set(d, keys.key0[0])), multiplier0);
      hn::Store(hn::Xor(product.High(), hn::Set(d, keys.key1[1])), d, word2 + r);
      hn::Store(product.Low(), d, word3 + r);
    }
  }
};

// Words are compared in fields of kField bits: the ones that count and, above them, one that says
// whether they reach the threshold. Of bfloat16's words 7 bits count and of float16's 10, so that
// four or two of them share 32 bits.
template <int kField>
struct KeepFields {
  static constexpr int kVectors = kField / 8;  // hold four words of each row
  static constexpr uint32_t kOnes = ~0u / static_cast<uint32_t>((uint64_t{1} << kField) - 1);
  static constexpr uint32_t kTop = kOnes << (kField - 1);
  explicit KeepFields(const KeepRule& rule)
      : low(kOnes * rule.low_mask), rest(kTop - kOnes * rule.threshold) {}
  // The top bit of (field & low) + rest is 1 where the word is kept.
  uint32_t low;
  uint32_t rest;
};

// Of each 2 * kBytes the lower half: that of a, and above it that of b.
template <int kBytes, class D32, class V32 = hn::Vec<D32>>
HWY_INLINE V32 LowHalves(D32 d, V32 a, V32 b) {
  alignas(16) static constexpr uint8_t kPlaces[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                      8, 9, 10, 11, 12, 13, 14, 15};
  const hn::Repartition<uint8_t, D32> d8;
  const auto place = hn::LoadDup128(d8, kPlaces);
  const auto half = hn::Set(d8, uint8_t{kBytes});
  const auto moved = hn::TableLookupBytes(hn::BitCast(d8, b), hn::Xor(place, half));
  return hn::BitCast(d, hn::IfThenElse(hn::TestBit(place, half), moved, hn::BitCast(d8, a)));
}

// From four vectors with a field of kFrom bits for each word to fewer with fields of kTo bits: of
// words 0, 2, 1, 3 in this order, from the lowest byte on.
template <int kFrom, int kTo, class D32, class V32 = hn::Vec<D32>>
HWY_INLINE void Narrow(D32 d, V32 (&v)[4]) {
  if constexpr (kFrom > 16 && kTo <= 16) {
    v[0] = LowHalves<2>(d, v[0], v[1]);
    v[1] = LowHalves<2>(d, v[2], v[3]);
  }
  if constexpr (kFrom > 8 && kTo <= 8) v[0] = LowHalves<1>(d, v[0], v[1]);
}

// Draws kBlocks blocks of every row's stream, from `block` on, and shifts as many bits into
// each field of `kept`. Not inline: with anything else in registers the compiler spills in every
// round, which cost a third of a keep bit's time.
template <int kField, int kBlocks, class D32>
HWY_NOINLINE void Philox(D32 d, const KeepKeys& keys, const KeepFields<kField>& rule,
                         const KeepStreams<D32>& streams, uint64_t block,
                         uint32_t* HWY_RESTRICT kept) {
  using V = hn::Vec<D32>;
  using Products = KeepProducts<D32>;
  const hn::RepartitionToWide<D32> d64;
  const int64_t lanes = hn::Lanes(d);
  const V multiplier0 = hn::Set(d, kMultiplier0);
  const V multiplier2 = hn::Set(d, kMultiplier2);
  constexpr int kVectors = kBlocks * kBlockVectors;
  V word[kVectors][4];
#pragma GCC unroll 6
  for (int i = 0; i < kVectors; ++i) {
    const int64_t row = i % kBlockVectors * lanes;
    const auto step = hn::Set(d64, (block + i / kBlockVectors) * kMultiplier0);
    const Products product0{hn::Add(hn::Load(d64, streams.product0 + row), step),
                            hn::Add(hn::Load(d64, streams.product0 + row + lanes / 2), step)};
    const V first2 = hn::Xor(product0.High(), hn::Set(d, keys.key1[0]));
    const auto product2 = Products::Of(first2, multiplier2);
    word[i][0] = hn::Xor(product2.High(), hn::Set(d, keys.key0[1]));
    word[i][1] = product2.Low();
    word[i][2] = hn::Xor(hn::Load(d, streams.word2 + row), product0.Low());
    word[i][3] = hn::Load(d, streams.word3 + row);
  }
#pragma GCC unroll 10
  for (int round = 2; round < 10; ++round) {
#pragma GCC unroll 6
    for (int i = 0; i < kVectors; ++i) {
      const auto product0 = Products::Of(word[i][0], multiplier0);
      const auto product2 = Products::Of(word[i][2], multiplier2);
      word[i][0] = hn::Xor3(product2.High(), word[i][1], hn::Set(d, keys.key0[round]));
      word[i][2] = hn::Xor3(product0.High(), word[i][3], hn::Set(d, keys.key1[round]));
      word[i][1] = product2.Low();
      word[i][3] = product0.Low();
    }
  }
  const V low = hn::Set(d, rule.low);
  const V rest = hn::Set(d, rule.rest);
  const V top = hn::Set(d, KeepFields<kField>::kTop);
#pragma GCC unroll 6
  for (int i = 0; i < kVectors; ++i) {
    Narrow<32, kField>(d, word[i]);
#pragma GCC unroll 4
    for (int k = 0; k < KeepFields<kField>::kVectors; ++k) {
      uint32_t* to = kept + (i % kBlockVectors * KeepFields<kField>::kVectors + k) * lanes;
      const V sum = hn::Add(hn::And(word[i][k], low), rest);
      hn::Store(hn::OrAnd(hn::ShiftRight<1>(hn::Load(d, to)), sum, top), d, to);
    }
  }
}

// Swaps the bits that `mask` names with those kBy places above.
template <int kBy, class D32, class V32 = hn::Vec<D32>>
HWY_INLINE V32 SwapBits(D32 d, V32 v, uint32_t mask) {
  const V32 differ = hn::And(hn::Xor(v, hn::ShiftRight<kBy>(v)), hn::Set(d, mask));
  return hn::Xor3(v, differ, hn::ShiftLeft<kBy>(differ));
}

// The bits of 32 keys in order, for a vector of rows of which `missing` blocks were not drawn.
template <int kField, class D32, class V32 = hn::Vec<D32>>
HWY_INLINE V32 BitsOfKept(D32 d, const uint32_t* HWY_RESTRICT kept, int64_t missing) {
  V32 v[4];
  for (int k = 0; k < KeepFields<kField>::kVectors; ++k) {
    v[k] = hn::ShiftRightSame(hn::Load(d, kept + k * hn::Lanes(d)),
                              kField - 8 + static_cast<int>(missing));
  }
  Narrow<kField, 8>(d, v);
  // Bit b of a byte is of block b, byte 2 m + n of word 2 n + m, which is key 4 b + 2 n + m.
  v[0] = SwapBits<6>(d, v[0], 0x00CC00CCu);
  v[0] = SwapBits<12>(d, v[0], 0x0000F0F0u);
  return SwapBits<3>(d, v[0], 0x0A0A0A0Au);
}

// The keep bits of a tile, 32 keys at a time.
template <int kField, int kBlocks, class D32>
class KeepWords {
 public:
  using V32 = hn::Vec<D32>;

  // `first`: the rows' first blocks in the order of KeepStreams; at least `blocks` of each will be
  // drawn. wraps: the lower half of a block number may; then kBlocks is 1.
  KeepWords(const KeepRule& rule, const uint64_t* first, int64_t blocks, bool wraps)
      : keys_(rule),
        fields_(rule),
        first_(first),
        blocks_(RoundUp(blocks, kBlocks)),
        wraps_(wraps) {
    streams_.Start(keys_, first, 0);
  }

  // One word for each row: the bits of the next kBlocksOfWord blocks, as far as there are any.
  HWY_INLINE void Next(V32 (&bits)[kBlockVectors]) {
    const D32 d;
    const int64_t row = KeepFields<kField>::kVectors * static_cast<int64_t>(hn::Lanes(d));
    HWY_ALIGN uint32_t kept[KeepFields<kField>::kVectors * KeepStreams<D32>::kRows] = {};
    const int64_t next = block_ + kBlocksOfWord;
    const int64_t end = HWY_MIN(blocks_, next);
    for (; block_ < end; block_ += kBlocks) Draw(kept);
#pragma GCC unroll 3
    for (int j = 0; j < kBlockVectors; ++j) {
      bits[j] = BitsOfKept<kField>(d, kept + j * row, next - end);
    }
  }

 private:
  HWY_INLINE void Draw(uint32_t* HWY_RESTRICT kept) {
    const auto block = static_cast<uint64_t>(block_);
    if (wraps_) streams_.Start(keys_, first_, block);
    Philox<kField, kBlocks>(D32(), keys_, fields_, streams_, wraps_ ? 0 : block, kept);
  }

  KeepKeys keys_;
  KeepFields<kField> fields_;
  const uint64_t* first_;
  int64_t blocks_;
  int64_t block_ = 0;
  bool wraps_;  // streams start anew at every block
  KeepStreams<D32> streams_;
};

template <typename T, int kField, int kBlocks>
void KeepBitsInFields(uint64_t first, uint64_t row_stride, int64_t keys, const KeepRule& rule,
                      bool wraps, BitWord* keep) {
  using D = hn::Rebind<uint32_t, hn::ScalableTag<T>>;
  const D d;
  const hn::RepartitionToWide<D> d64;
  const int64_t lanes = hn::Lanes(d);
  const int64_t half = hn::Lanes(d64);
  const int64_t block_rows = kBlockVectors * lanes;
  // Row numbers are small, so a product with the stride is two products of 32 bits.
  const auto stride = hn::BitCast(d, hn::Set(d64, row_stride));
  const auto upper_stride = hn::BitCast(d, hn::Set(d64, row_stride >> 32));
  HWY_ALIGN uint64_t blocks[kBlockVectors * hn::MaxLanes(d)];
  HWY_ALIGN uint32_t skips[kBlockVectors * hn::MaxLanes(d)];
  for (int64_t r = 0; r < block_rows; r += lanes) {
    const auto begin = [&](int64_t row) HWY_ATTR {
      const auto rows =
          hn::BitCast(d, hn::Add(hn::Iota(d64, 0), hn::Iota(d64, static_cast<uint64_t>(row))));
      const auto upper = hn::ShiftLeft<32>(hn::MulEven(rows, upper_stride));
      return hn::Add(hn::Set(d64, first), hn::Add(hn::MulEven(rows, stride), upper));
    };
    const auto even = begin(r), odd = begin(r + 1);
    hn::Store(hn::ShiftRight<2>(even), d64, blocks + r);
    hn::Store(hn::ShiftRight<2>(odd), d64, blocks + r + half);
    const auto element = KeepProducts<D>{even, odd}.Low();
    hn::Store(hn::And(element, hn::Set(d, 3u)), d, skips + r);
  }
  const bool aligned = (first | row_stride) % 4 == 0;
  KeepWords<kField, kBlocks, D> words(rule, blocks, (keys + (aligned ? 0 : 3) + 3) / 4, wraps);
  hn::Vec<D> word[kBlockVectors], next[kBlockVectors];
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

template <typename T>
void KeepBits(uint64_t first, uint64_t row_stride, int64_t keys, const KeepRule& rule,
              BitWord* keep) {
  constexpr uint64_t kLastRow = kBlockVectors * hn::MaxLanes(hn::ScalableTag<T>()) - 1;
  // Where the lower half of a block number may wrap in a tile, once in 2^34 elements, blocks are
  // drawn one by one; rare enough for fields of 32 bits to serve every rule. Surplus bits may be
  // any.
  const uint64_t end = first + kLastRow * row_stride + static_cast<uint64_t>(keys);
  const bool wraps = first >> 34 != end >> 34;
  const auto bits_in = [&](auto keep_bits) {
    keep_bits(first, row_stride, keys, rule, wraps, keep);
  };
  if (wraps) return bits_in(KeepBitsInFields<T, 32, 1>);
  if (rule.low_mask < 1u << 7) return bits_in(KeepBitsInFields<T, 8, kBlocksAtOnce>);
  if (rule.low_mask < 1u << 15) return bits_in(KeepBitsInFields<T, 16, kBlocksAtOnce>);
  bits_in(KeepBitsInFields<T, 32, kBlocksAtOnce>);
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
