// Random legal calls.
#include "tests/cc/fuzz/case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/cc/fuzz/sizes.h"

namespace fusion_attention::fuzz {
namespace {

using Shape = std::vector<int64_t>;

constexpr int64_t kCompressedPseRows = 1024;
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
  call.pse_type = random.Chance(35) ? 0 : 1;
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

// Where rows and keys start: mostly near each other, sometimes as far apart as can be.
void SetStarts(Call& call, const Sizes& s, Random& random) {
  const bool cut = call.atten_mask && call.sparse_mode == 8;
  int64_t offset = cut ? s.q_lens[0] - s.kv_lens[0] : random.Int(-40, 40);
  int64_t q_start = random.Int(-1000, 1000);
  if (cut ? offset == 0 && random.Chance(50) : random.Chance(40)) return;
  if (!cut && random.Chance(10)) {
    constexpr int64_t kFar = int64_t{1} << 62;
    q_start = random.Pick<int64_t>({-kFar, kFar});
    offset = random.Pick<int64_t>({-kFar, kFar, 1 << 20});
    offset = q_start > 0 ? -std::abs(offset) : std::abs(offset);  // their sum is an int64
  }
  call.q_start_idx = {q_start};
  call.kv_start_idx = {q_start + offset};
  if (random.Chance(20)) call.q_start_idx->push_back(random.Int(0, 9));  // is ignored
}

void SetSlopes(Call& call, const Sizes& s, Random& random) {
  call.pse_type = random.Int(2, 3);
  const int64_t batch = s.given_sequences();
  call.pse = {DType::kFloat32, random.Chance(50) ? Shape{s.q_heads} : Shape{batch, s.q_heads}};
  SetStarts(call, s, random);
}

void SetRopes(Call& call, const Sizes& s, Random& random) {
  const int64_t dim = random.Chance(40) ? s.head_dim : random.Int(1, s.head_dim);
  call.query_rope = {call.query.dtype, {s.q_len, s.q_heads, dim}};
  call.key_rope = {call.query.dtype, {s.kv_len, s.kv_heads, dim}};
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

Lengths LengthsFor(const Call& call, bool masked, bool pse, bool slopes) {
  if (call.input_layout != "TND") return slopes ? Lengths::kSquare : Lengths::kAny;
  if (pse) return Lengths::kSquareAndNotEmpty;
  if (!masked) return Lengths::kAny;
  if (call.sparse_mode == 3 || call.sparse_mode == 7) return Lengths::kShortRows;
  return slopes && call.sparse_mode == 8 ? Lengths::kSquareBehindFirst : Lengths::kAny;
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
  const bool slopes = random.Chance(20) && !(masked && call.sparse_mode == 7);
  const bool pse = !slopes && (packed ? masked && causal && random.Chance(35)
                                      : call.sparse_mode < 7 && random.Chance(40));
  Sizes s = RandomSizes(packed, LengthsFor(call, masked, pse, slopes), random);
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
  if (slopes) SetSlopes(call, s, random);
  const bool ropes = packed && masked && call.sparse_mode != 6 && !pse && !slopes &&
                     s.head_dim > 0 && random.Chance(40);
  if (ropes) SetRopes(call, s, random);
  if (!ropes) SetDropout(call, s, random);
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
  if (call.pse) text += " pse" + shape(call.pse->shape) + " type=" + std::to_string(call.pse_type);
  if (call.q_start_idx) text += " qstart" + shape(*call.q_start_idx);
  if (call.kv_start_idx) text += " kvstart" + shape(*call.kv_start_idx);
  if (call.query_rope) text += " rope=" + std::to_string(call.query_rope->shape.back());
  if (call.sink) text += " sink";
  if (call.actual_seq_qlen) text += " qlen" + shape(*call.actual_seq_qlen);
  if (call.actual_seq_kvlen) text += " kvlen" + shape(*call.actual_seq_kvlen);
  return text + " scale=" + std::to_string(call.scale) + " keep=" + std::to_string(call.keep_prob) +
         (call.dropout_mask ? " external" : "");
}

}  // namespace fusion_attention::fuzz
