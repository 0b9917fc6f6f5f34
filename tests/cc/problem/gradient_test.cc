// The gradient entry: which tensors fit in each layout, and that it refuses nothing that the
// forward entry accepts.
#include <gtest/gtest.h>

#include "tests/cc/problem/calls.h"

namespace fusion_attention {
namespace {

void SetGradient(Call& call, const Sizes& out, const Sizes& statistics) {
  GradCall& grad = call.grad.emplace();
  grad.dy = grad.attention_in = TensorSpec{call.query.dtype, out};
  grad.softmax_max = grad.softmax_sum = TensorSpec{DType::kFloat32, statistics};
}

TEST(GradientTest, Dense) { EXPECT_TRUE(Validate(Gradient()).ok()); }

TEST(GradientTest, Folded) {
  Call call = Folded();
  SetGradient(call, {2, 16, 24}, {2, 4, 16, 8});
  EXPECT_TRUE(Validate(call).ok()) << Validate(call).status().message();
  call.grad->dy.shape = {2, 16, 32};
  EXPECT_FALSE(Validate(call).ok());
}

TEST(GradientTest, PackedAndDiagonalBand) {
  Call call = Packed();
  SetMask(call, 4, {2048, 2048});
  SetTokens(call, 0, 0);
  SetGradient(call, {13, 4, 6}, {13, 4, 8});
  EXPECT_TRUE(Validate(call).ok()) << Validate(call).status().message();
}

TEST(GradientTest, Float16) {
  Call call = Dense();
  call.query.dtype = call.key.dtype = call.value.dtype = DType::kFloat16;
  SetGradient(call, {2, 4, 16, 6}, {2, 4, 16, 8});
  EXPECT_TRUE(Validate(call).ok()) << Validate(call).status().message();
}

TEST(GradientTest, NumelsCountOnlyWithDropout) {
  Call call = Gradient();
  call.grad->numels = -7;
  EXPECT_TRUE(Validate(call).ok());
  call.keep_prob = 0.9;
  EXPECT_FALSE(Validate(call).ok());
  call.grad->numels = 0;
  EXPECT_TRUE(Validate(call).ok());
  call.grad->numels = 3072;
  EXPECT_TRUE(Validate(call).ok());
  call.grad->numels.reset();
  EXPECT_TRUE(Validate(call).ok());
}

// The same broken call gives the same text in both entries.
TEST(GradientTest, SameTextAsForward) {
  Call forward = Dense();
  forward.head_num = 8;
  Call gradient = Gradient();
  gradient.head_num = 8;
  EXPECT_EQ(Validate(forward).status().message(), Validate(gradient).status().message());
}

}  // namespace
}  // namespace fusion_attention
