// Backward(): the gradients of a planned problem, given the forward results.
#pragma once

#include "fusion_attention/forward.h"

namespace fusion_attention {

struct BackwardArgs {
  Inputs inputs;
  ConstTensorView dy;            // gradient of attention_out
  ConstTensorView attention_in;  // attention_out as the forward pass stored it
  // Any pair that encodes the same normaliser log(sum) + max, (logsumexp, 1) included; contiguous,
  // in the order of Problem::StatisticsIndex.
  const float* softmax_max = nullptr;
  const float* softmax_sum = nullptr;
  TensorView dq;  // shapes of query, key, value; every element is written
  TensorView dk;
  TensorView dv;
  TensorView dq_rope;  // with ropes: shapes of query_rope and key_rope, every element is written
  TensorView dk_rope;
  ScoreView
      dpse;  // data == nullptr: not wanted. Shape of pse, contiguous; every element is written
  float* dsink = nullptr;  // [N]; nullptr: not wanted
};

Status Backward(const Plan& plan, const BackwardArgs& args, ParallelFor& threads);

}  // namespace fusion_attention
