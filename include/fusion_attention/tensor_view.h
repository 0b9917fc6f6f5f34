// Views of the caller's tensors: a pointer and strides. A layout is nothing but strides, so below
// this line nobody knows layouts.
#pragma once

#include <cstdint>

#include "fusion_attention/dtype.h"
#include "fusion_attention/problem.h"

namespace fusion_attention {

// Strides in elements for index (batch, head, token, channel). Any value is legal, 0 and negative
// included. TND has batch = 0: a sequence enters through its first token.
struct Strides {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t token = 0;
  int64_t channel = 1;
};

template <typename Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::kFloat32;
  Strides strides;
};
using TensorView = BasicTensorView<void>;             // written by the operator
using ConstTensorView = BasicTensorView<const void>;  // read by the operator

// Strides in elements for index (batch, head, row, key) of a mask or a pse; broadcast axes have
// stride 0.
struct ScoreStrides {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t row = 0;
  int64_t key = 1;
};

template <typename Void>
struct BasicScoreView {
  Void* data = nullptr;
  DType dtype = DType::kUInt8;
  ScoreStrides strides;
};
using ScoreView = BasicScoreView<void>;
using ConstScoreView = BasicScoreView<const void>;

// Element strides of a contiguous tensor of `layout` with `heads` heads of `dim` channels and, in
// dense layouts, `tokens` tokens in `batch`.
Strides ContiguousStrides(Layout layout, int64_t batch, int64_t heads, int64_t tokens, int64_t dim);

}  // namespace fusion_attention
