// Random legal calls. Sizes are mostly small, for speed, and sometimes larger than any tile.
#include "tests/cc/fuzz/case.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fusion_attention::fuzz {
namespace {

using Shape = std::vector<int64_t>;

constexpr int64_t kCompressedPseRows = 1024;
constexpr int64_t kMaxWork =
    6'000'000;  // multiplications of q k^T, so that a case takes milliseconds

// The sizes of a call before they become shapes.
struct Sizes {
  bool packed = false;
  int64_t batch = 1, q_heads = 1, kv_heads = 1, q_len = 0, kv_len = 0;  // lengths: T in TND
  int64_t head_dim = 1, value_dim = 1;
  std::vector<int64_t> q_lens, kv_lens;  // TND: per sequence
  int64_t unused = 0;                    // TND: trailing zeros of the lists
  int64_t longest_q = 0, longest_kv = 0;

  int64_t given_sequences() const {
    return packed ? static_cast<int64_t>(q_lens.size()) + unused : batch;
  }
};

int64_t RandomLength(Random& random) {
  const int64_t kind = random.Int(1, 100);
  if (kind <= 3) return 0;
  if (kind <= 65) return random.Int(1, 24);
  if (kind <= 90) return random.Int(25, 140);
  return random.Int(141, 620);
}

int64_t RandomDim(Random& random) {
  const int64_t kind = random.Int(1, 100);
  if (kind <= 1) return 0;
  if (kind <= 55) return random.Int(1, 40);
  if (kind <= 80) return random.Pick<int64_t>({64, 72, 80, 128});
  if (kind <= 95) return random.Int(41, 200);
  return random.Pick<int64_t>({256, 320, 512, 768});
}

// A length for the other side: mostly the same or close, so that diagonals matter.
int64_t Near(int64_t length, Random& random) {
  if (random.Chance(35)) return length;
  if (random.Chance(50)) return std::max<int64_t>(0, length + random.Int(-20, 20));
  return RandomLength(random);
}

// `sparse_mode` < 0 means no mask.
Sizes RandomSizes(bool packed, int64_t sparse_mode, bool packed_pse, Random& random) {
  Sizes s;
  s.packed = packed;
  s.kv_heads = random.Pick<int64_t>({1, 1, 2, 3});
  s.q_heads = s.kv_heads * random.Pick<int64_t>({1, 1, 2, 3, 5});
  s.head_dim = RandomDim(random);
  s.value_dim =
      random.Chance(60) ? s.head_dim : random.Int(std::min<int64_t>(1, s.head_dim), s.head_dim);
  // Multiplications of q k^T. Most cases are over in a millisecond, some are wider than any tile.
  const int64_t work = random.Chance(8) ? 6'000'000 : 200'000;
  int64_t budget = work / std::max<int64_t>(1, s.q_heads * s.head_dim);
  if (!packed) {
    s.batch = random.Chance(1) ? 0 : random.Pick<int64_t>({1, 1, 2, 3});
    s.q_len = RandomLength(random);
    s.kv_len = Near(s.q_len, random);
    while (s.batch * s.q_len * s.kv_len > budget) s.q_len /= 2, s.kv_len /= 2;
    s.longest_q = s.q_len;
    s.longest_kv = s.kv_len;
    return s;
  }
  const bool needs_square_end = sparse_mode == 3 || sparse_mode == 7;
  for (int64_t n = random.Int(1, 5); n > 0; --n) {
    int64_t q_len = RandomLength(random);
    int64_t kv_len = Near(q_len, random);
    if (needs_square_end && q_len > kv_len) std::swap(q_len, kv_len);
    if (packed_pse) q_len = kv_len = std::max<int64_t>(1, q_len);
    while (q_len * kv_len > budget) q_len /= 2, kv_len /= 2;
    budget -= q_len * kv_len;
    if (packed_pse && q_len == 0) q_len = kv_len = 1;
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

Shape ShapeOf(const std::string& layout, int64_t batch, int64_t heads, int64_t tokens,
              int64_t dim) {
  if (layout == "BSH") return {batch, tokens, heads * dim};
  if (layout == "SBH") return {tokens, batch, heads * dim};
  if (layout == "BNSD") return {batch, heads, tokens, dim};
  if (layout == "BSND") return {batch, tokens, heads, dim};
  return {tokens, heads, dim};
}

Shape CumulativeEnds(const std::vector<int64_t>& lengths, int64_t unused) {
  Shape ends;
  int64_t end = 0;
  for (int64_t length : lengths) ends.push_back(end += length);
  ends.insert(ends.end(), unused, 0);
  return ends;
}

// Any token count with this lower limit: close to it, far above, or the largest.
int64_t AtLeast(int64_t low, Random& random) {
  const int64_t kind = random.Int(1, 10);
  if (kind <= 6) return low + random.Int(0, 40);
  return kind <= 9 ? std::max<int64_t>(low, 2147483647) : std::numeric_limits<int64_t>::max();
}

// pre_tockens and next_tockens that mode 0, 4, 7 or 8 allows.
void SetTokens(Call& call, const Sizes& s, Random& random) {
  int64_t pre = 0, next = 0;
  if (!s.packed) {
    // Dense: neither side past the far corner, and the band not empty.
    const int64_t low_pre = call.sparse_mode == 0 ? 1 - s.kv_len : 1 - s.q_len;
    const int64_t low_next = call.sparse_mode == 0 ? 1 - s.q_len : 1 - s.kv_len;
    pre = AtLeast(random.Int(std::min<int64_t>(low_pre, 0), 0), random);
    next = AtLeast(std::max(low_next, -std::min<int64_t>(pre, 1 << 20)), random);
  } else if (call.sparse_mode == 0) {
    for (size_t i = 0; i < s.q_lens.size(); ++i) {
      if (s.q_lens[i] > 0) pre = std::max(pre, s.q_lens[i] - s.kv_lens[i]);
    }
    pre = AtLeast(pre, random);
    next = AtLeast(0, random);
  } else if (call.sparse_mode == 4) {
    for (size_t i = 0; i < s.q_lens.size(); ++i) {
      if (s.q_lens[i] > 0) next = std::max(next, s.q_lens[i] - s.kv_lens[i]);
    }
    pre = AtLeast(0, random);
    next = AtLeast(next, random);
  } else {
    int64_t band = -1;
    for (int64_t i = 0; i < static_cast<int64_t>(s.q_lens.size()); ++i) {
      if (s.q_lens[i] > 0 && (call.sparse_mode == 7 || band < 0)) band = i;
    }
    const int64_t shift = band < 0 ? 0 : s.q_lens[band] - s.kv_lens[band];
    pre = AtLeast(band < 0 ? 0 : s.kv_lens[band], random);
    // Mode 7: 0 or less, and never so little that the first row of the band sequence sees nothing.
    next =
        call.sparse_mode == 7 ? random.Int(std::min<int64_t>(shift, 0), 0) : AtLeast(shift, random);
  }
  call.pre_tockens = pre;
  call.next_tockens = next;
}

void SetPrefix(Call& call, const Sizes& s, Random& random) {
  call.prefix.emplace();
  for (int64_t b = 0; b < s.given_sequences(); ++b) {
    const bool used = !s.packed || b < static_cast<int64_t>(s.q_lens.size());
    const int64_t q_len = !used ? 0 : s.packed ? s.q_lens[b] : s.q_len;
    const int64_t kv_len = !used ? 0 : s.packed ? s.kv_lens[b] : s.kv_len;
    call.prefix->push_back(random.Int(std::max<int64_t>(kv_len - q_len, 0), kv_len));
  }
}

void SetMask(Call& call, const Sizes& s, Random& random) {
  const int64_t mode = call.sparse_mode;
  const bool dense = mode == 0 || mode == 1 || mode == 5;
  const int64_t rows = dense ? s.longest_q : mode == 6 ? 3072 : 2048;
  const int64_t keys = dense ? s.longest_kv : 2048;
  const int64_t batch = s.given_sequences();
  Shape shape;
  switch (random.Int(mode == 5 && batch > 1 ? 2 : 0, dense ? 3 : 1)) {
    case 0:
      shape = {rows, keys};
      break;
    case 1:
      shape = {1, 1, rows, keys};
      break;
    case 2:
      shape = {batch, 1, rows, keys};
      break;
    default:
      shape = {batch, s.q_heads, rows, keys};
  }
  call.atten_mask = {random.Pick({DType::kBool, DType::kUInt8}), shape};
  const bool all_tokens = random.Chance(40);
  if (mode == 4 || mode == 7 || mode == 8 || (mode == 0 && !all_tokens)) SetTokens(call, s, random);
  if (mode == 5 || mode == 6) SetPrefix(call, s, random);
}

void SetPse(Call& call, const Sizes& s, Random& random) {
  const int64_t batch = random.Pick<int64_t>({1, s.given_sequences()});
  const int64_t dense_rows = random.Pick<int64_t>({1, s.q_len});
  const bool compressed = s.packed || s.q_len > kCompressedPseRows;
  call.pse = {call.query.dtype,
              {batch, s.q_heads, compressed ? kCompressedPseRows : dense_rows, s.longest_kv}};
  if (compressed && call.sparse_mode == 0) {
    call.pre_tockens = AtLeast(s.longest_q, random);
    call.next_tockens = 0;
  }
}

void SetDropout(Call& call, const Sizes& s, Random& random) {
  if (random.Chance(55)) return;
  call.keep_prob = random.Pick({0.9, 0.5, 0.75, 0.1, 0.999, 1 - 1e-8, 1e-8, 1e-10});
  if (!random.Chance(30)) return;
  int64_t numels = s.packed ? 0 : s.batch * s.q_heads * s.q_len * s.kv_len;
  for (size_t i = 0; i < s.q_lens.size(); ++i) {
    numels += s.q_heads * s.q_lens[i] * s.kv_lens[i];
  }
  call.dropout_mask = {DType::kUInt8, {(numels + 7) / 8}};
}

}  // namespace

Call MakeCall(uint64_t seed) {
  Random random(seed);
  Call call;
  const auto layout = random.Pick<std::string>({"BSH", "SBH", "BNSD", "BSND", "TND", "TND", "TND"});
  const bool packed = layout == "TND";
  call.input_layout = layout;
  const bool masked = random.Chance(75);
  call.sparse_mode = packed ? random.Pick<int64_t>({0, 1, 2, 3, 4, 6, 7, 8}) : random.Int(0, 6);
  const bool causal = call.sparse_mode == 0 || call.sparse_mode == 2 || call.sparse_mode == 3;
  const bool pse =
      packed ? masked && causal && random.Chance(30) : call.sparse_mode < 7 && random.Chance(35);
  Sizes s = RandomSizes(packed, masked ? call.sparse_mode : -1, packed && pse, random);
  const bool long_pse = pse && masked && causal && random.Chance(4);
  if (long_pse) {  // rows that a compressed pse does not store
    s.batch = s.q_heads = s.kv_heads = 1;
    s.head_dim = s.value_dim = random.Int(1, 8);
    s.q_len = s.kv_len = s.longest_q = s.longest_kv = random.Int(1025, 1100);
    if (packed) s.q_lens = s.kv_lens = {s.q_len};
  }

  const DType dtype = random.Pick(
      {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat64});
  call.head_num = s.q_heads;
  call.query = {dtype, ShapeOf(layout, s.batch, s.q_heads, s.q_len, s.head_dim)};
  call.key = {dtype, ShapeOf(layout, s.batch, s.kv_heads, s.kv_len, s.head_dim)};
  call.value = {dtype, ShapeOf(layout, s.batch, s.kv_heads, s.kv_len, s.value_dim)};
  // Folded heads cannot be told from a size of 0: key heads then count as query heads.
  const bool folded = layout == "BSH" || layout == "SBH";
  if (folded && s.head_dim == 0) s.kv_heads = s.q_heads;
  if (packed) {
    call.actual_seq_qlen = CumulativeEnds(s.q_lens, s.unused);
    call.actual_seq_kvlen = CumulativeEnds(s.kv_lens, s.unused);
    if (random.Chance(40)) call.softmax_layout = "TND";
  }
  if (masked) SetMask(call, s, random);
  if (pse) SetPse(call, s, random);
  SetDropout(call, s, random);
  if (random.Chance(25)) call.sink = {DType::kFloat32, {s.q_heads}};
  const double usual_scale = 1 / std::sqrt(std::max<double>(1, s.head_dim));
  call.scale = random.Pick({usual_scale, usual_scale, usual_scale, 1.0, -0.4, 0.0, 1e-4});
  call.inner_precise = random.Pick<int64_t>({0, 1, 2});
  return call;
}

std::string Describe(const Call& call) {
  const auto shape = [](const Shape& sizes) {
    std::string text = "[";
    for (int64_t size : sizes) text += (text.size() > 1 ? "," : "") + std::to_string(size);
    return text + "]";
  };
  std::string text = call.input_layout + " " + std::string(Name(call.query.dtype)) + " q" +
                     shape(call.query.shape) + " k" + shape(call.key.shape) + " v" +
                     shape(call.value.shape) + " N=" + std::to_string(call.head_num) +
                     " mode=" + std::to_string(call.sparse_mode);
  if (call.atten_mask) text += " mask" + shape(call.atten_mask->shape);
  text += " pre=" + std::to_string(call.pre_tockens) + " next=" + std::to_string(call.next_tockens);
  if (call.prefix) text += " prefix" + shape(*call.prefix);
  if (call.pse) text += " pse" + shape(call.pse->shape);
  if (call.sink) text += " sink";
  if (call.actual_seq_qlen) text += " qlen" + shape(*call.actual_seq_qlen);
  if (call.actual_seq_kvlen) text += " kvlen" + shape(*call.actual_seq_kvlen);
  return text + " scale=" + std::to_string(call.scale) + " keep=" + std::to_string(call.keep_prob) +
         (call.dropout_mask ? " external" : "");
}

}  // namespace fusion_attention::fuzz
