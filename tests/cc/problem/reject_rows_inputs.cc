// Rows for the rules of validate_inputs.cc: pse, sink, dropout_mask and the gradient entry.
#include <limits>

#include "tests/cc/problem/reject_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

}  // namespace

std::vector<Reject> InputRejects() {
  return {
      // Pse
      {"pse_mode_7", Packed,
       [](Call& c) {
         c.sparse_mode = 7;
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 6}};
       },
       "pse to be None in sparse_mode 7 and 8"},
      {"pse_mode_8", PackedLong, [](Call& c) { c.sparse_mode = 8; },
       "pse to be None in sparse_mode 7 and 8"},
      {"pse_empty_sequence", PackedLong,
       [](Call& c) {
         c.actual_seq_qlen = c.actual_seq_kvlen = Sizes{1200, 1200, 1207};
       },
       "pse to be None when a sequence of layout TND is empty, but got pse.shape=[1, 4, 1024, "
       "1200] "
       "(Sq=0, Skv=0, sequence=1)"},
      {"pse_rank_2", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4}};
       },
       "pse to have 4 dimensions that start with [1, N] or [B, N]"},
      {"pse_batch", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {3, 4, 16, 24}};
       },
       "pse to have 4 dimensions that start with [1, N] or [B, N], but got pse.shape=[3, 4, 16, "
       "24] "
       "(B=2, N=4)"},
      {"pse_heads", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 1, 16, 24}};
       },
       "pse to have 4 dimensions that start with [1, N] or [B, N]"},
      {"pse_rows", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 15, 24}};
       },
       "pse to end with [Sq, Skv], [1, Skv], or [1024, Skv] when Sq > 1024, but got "
       "pse.shape=[2, 4, 15, 24] (Sq=16, Skv=24)"},
      {"pse_keys", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 16, 1}};
       },
       "pse to end with [Sq, Skv], [1, Skv], or [1024, Skv] when Sq > 1024"},
      {"pse_compressed_short", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1024, 24}};
       },
       "pse to end with [Sq, Skv], [1, Skv], or [1024, Skv] when Sq > 1024"},
      {"pse_compressed_not_square", Long,
       [](Call& c) {
         SetLengths(c, 1536, 2000);
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 2000}};
       },
       "pse of 1024 rows to come with Sq == Skv, but got pse.shape=[1, 4, 1024, 2000] (Sq=1536, "
       "Skv=2000"},
      {"pse_compressed_without_mask", Long,
       [](Call& c) {
         c.atten_mask.reset();
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1536}};
       },
       "pse of 1024 rows to come with a causal atten_mask, but got atten_mask=None"},
      {"pse_compressed_mode_1", Long,
       [](Call& c) {
         SetMask(c, 1, {1536, 1536});
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1536}};
       },
       "pse of 1024 rows to come with a causal atten_mask, but got sparse_mode=1"},
      {"pse_compressed_mode_0_band", Long,
       [](Call& c) {
         SetMask(c, 0, {1536, 1536});
         SetTokens(c, 1535, 0);
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1536}};
       },
       "pse of 1024 rows to come with a causal atten_mask, but got sparse_mode=0 "
       "(pre_tockens=1535"},
      {"pse_compressed_mode_0_next", Long,
       [](Call& c) {
         SetMask(c, 0, {1536, 1536});
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1536}};
       },
       "pse of 1024 rows to come with a causal atten_mask"},
      {"pse_packed_full", PackedLong,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1200, 1200}};
       },
       "pse to end with [1024, max Skv] in layout TND, but got pse.shape=[2, 4, 1200, 1200] (max "
       "Skv=1200)"},
      {"pse_packed_row", PackedLong,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1, 1200}};
       },
       "pse to end with [1024, max Skv] in layout TND"},
      {"pse_packed_keys", PackedLong,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1207}};
       },
       "pse to end with [1024, max Skv] in layout TND"},
      {"pse_packed_not_square", PackedLong,
       [](Call& c) {
         SetEnds(c, {1200, 1206}, {1200, 1207});
       },
       "pse of 1024 rows to come with Sq == Skv, but got pse.shape=[1, 4, 1024, 1200] (Sq=6, "
       "Skv=7, "
       "sequence=1)"},
      {"pse_packed_without_mask", PackedLong, [](Call& c) { c.atten_mask.reset(); },
       "pse of 1024 rows to come with a causal atten_mask, but got atten_mask=None"},
      {"pse_packed_mode_0", PackedLong,
       [](Call& c) {
         SetMask(c, 0, {1200, 1200});
         SetTokens(c, 1199, 0);
       },
       "pse of 1024 rows to come with a causal atten_mask"},
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
