// The values that a problem reads, which of them it can see, and the hostile variants of a call.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/base/convert.h"
#include "tests/cc/fuzz/case.h"

namespace fusion_attention::fuzz {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double Rounded(DType dtype, double value) {
  switch (dtype) {
    case DType::kFloat16:
      return Widen(kFloat16Format, Narrow(kFloat16Format, value));
    case DType::kBFloat16:
      return Widen(kBFloat16Format, Narrow(kBFloat16Format, value));
    case DType::kFloat32:
      return static_cast<float>(value);
    default:
      return value;
  }
}

Operand RandomOperand(DType dtype, const Four& extent, double spread, Random& random) {
  Operand operand;
  operand.dtype = dtype;
  operand.extent = extent;
  for (bool& constant : operand.constant) constant = random.Chance(4);
  operand.values.resize(operand.size());
  operand.visible.resize(operand.size());
  const auto& constant = operand.constant;
  for (int64_t a = 0; a < extent[0]; ++a) {
    for (int64_t b = 0; b < extent[1]; ++b) {
      for (int64_t c = 0; c < extent[2]; ++c) {
        for (int64_t d = 0; d < extent[3]; ++d) {
          const int64_t first = operand.Index(constant[0] ? 0 : a, constant[1] ? 0 : b,
                                              constant[2] ? 0 : c, constant[3] ? 0 : d);
          const int64_t index = operand.Index(a, b, c, d);
          // Sums of uniform numbers: a bell without far outliers.
          if (index == first) {
            operand.values[index] =
                Rounded(dtype, spread * (random.Signed() + random.Signed() + random.Signed()));
          } else {
            operand.values[index] = operand.values[first];
          }
        }
      }
    }
  }
  return operand;
}

// Puts one of `specials` into a few elements. On constant axes they would multiply.
void Plant(Operand& operand, std::initializer_list<double> specials, Random& random) {
  if (operand.values.empty()) return;
  for (int64_t n = random.Int(1, 3); n > 0; --n) {
    const int64_t index = random.Int(0, static_cast<int64_t>(operand.values.size()) - 1);
    operand.values[index] = random.Pick(specials);
  }
  operand.constant = {};
}

// Elements that are not finite: infinite scores in a bias, NaN and infinities anywhere.
void PlantSpecials(const PseSpec& pse, Operands& o, Random& random) {
  if (o.pse.given() && pse.kind != PseKind::kSlopes &&
      random.Chance(20)) {  // a bias that is used as a mask
    o.pse.constant = {};
    const int percent = random.Pick({5, 50, 100});
    for (double& x : o.pse.values) x = random.Chance(percent) ? -kInfinity : x;
  }
  if (random.Chance(10)) {
    const auto specials = {kNan, kInfinity, -kInfinity};
    if (random.Chance(35)) Plant(o.query, specials, random);
    if (random.Chance(35)) Plant(o.key, specials, random);
    if (random.Chance(35)) Plant(o.value, specials, random);
    if (random.Chance(35)) Plant(o.dy, specials, random);
    if (random.Chance(35)) Plant(o.query_rope, specials, random);
    if (random.Chance(35)) Plant(o.key_rope, specials, random);
    if (pse.kind == PseKind::kSlopes && random.Chance(35)) Plant(o.pse, specials, random);
  }
}

void MarkRow(Operand& operand, int64_t batch, int64_t head, int64_t token) {
  for (int64_t c = 0; c < operand.extent[3]; ++c) {
    operand.visible[operand.Index(batch, head, token, c)] = true;
  }
}

// Marks what row `row` of one head reads.
void MarkVisible(const Problem& problem, const Sequence& s, int64_t head, int64_t row,
                 Operands& operands) {
  const int64_t batch = problem.layout == Layout::kTND ? 0 : s.batch;
  const int64_t kv_head = head / problem.group();
  const RowIntervals intervals = problem.IntervalsOf(s);
  bool sees_any = false;
  for (int64_t key = intervals.Begin(row); key < intervals.End(row); ++key) {
    const Operand& mask = operands.mask;
    if (mask.given() &&
        mask.values[mask.Index(s.batch % mask.extent[0], head % mask.extent[1], row, key)] != 0) {
      continue;
    }
    sees_any = true;
    MarkRow(operands.key, batch, kv_head, s.kv_begin + key);
    MarkRow(operands.value, batch, kv_head, s.kv_begin + key);
    if (problem.rope_dim > 0) MarkRow(operands.key_rope, batch, kv_head, s.kv_begin + key);
    if (problem.pse.kind == PseKind::kNone) continue;
    Operand& pse = operands.pse;
    const PseElement e = problem.pse.kind == PseKind::kCompressed
                             ? problem.CompressedPse(s, row, key)
                             : PseElement{row % problem.pse.rows, key % problem.pse.keys};
    pse.visible[pse.Index(s.batch % pse.extent[0], head, e.row, e.key)] = true;
  }
  if (!sees_any) return;
  MarkRow(operands.query, batch, head, s.q_begin + row);
  MarkRow(operands.dy, batch, head, s.q_begin + row);
  if (problem.rope_dim > 0) MarkRow(operands.query_rope, batch, head, s.q_begin + row);
}

// A bias, or slopes that keep the bias of the farthest pair at a size that exp can tell apart.
Operand RandomPse(const Problem& problem, double spread, Random& random) {
  const PseSpec& pse = problem.pse;
  const Four extent = {pse.batch, problem.q_heads, pse.rows, pse.keys};
  if (pse.kind != PseKind::kSlopes) return RandomOperand(problem.dtype, extent, spread, random);
  const auto farthest = static_cast<double>(std::abs(pse.start_offset) + problem.q_len);
  return RandomOperand(DType::kFloat32, extent, spread * std::min(1.0, 1000 / farthest), random);
}

Operand RandomMask(const MaskSpec& spec, Random& random) {
  Operand mask =
      RandomOperand(DType::kUInt8, {spec.batch, spec.heads, spec.rows, spec.keys}, 0, random);
  const int percent = random.Pick({0, 5, 50, 95, 100});
  mask.constant = {};
  for (double& byte : mask.values) byte = random.Chance(percent) ? random.Int(1, 255) : 0;
  // Long stretches of the same kind, as real masks have, and whole rows.
  for (int64_t n = random.Int(0, 3); n > 0 && !mask.values.empty(); --n) {
    const int64_t begin = random.Int(0, static_cast<int64_t>(mask.values.size()) - 1);
    const int64_t end = std::min<int64_t>(begin + random.Int(1, 3 * spec.keys + 1),
                                          static_cast<int64_t>(mask.values.size()));
    std::fill(mask.values.begin() + begin, mask.values.begin() + end, random.Pick({0.0, 1.0}));
  }
  mask.visible.assign(mask.values.size(), true);
  return mask;
}

}  // namespace

