// Valid calls that the tests of validation start from, one per family of layouts, and short ways to
// change them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "fusion_attention/call.h"
#include "fusion_attention/problem.h"

namespace fusion_attention {

using Sizes = std::vector<int64_t>;

// B=2, N=4, Nkv=2, Sq=16, Skv=24, D=8, Dv=6.
inline Call Dense() {
  Call call;
  call.query.shape = {2, 4, 16, 8};
  call.key.shape = {2, 2, 24, 8};
  call.value.shape = {2, 2, 24, 6};
  call.head_num = 4;
  call.input_layout = "BNSD";
  return call;
}

// The same problem with the heads folded into H.
inline Call Folded() {
  Call call = Dense();
  call.query.shape = {2, 16, 32};
  call.key.shape = {2, 24, 16};
  call.value.shape = {2, 24, 12};
  call.input_layout = "BSH";
  return call;
}

// Three sequences with Sq = 3, 5, 4 and Skv = 4, 5, 6; N=4, Nkv=2, D=8, Dv=6; T is one more than
// used.
inline Call Packed() {
  Call call = Dense();
  call.query.shape = {13, 4, 8};
  call.key.shape = {16, 2, 8};
  call.value.shape = {16, 2, 6};
  call.input_layout = "TND";
  call.actual_seq_qlen = {3, 8, 12};
  call.actual_seq_kvlen = {4, 9, 15};
  return call;
}

// Sq = Skv = 1536, long enough for a compressed pse; a causal mask of mode 2.
inline Call Long() {
  Call call = Dense();
  call.query.shape = {2, 4, 1536, 8};
  call.key.shape = {2, 2, 1536, 8};
  call.value.shape = {2, 2, 1536, 6};
  call.sparse_mode = 2;
  call.atten_mask = TensorSpec{DType::kBool, {2048, 2048}};
  return call;
}

// Packed sequences of Sq = Skv = 1200, 7; a causal mask of mode 3; a compressed pse.
inline Call PackedLong() {
  Call call = Packed();
  call.query.shape = {1207, 4, 8};
  call.key.shape = {1207, 2, 8};
  call.value.shape = {1207, 2, 6};
  call.actual_seq_qlen = {1200, 1207};
  call.actual_seq_kvlen = {1200, 1207};
  call.sparse_mode = 3;
  call.atten_mask = TensorSpec{DType::kBool, {2048, 2048}};
  call.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1200}};
  return call;
}

// Packed() with ropes of 4 channels; a causal mask of mode 3.
inline Call Roped() {
  Call call = Packed();
  call.sparse_mode = 3;
  call.atten_mask = TensorSpec{DType::kBool, {2048, 2048}};
  call.query_rope = TensorSpec{DType::kFloat32, {13, 4, 4}};
  call.key_rope = TensorSpec{DType::kFloat32, {16, 2, 4}};
  return call;
}

// Dense() with Sq = Skv = 16 and one slope per head.
inline Call Slopes() {
  Call call = Dense();
  call.query.shape[2] = call.key.shape[2] = call.value.shape[2] = 16;
  call.pse = TensorSpec{DType::kFloat32, {4}};
  call.pse_type = 2;
  return call;
}

// Packed sequences of Sq = 3, 5, 4 and Skv = 5, 5, 4, the first cut before its rows (mode 8), with
// slopes.
inline Call CutSlopes() {
  Call call = Packed();
  call.query.shape[0] = 12;
  call.key.shape[0] = call.value.shape[0] = 14;
  call.actual_seq_kvlen = {5, 10, 14};
  call.sparse_mode = 8;
  call.atten_mask = TensorSpec{DType::kBool, {2048, 2048}};
  call.pse = TensorSpec{DType::kFloat32, {4}};
  call.pse_type = 3;
  call.q_start_idx = {2};
  call.kv_start_idx = {0};
  return call;
}

// Dense() with the tensors that its gradient takes.
inline Call Gradient() {
  Call call = Dense();
  GradCall& grad = call.grad.emplace();
  grad.dy.shape = {2, 4, 16, 6};
  grad.attention_in.shape = {2, 4, 16, 6};
  grad.softmax_max.shape = {2, 4, 16, 8};
  grad.softmax_sum.shape = {2, 4, 16, 8};
  return call;
}

inline void SetMask(Call& call, int64_t sparse_mode, Sizes shape) {
  call.sparse_mode = sparse_mode;
  call.atten_mask = TensorSpec{DType::kBool, std::move(shape)};
}

inline void SetTokens(Call& call, int64_t pre, int64_t next) {
  call.pre_tockens = pre;
  call.next_tockens = next;
}

// Dense layouts: Sq and Skv.
inline void SetLengths(Call& call, int64_t q_len, int64_t kv_len) {
  call.query.shape[2] = q_len;
  call.key.shape[2] = kv_len;
  call.value.shape[2] = kv_len;
}

// TND: cumulative lengths, and tensors that hold just them.
inline void SetEnds(Call& call, Sizes q_ends, Sizes kv_ends) {
  int64_t q_tokens = 0, kv_tokens = 0;
  for (const int64_t end : q_ends) q_tokens = std::max(q_tokens, end);
  for (const int64_t end : kv_ends) kv_tokens = std::max(kv_tokens, end);
  call.query.shape[0] = q_tokens;
  call.key.shape[0] = kv_tokens;
  call.value.shape[0] = kv_tokens;
  call.actual_seq_qlen = std::move(q_ends);
  call.actual_seq_kvlen = std::move(kv_ends);
}

}  // namespace fusion_attention
