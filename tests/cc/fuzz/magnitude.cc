// The formulas of the operator once more, with absolute values in place of values.
#include "tests/cc/fuzz/magnitude.h"

#include <algorithm>
#include <cmath>

#include "fusion_attention/plan.h"
#include "src/reference/row.h"

namespace fusion_attention::fuzz {
namespace {

using reference::HeadIndex;
using reference::Matrix;
using reference::ReadRows;
using reference::ReadScoreRows;
using reference::VisibleRow;

double AbsDot(const double* a, const double* b, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += std::fabs(a[i] * b[i]);
  return sum;
}

// A row of one head with its operands.
struct Row {
  HeadIndex at;
  int64_t kv_head;
  int64_t row;
  VisibleRow visible;
  double score_size;  // the largest sum of what a score adds up, in absolute values, and |sink|
};

double ScoreSize(const Problem& p, const Inputs& in, const Row& row, const Matrix& query,
                 const Matrix& key) {
  const Sequence& s = row.at.sequence;
  double largest = p.has_sink ? std::fabs(in.sink[row.at.head]) : 0;
  for (const int64_t j : row.visible.keys) {
    const double scale = std::fabs(p.scale);
    double size = scale * AbsDot(query.Row(row.row), key.Row(j), p.score_dim());
    if (p.pse.kind != PseKind::kNone) {
      const PseElement e = reference::PseElementOf(p, s, row.row, j);
      const ScoreStrides& t = in.pse.strides;
      const double bias =
          reference::PseFactor(p, s, row.row, j) *
          reference::Load(in.pse.data, in.pse.dtype,
                          s.batch * t.batch + row.at.head * t.head + e.row * t.row + e.key * t.key);
      size += (p.pse.after_scale ? 1 : scale) * std::fabs(bias);
    }
    if (std::isfinite(size)) largest = std::max(largest, size);
  }
  return largest;
}

// Calls visit(row, value) for every row of every head that attends to something.
template <typename Visit>
void ForEachRow(const Problem& p, const Inputs& in, Visit visit) {
  for (int64_t n = 0; n < p.sequences(); ++n) {
    const Sequence s = p.SequenceAt(n);
    if (reference::HasNoScores(p, s)) continue;
    for (int64_t head = 0; head < p.q_heads; ++head) {
      const int64_t kv_head = head / p.group();
      const Matrix query =
          ReadScoreRows(p, in.query, in.query_rope, s.batch, head, s.q_begin, s.q_len);
      const Matrix key =
          ReadScoreRows(p, in.key, in.key_rope, s.batch, kv_head, s.kv_begin, s.kv_len);
      const Matrix value = ReadRows(in.value, s.batch, kv_head, s.kv_begin, s.kv_len, p.value_dim);
      for (int64_t i = 0; i < s.q_len; ++i) {
        Row row = {{s, head}, kv_head, i, {}, 0};
        row.visible = ScoresOfRow(p, in, row.at, query, key, i);
        if (row.visible.Empty()) continue;
        row.score_size = ScoreSize(p, in, row, query, key);
        visit(row, query, key, value);
      }
    }
  }
}

// First element of a token of one head in a contiguous [batch, heads, tokens, dim].
int64_t TokenIndex(const Problem& p, const Sequence& s, int64_t heads, int64_t tokens, int64_t dim,
                   int64_t head, int64_t token) {
  const int64_t batch = p.layout == Layout::kTND ? 0 : s.batch;
  return ((batch * heads + head) * tokens + token) * dim;
}

double ElementOf(const std::vector<char>& bytes, DType dtype, int64_t index) {
  return reference::Load(bytes.data(), dtype, index);
}

}  // namespace

double UnitRoundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat32:
      return 0x1p-24;
    default:
      return 0x1p-53;
  }
}

double FactorRoundoff(const std::string& backend, DType dtype) {
  const bool native = backend == "cpu" && *SelectedTarget() == "avx512_bf16";
  return native && dtype == DType::kBFloat16 ? UnitRoundoff(dtype) : 0;
}

double ArithmeticRoundoff(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24; }

double SmallestWeight(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-1021 : 0x1p-125; }

double SmallestDistance(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 0x1p-24;
    case DType::kBFloat16:
      return 0x1p-133;
    case DType::kFloat32:
      return 0x1p-149;
    default:
      return 0x1p-1074;
  }
}

ForwardMagnitudes MagnitudesOfForward(const Problem& p, const Inputs& in) {
  const Four extent = OutExtent(p);
  ForwardMagnitudes m;
  m.out.resize(extent[0] * extent[1] * extent[2] * extent[3]);
  m.score_size.resize(StatisticsSize(p));
  ForEachRow(p, in, [&](const Row& row, const Matrix&, const Matrix&, const Matrix& value) {
    const Sequence& s = row.at.sequence;
    const double max = row.visible.maximum;
    double sum = p.has_sink ? std::exp(in.sink[row.at.head] - max) : 0;
    for (const double score : row.visible.scores) sum += std::exp(score - max);
    Magnitude* const out =
        &m.out[TokenIndex(p, s, p.q_heads, p.q_len, p.value_dim, row.at.head, s.q_begin + row.row)];
    for (size_t n = 0; n < row.visible.keys.size(); ++n) {
      const int64_t j = row.visible.keys[n];
      const double weight = std::exp(row.visible.scores[n] - max) / sum;
      const double drop = Dropped(p, in, row.at, row.row, j, 1);
      for (int64_t c = 0; c < p.value_dim; ++c) {
        out[c].Add(drop == 0 ? 0 : weight, drop * value.Row(j)[c], row.score_size, value.Row(j)[c]);
      }
    }
    std::fill_n(m.score_size.begin() + p.StatisticsIndex(s, row.at.head, row.row), 8,
                row.score_size);
  });
  return m;
}