Operands MakeOperands(const Problem& problem, uint64_t seed) {
  Random random(seed);
  random.Next();  // MakeCall starts from the same seed
  const bool packed = problem.layout == Layout::kTND;
  const int64_t batch = packed ? 1 : problem.batch;
  const double spread = random.Pick({0.5, 0.5, 0.5, 3.0, 0.01});
  Operands o;
  o.query = RandomOperand(problem.dtype, {batch, problem.q_heads, problem.q_len, problem.head_dim},
                          spread, random);
  o.key = RandomOperand(problem.dtype, {batch, problem.kv_heads, problem.kv_len, problem.head_dim},
                        spread, random);
  o.value = RandomOperand(
      problem.dtype, {batch, problem.kv_heads, problem.kv_len, problem.value_dim}, spread, random);
  o.dy = RandomOperand(problem.dtype, {batch, problem.q_heads, problem.q_len, problem.value_dim},
                       spread, random);
  if (problem.rope_dim > 0) {
    o.query_rope = RandomOperand(
        problem.dtype, {batch, problem.q_heads, problem.q_len, problem.rope_dim}, spread, random);
    o.key_rope = RandomOperand(
        problem.dtype, {batch, problem.kv_heads, problem.kv_len, problem.rope_dim}, spread, random);
  }
  if (problem.pse.kind != PseKind::kNone) o.pse = RandomPse(problem, spread, random);
  if (problem.mask.source == MaskSource::kDense) o.mask = RandomMask(problem.mask, random);
  PlantSpecials(problem.pse, o, random);
  if (problem.has_sink) {
    for (int64_t h = 0; h < problem.q_heads; ++h) {
      o.sink.push_back(static_cast<float>(4 * random.Signed()));
    }
  }
  if (problem.dropout == DropoutKind::kExternal) {
    for (int64_t n = (problem.numels + 7) / 8; n > 0; --n) {
      o.dropout_mask.push_back(static_cast<uint8_t>(random.Next()));
    }
  }
  o.philox_seed = random.Next();
  o.philox_offset = random.Chance(50) ? random.Next() : random.Int(0, 100);

  for (int64_t n = 0; n < problem.sequences() && problem.head_dim > 0; ++n) {
    const Sequence s = problem.SequenceAt(n);
    for (int64_t head = 0; head < problem.q_heads; ++head) {
      for (int64_t row = 0; row < s.q_len; ++row) MarkVisible(problem, s, head, row, o);
    }
  }
  return o;
}

}  // namespace fusion_attention::fuzz
