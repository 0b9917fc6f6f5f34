// Draws the sizes of a random call.
#include "tests/cc/fuzz/sizes.h"

#include <algorithm>

namespace fusion_attention::fuzz {
namespace {

// What a call is to stress: anything, or what happens between tiles. Then every length is several
// tiles of keys (of 128) and several blocks of rows (of 48 at most), and heads are few and narrow.
enum class Kind { kAny, kManyTiles };

int64_t RandomLength(Kind kind, Random& random) {
  if (kind == Kind::kManyTiles) return random.Int(129, 400);
  const int64_t percent = random.Int(1, 100);
  if (percent <= 3) return 0;
  if (percent <= 65) return random.Int(1, 24);
  if (percent <= 90) return random.Int(25, 140);
  return random.Int(141, 620);
}

int64_t RandomDim(Kind kind, Random& random) {
  if (kind == Kind::kManyTiles) return random.Int(1, 16);
  const int64_t percent = random.Int(1, 100);
  if (percent <= 1) return 0;
  if (percent <= 55) return random.Int(1, 40);
  if (percent <= 80) return random.Pick<int64_t>({64, 72, 80, 128});
  if (percent <= 95) return random.Int(41, 200);
  return random.Pick<int64_t>({256, 320, 512, 768});
}

// A length for the other side: mostly the same or close, so that diagonals matter.
int64_t Near(int64_t length, Kind kind, Random& random) {
  if (random.Chance(35)) return length;
  if (random.Chance(50)) return std::max<int64_t>(0, length + random.Int(-20, 20));
  return RandomLength(kind, random);
}

}  // namespace

Sizes RandomSizes(bool packed, Lengths lengths, Random& random) {
  Sizes s;
  s.packed = packed;
  const Kind kind = random.Chance(20) ? Kind::kManyTiles : Kind::kAny;
  if (kind == Kind::kManyTiles) {
    s.kv_heads = random.Pick<int64_t>({1, 1, 2});
    s.q_heads = s.kv_heads * random.Pick<int64_t>({1, 1, 2});
  } else {
    s.kv_heads = random.Pick<int64_t>({1, 1, 2, 3});
    s.q_heads = s.kv_heads * random.Pick<int64_t>({1, 1, 2, 3, 5});
  }
  s.head_dim = RandomDim(kind, random);
  s.value_dim =
      random.Chance(60) ? s.head_dim : random.Int(std::min<int64_t>(1, s.head_dim), s.head_dim);
  // Multiplications of q k^T. Most cases are over in a millisecond, some are wider than any tile.
  const int64_t work = kind == Kind::kManyTiles ? 1'500'000
                       : random.Chance(8)       ? 6'000'000
                                                : 200'000;
  int64_t budget = work / std::max<int64_t>(1, s.q_heads * s.head_dim);
  if (!packed) {
    s.batch = random.Chance(1) ? 0 : random.Pick<int64_t>({1, 1, 2, 3});
    s.q_len = RandomLength(kind, random);
    s.kv_len = lengths == Lengths::kSquare ? s.q_len : Near(s.q_len, kind, random);
    while (s.batch * s.q_len * s.kv_len > budget) s.q_len /= 2, s.kv_len /= 2;
    s.longest_q = s.q_len;
    s.longest_kv = s.kv_len;
    return s;
  }
  const int64_t shortest = lengths == Lengths::kSquareAndNotEmpty ? 1 : 0;
  for (int64_t n = random.Int(1, 5); n > 0; --n) {
    int64_t q_len = RandomLength(kind, random);
    int64_t kv_len = Near(q_len, kind, random);
    const bool first = s.q_lens.empty();
    if (lengths == Lengths::kShortRows && q_len > kv_len) std::swap(q_len, kv_len);
    if (lengths == Lengths::kSquare || lengths == Lengths::kSquareAndNotEmpty ||
        (lengths == Lengths::kSquareBehindFirst && !first)) {
      kv_len = q_len;
    }
    while (q_len * kv_len > budget) q_len /= 2, kv_len /= 2;
    budget -= q_len * kv_len;
    q_len = std::max(q_len, shortest);
    kv_len = std::max(kv_len, shortest);
    s.q_lens.push_back(q_len);
    s.kv_lens.push_back(kv_len);
    s.q_len += q_len;
    s.kv_len += kv_len;
    s.longest_q = std::max(s.longest_q, q_len);
    s.longest_kv = std::max(s.longest_kv, kv_len);
  }
  // Zeros after a list whose last entry is 0 would be ambiguous only if both lists were all zeros.
  s.unused = s.q_len > 0 && s.kv_len > 0 && random.Chance(25) ? random.Int(1, 3) : 0;
  if (random.Chance(30)) s.q_len += random.Int(1, 9);  // tokens of no sequence
  if (random.Chance(30)) s.kv_len += random.Int(1, 9);
  return s;
}

}  // namespace fusion_attention::fuzz
