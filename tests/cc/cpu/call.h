// One call on the CPU backend with random operands and chosen kernels: both directions, results as
// bytes, so that two calls can be compared bit for bit. Knows nothing of validation: tests state
// the problem.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "fusion_attention/backward.h"
#include "src/cpu/passes.h"
#include "src/reference/matrix.h"

namespace fusion_attention::cpu {

// A contiguous tensor; its bytes are 0xFF, a NaN, until they are written.
struct Tensor {
  Tensor() = default;
  Tensor(const Problem& p, int64_t heads, int64_t tokens, int64_t dim)
      : dim(dim),
        view{nullptr, p.dtype, ContiguousStrides(p.layout, p.batch, heads, tokens, dim)},
        bytes(static_cast<size_t>((p.layout == Layout::kTND ? 1 : p.batch) * heads * tokens * dim *
                                  SizeOf(p.dtype)),
              static_cast<char>(0xFF)) {}

  void Fill(std::mt19937& engine) {
    std::uniform_real_distribution<double> number(-1, 1);
    for (int64_t i = 0; i < Count(); ++i) {
      reference::Store(bytes.data(), view.dtype, i, number(engine));
    }
  }
  int64_t Count() const { return static_cast<int64_t>(bytes.size()) / SizeOf(view.dtype); }
  double At(int64_t i) const { return reference::Load(bytes.data(), view.dtype, i); }
  ConstTensorView Read() const {
    return {bytes.empty() ? nullptr : bytes.data(), view.dtype, view.strides};
  }
  TensorView Write() { return {bytes.empty() ? nullptr : bytes.data(), view.dtype, view.strides}; }

  int64_t dim = 0;
  TensorView view;
  std::vector<char> bytes;
};

struct Operands {
  Operands(const Problem& p, uint32_t seed)
      : query(p, p.q_heads, p.q_len, p.head_dim),
        key(p, p.kv_heads, p.kv_len, p.head_dim),
        value(p, p.kv_heads, p.kv_len, p.value_dim),
        query_rope(p, p.q_heads, p.q_len, p.rope_dim),
        key_rope(p, p.kv_heads, p.kv_len, p.rope_dim),
        dy(p, p.q_heads, p.q_len, p.value_dim) {
    std::mt19937 engine(seed);
    for (Tensor* t : {&query, &key, &value, &query_rope, &key_rope, &dy}) t->Fill(engine);
  }
  Tensor query, key, value, query_rope, key_rope, dy;
  // Stored elements of pse: contiguous [pse.batch, q_heads, pse.rows, pse.keys] of the problem's
  // dtype, float32 where they are slopes.
  std::vector<double> pse;
};

struct Results {
  Tensor out, dq, dk, dv, dq_rope, dk_rope;
  std::vector<float> max, sum;
  std::vector<double> dpse;
};

inline Results RunBoth(const Problem& p, const Operands& o, const Kernels& kernels, int threads) {
  const PseSpec& pse = p.pse;
  const DType pse_dtype = pse.kind == PseKind::kSlopes ? DType::kFloat32 : p.dtype;
  const ScoreStrides pse_strides{.batch = pse.batch == 1 ? 0 : p.q_heads * pse.rows * pse.keys,
                                 .head = pse.rows * pse.keys,
                                 .row = pse.rows == 1 ? 0 : pse.keys,
                                 .key = pse.keys == 1 ? 0 : 1};
  const auto pse_count = static_cast<int64_t>(o.pse.size());
  std::vector<char> pse_bytes(static_cast<size_t>(pse_count * SizeOf(pse_dtype)));
  std::vector<char> dpse_bytes(pse_bytes.size(), static_cast<char>(0xFF));
  for (int64_t i = 0; i < pse_count; ++i) {
    reference::Store(pse_bytes.data(), pse_dtype, i, o.pse[static_cast<size_t>(i)]);
  }

  Results r;
  r.out = Tensor(p, p.q_heads, p.q_len, p.value_dim);
  const int64_t rows = (p.layout == Layout::kTND ? 1 : p.batch) * p.q_heads * p.q_len;
  r.max.resize(static_cast<size_t>(rows * 8));
  r.sum = r.max;
  ForwardArgs forward;
  forward.inputs.query = o.query.Read();
  forward.inputs.key = o.key.Read();
  forward.inputs.value = o.value.Read();
  if (p.rope_dim > 0) {
    forward.inputs.query_rope = o.query_rope.Read();
    forward.inputs.key_rope = o.key_rope.Read();
  }
  forward.inputs.pse = {pse_count == 0 ? nullptr : pse_bytes.data(), pse_dtype, pse_strides};
  forward.inputs.seed = 7;
  forward.out = r.out.Write();
  forward.softmax_max = r.max.data();
  forward.softmax_sum = r.sum.data();
  ThreadPool pool(threads);
  RunForward(p, forward, pool, kernels);

  r.dq = Tensor(p, p.q_heads, p.q_len, p.head_dim);
  r.dk = Tensor(p, p.kv_heads, p.kv_len, p.head_dim);
  r.dv = Tensor(p, p.kv_heads, p.kv_len, p.value_dim);
  r.dq_rope = Tensor(p, p.q_heads, p.q_len, p.rope_dim);
  r.dk_rope = Tensor(p, p.kv_heads, p.kv_len, p.rope_dim);
  BackwardArgs backward;
  backward.inputs = forward.inputs;
  backward.dy = o.dy.Read();
  backward.attention_in = r.out.Read();
  backward.softmax_max = r.max.data();
  backward.softmax_sum = r.sum.data();
  backward.dq = r.dq.Write();
  backward.dk = r.dk.Write();
  backward.dv = r.dv.Write();
  backward.dq_rope = r.dq_rope.Write();
  backward.dk_rope = r.dk_rope.Write();
  backward.dpse = {pse_count == 0 ? nullptr : dpse_bytes.data(), pse_dtype, pse_strides};
  RunBackward(p, backward, pool, kernels);
  for (int64_t i = 0; i < pse_count; ++i) {
    r.dpse.push_back(reference::Load(dpse_bytes.data(), pse_dtype, i));
  }
  return r;
}

}  // namespace fusion_attention::cpu