BackwardMagnitudes MagnitudesOfBackward(const Problem& p, const Inputs& in, ConstTensorView dy,
                                        const Results& given) {
  const auto size = [](const Four& e) { return e[0] * e[1] * e[2] * e[3]; };
  BackwardMagnitudes m;
  m.dq.resize(size(QueryExtent(p)));
  m.dk.resize(size(KeyExtent(p)));
  m.dv.resize(size(ValueExtent(p)));
  m.dq_rope.resize(size(QueryRopeExtent(p)));
  m.dk_rope.resize(size(KeyRopeExtent(p)));
  m.dpse.resize(PseSize(p));
  m.dsink.resize(p.has_sink ? p.q_heads : 0);
  const auto* const given_max = reinterpret_cast<const float*>(given.max.data());
  const auto* const given_sum = reinterpret_cast<const float*>(given.sum.data());
  ForEachRow(
      p, in, [&](const Row& row, const Matrix& query, const Matrix& key, const Matrix& value) {
        const Sequence& s = row.at.sequence;
        const int64_t head = row.at.head;
        const int64_t token = s.q_begin + row.row;
        const int64_t statistics = p.StatisticsIndex(s, head, row.row);
        const double max = given_max[statistics];
        const double sum = given_sum[statistics];
        const Matrix dy_row = ReadRows(dy, s.batch, head, token, 1, p.value_dim);
        const int64_t out = TokenIndex(p, s, p.q_heads, p.q_len, p.value_dim, head, token);
        double delta = 0;  // sum |o do|
        for (int64_t c = 0; c < p.value_dim; ++c) {
          const double o = ElementOf(given.out, p.dtype, out + c);
          delta += o == 0 ? 0 : std::fabs(o * dy_row.Row(0)[c]);
        }
        // What lies at channel 0 of a row, from tensors of any number of channels, 0 included.
        const auto row_of = [&](std::vector<Magnitude>& all, int64_t heads, int64_t tokens,
                                int64_t dim, int64_t h, int64_t t) {
          return all.data() + TokenIndex(p, s, heads, tokens, dim, h, t);
        };
        Magnitude* const dq = row_of(m.dq, p.q_heads, p.q_len, p.head_dim, head, token);
        Magnitude* const dq_rope = row_of(m.dq_rope, p.q_heads, p.q_len, p.rope_dim, head, token);
        for (size_t n = 0; n < row.visible.keys.size(); ++n) {
          const int64_t j = row.visible.keys[n];
          const int64_t key_token = s.kv_begin + j;
          Magnitude* const dk =
              row_of(m.dk, p.kv_heads, p.kv_len, p.head_dim, row.kv_head, key_token);
          Magnitude* const dk_rope =
              row_of(m.dk_rope, p.kv_heads, p.kv_len, p.rope_dim, row.kv_head, key_token);
          Magnitude* const dv =
              row_of(m.dv, p.kv_heads, p.kv_len, p.value_dim, row.kv_head, key_token);
          const double weight = std::exp(row.visible.scores[n] - max) / sum;
          const double drop = Dropped(p, in, row.at, row.row, j, 1);
          const double dp =
              Dropped(p, in, row.at, row.row, j, AbsDot(dy_row.Row(0), value.Row(j), p.value_dim));
          const double ds = dp + delta;  // but for the weight
          const double scaled = std::fabs(p.scale) * ds;
          for (int64_t c = 0; c < p.value_dim; ++c) {
            dv[c].Add(drop == 0 ? 0 : weight, drop * dy_row.Row(0)[c], row.score_size,
                      dy_row.Row(0)[c]);
          }
          for (int64_t c = 0; c < p.head_dim; ++c) {
            dq[c].Add(weight, scaled * key.Row(j)[c], row.score_size, key.Row(j)[c], p.scale);
            dk[c].Add(weight, scaled * query.Row(row.row)[c], row.score_size, query.Row(row.row)[c],
                      p.scale);
          }
          for (int64_t c = 0; c < p.rope_dim; ++c) {
            const int64_t channel = p.head_dim + c;
            dq_rope[c].Add(weight, scaled * key.Row(j)[channel], row.score_size,
                           key.Row(j)[channel], p.scale);
            dk_rope[c].Add(weight, scaled * query.Row(row.row)[channel], row.score_size,
                           query.Row(row.row)[channel], p.scale);
          }
          if (p.pse.kind != PseKind::kNone) {
            const PseElement e = reference::PseElementOf(p, s, row.row, j);
            const int64_t plane = s.batch % p.pse.batch * p.q_heads + head;
            m.dpse[(plane * p.pse.rows + e.row) * p.pse.keys + e.key].Add(
                weight, (p.pse.after_scale ? ds : scaled) * reference::PseFactor(p, s, row.row, j),
                row.score_size);
          }
        }
        if (p.has_sink && !row.visible.keys.empty()) {
          m.dsink[head].Add(std::exp(in.sink[head] - max) / sum, delta, row.score_size);
        }
      });
  return m;
}

}  // namespace fusion_attention::fuzz
