// Forward(): attention_out, softmax_max and softmax_sum of a planned problem.
#pragma once

#include <cstdint>

#include "fusion_attention/parallel.h"
#include "fusion_attention/plan.h"
#include "fusion_attention/status.h"
#include "fusion_attention/tensor_view.h"

namespace fusion_attention {

// What both directions read. Absent tensors have data == nullptr; which ones must be present
// follows from the plan's problem.
struct Inputs {
  ConstTensorView query;       // [B, N, Sq, D] through its strides; dtype of the problem
  ConstTensorView key;         // [B, Nkv, Skv, D]
  ConstTensorView value;       // [B, Nkv, Skv, Dv]
  ConstTensorView query_rope;  // [B, N, Sq, Dr]; present when rope_dim > 0
  ConstTensorView key_rope;    // [B, Nkv, Skv, Dr]
  ConstScoreView pse;  // dtype of the problem; row and key index its own extents (1024 rows when
                       // compressed); slopes: float32, one per (batch, head)
  ConstScoreView atten_mask;    // dense masks only: non-zero bytes mask
  const float* sink = nullptr;  // [N]
  const uint8_t* dropout_mask =
      nullptr;          // bit k of byte k / 8 keeps element k; ceil(numels / 8) bytes
  uint64_t seed = 0;    // Philox key
  uint64_t offset = 0;  // Philox counter, words 2 and 3
};

struct ForwardArgs {
  Inputs inputs;
  TensorView out;  // [B, N, Sq, Dv]; every element is written
  float* softmax_max =
      nullptr;  // contiguous, kStatisticsCopies a row; Problem::StatisticsIndex gives the order
  float* softmax_sum = nullptr;
};

Status Forward(const Plan& plan, const ForwardArgs& args, ParallelFor& threads);

}  // namespace fusion_attention
