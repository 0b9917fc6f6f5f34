// Call: the arguments of one call, exactly as the API page names them, without any data. It holds
// what any function of the family takes: npu_fusion_attention, _v2 and _v3 are front ends of it.
// It is what a front end fills in; Validate() turns it into a Problem or into an error text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fusion_attention/dtype.h"

namespace fusion_attention {

struct TensorSpec {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;

  bool operator==(const TensorSpec&) const = default;
};

// What only the gradient entry has: npu_fusion_attention_grad's extra arguments.
struct GradCall {
  TensorSpec dy;
  TensorSpec softmax_max;
  TensorSpec softmax_sum;
  TensorSpec attention_in;
  std::optional<int64_t>
      numels;  // absent, 0, or the number of dropout elements of the forward call

  bool operator==(const GradCall&) const = default;
};

struct Call {
  TensorSpec query;
  TensorSpec key;
  TensorSpec value;
  int64_t head_num = 0;
  std::string input_layout;
  std::optional<TensorSpec> pse;
  std::optional<TensorSpec> padding_mask;
  std::optional<TensorSpec> atten_mask;
  double scale = 1.0;
  double keep_prob = 1.0;
  int64_t pre_tockens = 2147483647;
  int64_t next_tockens = 2147483647;
  int64_t inner_precise = 0;
  std::optional<std::vector<int64_t>> prefix;
  std::optional<std::vector<int64_t>> actual_seq_qlen;
  std::optional<std::vector<int64_t>> actual_seq_kvlen;
  int64_t sparse_mode = 0;
  std::string softmax_layout;
  std::optional<TensorSpec> sink;
  std::optional<TensorSpec> dropout_mask;
  // What only npu_fusion_attention_v2 can state; the others leave these as they are.
  std::optional<TensorSpec> query_rope;  // more channels of query and key, for the scores alone
  std::optional<TensorSpec> key_rope;
  int64_t pse_type = 1;  // 0: pse after scaling, 1: before it, 2 and 3: pse holds ALiBi slopes
  std::optional<std::vector<int64_t>> q_start_idx;   // slopes: the position of row 0 ...
  std::optional<std::vector<int64_t>> kv_start_idx;  // ... and of key 0

  std::optional<GradCall> grad;  // present for the gradient entry

  bool operator==(const Call&) const = default;
};

}  // namespace fusion_attention
