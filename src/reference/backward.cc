// The backward pass, for every query row i of every head, from the statistics (m_i, l_i) of the
// forward pass:
//   P_ij  = exp(t_ij - m_i) / l_i
//   D_i   = o_i . do_i
//   dP_ij = drop_ij * (do_i . v_j)
//   dS_ij = P_ij * (dP_ij - D_i)
//   dv_j  = sum_i drop_ij * P_ij * do_i          dq_i = scale * sum_j dS_ij * k_j
//   dk_j  = scale * sum_i dS_ij * q_i            dsink = -sum_i exp(sink - m_i) / l_i * D_i
//   dbias_ij = dS_ij, times scale if the bias is added before scaling
// q and k have the channels of their ropes behind their own. Keys and values shared by several
// query heads add up over those heads; an element of pse over all scores that read it, each times
// the factor that the score took it by.
#include <cmath>
#include <utility>

#include "src/reference/reference.h"
#include "src/reference/row.h"

namespace fusion_attention::reference {
namespace {

// The gradients of one key head of one sequence.
struct KeyHead {
  Matrix key;  // [kv_len, score_dim]
  Matrix value;
  Matrix dk;
  Matrix dv;
};

// The gradients that collect over sequences. Empty when not wanted.
struct Collected {
  std::vector<double> dpse;   // [pse.batch, q_heads, pse.rows, pse.keys]
  std::vector<double> dsink;  // [q_heads]
};

// A product with an output of exactly 0 counts 0, so that what is done to rows that attend to
// nothing cannot matter.
double RowDot(const double* out, const double* dy, int64_t size) {
  double sum = 0;
  for (int64_t c = 0; c < size; ++c) sum += out[c] == 0 ? 0 : out[c] * dy[c];
  return sum;
}

double* DpseElement(const Problem& problem, const HeadIndex& at, int64_t row, int64_t key,
                    Collected& collected) {
  const PseSpec& pse = problem.pse;
  const PseElement e = PseElementOf(problem, at.sequence, row, key);
  const int64_t plane = at.sequence.batch % pse.batch * problem.q_heads + at.head;
  return &collected.dpse[(plane * pse.rows + e.row) * pse.keys + e.key];
}

void BackwardRow(const Problem& problem, const BackwardArgs& args, const HeadIndex& at,
                 const VisibleRow& visible, int64_t row, const double* query, const double* dy,
                 double out_dot_dy, KeyHead& kv, double* dq, Collected& collected) {
  const int64_t index = problem.StatisticsIndex(at.sequence, at.head, row);
  const double max = args.softmax_max[index];
  const double sum = args.softmax_sum[index];
  for (size_t n = 0; n < visible.keys.size(); ++n) {
    const int64_t j = visible.keys[n];
    const double p = std::exp(visible.scores[n] - max) / sum;
    const double dropped_p = Dropped(problem, args.inputs, at, row, j, p);
    const double dp =
        Dropped(problem, args.inputs, at, row, j, Dot(dy, kv.value.Row(j), problem.value_dim));
    const double ds = p * (dp - out_dot_dy);
    for (int64_t c = 0; c < problem.value_dim; ++c) kv.dv.Row(j)[c] += dropped_p * dy[c];
    for (int64_t c = 0; c < problem.score_dim(); ++c) {
      dq[c] += problem.scale * ds * kv.key.Row(j)[c];
      kv.dk.Row(j)[c] += problem.scale * ds * query[c];
    }
    if (collected.dpse.empty()) continue;
    const double dbias = problem.pse.after_scale ? ds : problem.scale * ds;
    *DpseElement(problem, at, row, j, collected) += dbias * PseFactor(problem, at.sequence, row, j);
  }
  if (!collected.dsink.empty()) {
    collected.dsink[at.head] -= std::exp(args.inputs.sink[at.head] - max) / sum * out_dot_dy;
  }
}

void BackwardHead(const Problem& problem, const BackwardArgs& args, const HeadIndex& at,
                  KeyHead& kv, Collected& collected) {
  const Sequence& s = at.sequence;
  const Matrix query = ReadScoreRows(problem, args.inputs.query, args.inputs.query_rope, s.batch,
                                     at.head, s.q_begin, s.q_len);
  const Matrix dy = ReadRows(args.dy, s.batch, at.head, s.q_begin, s.q_len, problem.value_dim);
  const Matrix out =
      ReadRows(args.attention_in, s.batch, at.head, s.q_begin, s.q_len, problem.value_dim);
  Matrix dq(s.q_len, problem.score_dim());
  for (int64_t row = 0; row < s.q_len; ++row) {
    const VisibleRow visible = ScoresOfRow(problem, args.inputs, at, query, kv.key, row);
    // Without a visible key the output is 0 whatever the operands are, sink or not.
    if (visible.Empty() || visible.keys.empty()) continue;
    BackwardRow(problem, args, at, visible, row, query.Row(row), dy.Row(row),
                RowDot(out.Row(row), dy.Row(row), problem.value_dim), kv, dq.Row(row), collected);
  }
  WriteRows(Columns(dq, 0, problem.head_dim), args.dq, s.batch, at.head, s.q_begin);
  WriteRows(Columns(dq, problem.head_dim, problem.rope_dim), args.dq_rope, s.batch, at.head,
            s.q_begin);
}

// Tokens that belong to no sequence have gradient 0.
void FillZero(const Problem& problem, const BackwardArgs& args) {
  const int64_t batches = problem.layout == Layout::kTND ? 1 : problem.batch;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t h = 0; h < problem.q_heads; ++h) {
      ZeroRows(args.dq, b, h, problem.q_len, problem.head_dim);
      ZeroRows(args.dq_rope, b, h, problem.q_len, problem.rope_dim);
    }
    for (int64_t h = 0; h < problem.kv_heads; ++h) {
      ZeroRows(args.dk, b, h, problem.kv_len, problem.head_dim);
      ZeroRows(args.dk_rope, b, h, problem.kv_len, problem.rope_dim);
      ZeroRows(args.dv, b, h, problem.kv_len, problem.value_dim);
    }
  }
}

}  // namespace

