// Rows for the rules of validate_inputs.cc and validate_ropes.cc: sink, dropout_mask, ropes and the
// gradient entry.
#include <limits>

#include "tests/cc/problem/reject_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

}  // namespace

std::vector<Reject> InputRejects() {
  return {
      // Sink and dropout mask
      {"sink_dtype", Dense,
       [](Call& c) {
         c.sink = TensorSpec{DType::kFloat16, {4}};
       },
       "sink to have dtype float32, but got sink.dtype=float16"},
      {"sink_shape", Dense,
       [](Call& c) {
         c.sink = TensorSpec{DType::kFloat32, {2}};
       },
       "sink to have shape [N], but got sink.shape=[2] (N=4)"},
      {"sink_rank", Dense,
       [](Call& c) {
         c.sink = TensorSpec{DType::kFloat32, {1, 4}};
       },
       "sink to have shape [N]"},
      {"sink_scalar", Dense,
       [](Call& c) {
         c.sink = TensorSpec{DType::kFloat32, {}};
       },
       "sink to have shape [N], but got sink.shape=[]"},
      {"dropout_mask_dtype", Dense,
       [](Call& c) {
         c.dropout_mask = TensorSpec{DType::kBool, {10000}};
       },
       "dropout_mask to have dtype uint8, but got dropout_mask.dtype=bool"},
      {"dropout_mask_short", Dense,
       [](Call& c) {
         c.dropout_mask = TensorSpec{DType::kUInt8, {383}};
       },
       "dropout_mask to have at least ceil(numels / 8) elements, but got dropout_mask.shape=[383] "
       "(numels=3072)"},
      {"dropout_mask_negative", Dense,
       [](Call& c) {
         c.dropout_mask = TensorSpec{DType::kUInt8, {-1, kMin}};
       },
       "dropout_mask to have at least ceil(numels / 8) elements"},
      // Ropes
      {"key_rope_missing", Roped, [](Call& c) { c.key_rope.reset(); },
       "key_rope to be given together with the other rope, but got key_rope=None"},
      {"query_rope_missing", Roped, [](Call& c) { c.query_rope->shape.clear(); },
       "query_rope to be given together with the other rope, but got query_rope=None"},
      {"rope_dense", Dense,
       [](Call& c) {
         c.query_rope = TensorSpec{DType::kFloat32, {2, 4, 16, 4}};
         c.key_rope = TensorSpec{DType::kFloat32, {2, 2, 24, 4}};
       },
       "query_rope to be None in layouts other than TND, but got query_rope.shape=[2, 4, 16, 4] "
       "(input_layout='BNSD')"},
      {"query_rope_dtype", Roped, [](Call& c) { c.query_rope->dtype = DType::kBFloat16; },
       "query_rope to have the dtype of query, but got query_rope.dtype=bfloat16"},
      {"key_rope_dtype", Roped, [](Call& c) { c.key_rope->dtype = DType::kBool; },
       "key_rope to have the dtype of query, but got key_rope.dtype=bool"},
      {"query_rope_rank", Roped,
       [](Call& c) {
         c.query_rope->shape = {13, 16};
       },
       "query_rope to have T and N of query, but got query_rope.shape=[13, 16]"},
      {"query_rope_tokens", Roped, [](Call& c) { c.query_rope->shape[0] = 12; },
       "query_rope to have T and N of query"},
      {"query_rope_heads", Roped, [](Call& c) { c.query_rope->shape[1] = kMax; },
       "query_rope to have T and N of query"},
      {"key_rope_tokens", Roped, [](Call& c) { c.key_rope->shape[0] = 13; },
       "key_rope to have T and N of key, but got key_rope.shape=[13, 2, 4] (key.shape=[16, 2, 8])"},
      {"key_rope_heads", Roped, [](Call& c) { c.key_rope->shape[1] = 4; },
       "key_rope to have T and N of key"},
      {"key_rope_rank", Roped, [](Call& c) { c.key_rope->shape.push_back(1); },
       "key_rope to have T and N of key"},
      {"query_rope_without_channels", Roped, [](Call& c) { c.query_rope->shape[2] = 0; },
       "query_rope to have D in [1, D of query], but got query_rope.shape=[13, 4, 0]"},
      {"query_rope_wide", Roped, [](Call& c) { c.query_rope->shape[2] = 9; },
       "query_rope to have D in [1, D of query]"},
      {"query_rope_extreme", Roped, [](Call& c) { c.query_rope->shape[2] = kMin; },
       "query_rope to have D in [1, D of query]"},
      {"key_rope_channels", Roped, [](Call& c) { c.key_rope->shape[2] = 3; },
       "key_rope to have D of query_rope, but got key_rope.shape=[16, 2, 3] "
       "(query_rope.shape=[13, 4, 4])"},
      {"rope_without_mask", Roped, [](Call& c) { c.atten_mask.reset(); },
       "atten_mask to be given with query_rope and key_rope, but got atten_mask=None"},
      {"rope_mode_6", Roped,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.prefix = {4, 5, 6};
       },
       "sparse_mode to be other than 6 with query_rope and key_rope, but got sparse_mode=6"},
      {"rope_pse", Roped,
       [](Call& c) {
         c.pse_type = 2;
         c.pse = TensorSpec{DType::kFloat32, {4}};
       },
       "pse to be None with query_rope and key_rope, but got pse.shape=[4]"},
      {"rope_dropout", Roped, [](Call& c) { c.keep_prob = 0.9; },
       "keep_prob to be 1 with query_rope and key_rope, but got keep_prob=0.9"},
      {"rope_dropout_of_all", Roped, [](Call& c) { c.keep_prob = 1e-10; },
       "keep_prob to be 1 with query_rope and key_rope"},
      {"rope_dropout_mask", Roped,
       [](Call& c) {
         c.dropout_mask = TensorSpec{DType::kUInt8, {1000}};
       },
       "dropout_mask to be None with query_rope and key_rope, but got dropout_mask.shape=[1000]"},
      // Gradient
      {"dy_dtype", Gradient, [](Call& c) { c.grad->dy.dtype = DType::kFloat16; },
       "dy to have the dtype of the forward output, but got dy.dtype=float16"},
      {"dy_shape", Gradient,
       [](Call& c) {
         c.grad->dy.shape = {2, 4, 16, 8};
       },
       "dy to have the shape of the forward output, but got dy.shape=[2, 4, 16, 8] "
       "(attention_out.shape=[2, 4, 16, 6])"},
      {"attention_in_dtype", Gradient, [](Call& c) { c.grad->attention_in.dtype = DType::kOther; },
       "attention_in to have the dtype of the forward output"},
      {"attention_in_rank", Gradient,
       [](Call& c) {
         c.grad->attention_in.shape = {2, 16, 24};
       },
       "attention_in to have the shape of the forward output"},
      {"max_dtype", Gradient, [](Call& c) { c.grad->softmax_max.dtype = DType::kFloat64; },
       "softmax_max to have dtype float32, but got softmax_max.dtype=float64"},
      {"max_shape", Gradient,
       [](Call& c) {
         c.grad->softmax_max.shape = {2, 4, 16};
       },
       "softmax_max to have shape [B, N, Sq, 8], or [T, N, 8] in layout TND, but got "
       "softmax_max.shape=[2, 4, 16] (needed.shape=[2, 4, 16, 8])"},
      {"sum_shape", Gradient,
       [](Call& c) {
         c.grad->softmax_sum.shape = {kMax, 4, 16, 8};
       },
       "softmax_sum to have shape [B, N, Sq, 8], or [T, N, 8] in layout TND"},
      {"numels", Gradient,
       [](Call& c) {
         c.keep_prob = 0.5;
         c.grad->numels = 3073;
       },
       "numels to be 0 or what the forward call returned, but got numels=3073 (forward "
       "numels=3072)"},
  };
}

}  // namespace fusion_attention