void Backward(const Problem& problem, const BackwardArgs& args) {
  FillZero(problem, args);
  Collected collected;
  if (args.dpse.data != nullptr) {
    const PseSpec& pse = problem.pse;
    collected.dpse.resize(pse.batch * problem.q_heads * pse.rows * pse.keys);
  }
  if (args.dsink != nullptr) collected.dsink.resize(problem.q_heads);

  for (int64_t n = 0; n < problem.sequences(); ++n) {
    const Sequence s = problem.SequenceAt(n);
    if (HasNoScores(problem, s)) continue;
    for (int64_t kv_head = 0; kv_head < problem.kv_heads; ++kv_head) {
      KeyHead kv{
          ReadScoreRows(problem, args.inputs.key, args.inputs.key_rope, s.batch, kv_head,
                        s.kv_begin, s.kv_len),
          ReadRows(args.inputs.value, s.batch, kv_head, s.kv_begin, s.kv_len, problem.value_dim),
          Matrix(s.kv_len, problem.score_dim()), Matrix(s.kv_len, problem.value_dim)};
      for (int64_t g = 0; g < problem.group(); ++g) {
        BackwardHead(problem, args, {s, kv_head * problem.group() + g}, kv, collected);
      }
      WriteRows(Columns(kv.dk, 0, problem.head_dim), args.dk, s.batch, kv_head, s.kv_begin);
      WriteRows(Columns(kv.dk, problem.head_dim, problem.rope_dim), args.dk_rope, s.batch, kv_head,
                s.kv_begin);
      WriteRows(kv.dv, args.dv, s.batch, kv_head, s.kv_begin);
    }
  }

  for (size_t i = 0; i < collected.dpse.size(); ++i) {
    Store(args.dpse.data, args.dpse.dtype, static_cast<int64_t>(i), collected.dpse[i]);
  }
  if (args.dsink == nullptr) return;
  for (size_t h = 0; h < collected.dsink.size(); ++h) {
    args.dsink[h] = static_cast<float>(collected.dsink[h]);
  }
}

}  // namespace fusion_attention::reference
