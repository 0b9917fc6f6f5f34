// Rows that just keep the rules about pse, slopes and ropes.
#include <limits>

#include "tests/cc/problem/accept_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kFar = RowIntervals::kUnbounded;

bool Any(const Problem&) { return true; }

}  // namespace

std::vector<Accept> InputAccepts() {
  return {
      // Pse
      {"pse_bnss", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 16, 24}};
       },
       [](const Problem& p) { return p.pse.kind == PseKind::kDense && p.pse.batch == 2; }},
      {"pse_1nss", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 16, 24}};
       },
       Any},
      {"pse_bn1s", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1, 24}};
       },
       [](const Problem& p) { return p.pse.rows == 1 && p.pse.keys == 24; }},
      {"pse_1n1s", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1, 24}};
       },
       Any},
      {"pse_without_dimensions", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kBool, {}};
       },
       [](const Problem& p) { return p.pse.kind == PseKind::kNone; }},
      {"pse_1024_rows_is_full", Dense,
       [](Call& c) {
         SetLengths(c, 1024, 2000);
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 2000}};
       },
       [](const Problem& p) { return p.pse.kind == PseKind::kDense; }},
      {"pse_compressed", Long,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1024, 1536}};
       },
       [](const Problem& p) { return p.pse.kind == PseKind::kCompressed && p.pse.rows == 1024; }},
      {"pse_compressed_mode_0", Long,
       [](Call& c) {
         SetMask(c, 0, {1536, 1536});
         SetTokens(c, 1536, 0);
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 1536}};
       },
       Any},
      {"pse_packed", PackedLong, [](Call&) {},
       [](const Problem& p) { return p.pse.kind == PseKind::kCompressed && p.pse.keys == 1200; }},
      {"pse_packed_per_sequence", PackedLong, [](Call& c) { c.pse->shape[0] = 2; },
       [](const Problem& p) { return p.pse.batch == 2; }},
      {"pse_packed_unused", PackedLong,
       [](Call& c) {
         c.actual_seq_qlen = c.actual_seq_kvlen = Sizes{1200, 1207, 0};
       },
       Any},
      {"pse_packed_mode_0", PackedLong,
       [](Call& c) {
         SetMask(c, 0, {1200, 1200});
         SetTokens(c, kMax, 0);
       },
       Any},
      {"pse_packed_mode_4", PackedLong,
       [](Call& c) {
         c.sparse_mode = 4;
         SetTokens(c, 1200, 0);
       },
       Any},
      {"pse_after_scale", Dense,
       [](Call& c) {
         c.pse_type = 0;
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1, 24}};
       },
       [](const Problem& p) {
         return p.pse.kind == PseKind::kDense && p.pse.after_scale && p.pse.rows == 1;
       }},
      {"pse_before_scale", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 1, 24}};
       },
       [](const Problem& p) { return !p.pse.after_scale; }},
      {"pse_compressed_after_scale", PackedLong, [](Call& c) { c.pse_type = 0; },
       [](const Problem& p) { return p.pse.kind == PseKind::kCompressed && p.pse.after_scale; }},
      {"start_indices_without_slopes", Dense,
       [](Call& c) {
         c.q_start_idx = {kMin};
         c.kv_start_idx = {kMax, kMax};
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 16, 24}};
       },
       [](const Problem& p) { return p.pse.start_offset == 0; }},
      // Slopes
      {"slopes", Slopes, [](Call&) {},
       [](const Problem& p) {
         return p.pse.kind == PseKind::kSlopes && p.pse.after_scale && p.pse.start_offset == 0 &&
                p.pse.distance == PseDistance::kLinear && p.pse.batch == 1 && p.pse.rows == 1 &&
                p.pse.keys == 1;
       }},
      {"slopes_square_root", Slopes, [](Call& c) { c.pse_type = 3; },
       [](const Problem& p) { return p.pse.distance == PseDistance::kSquareRoot; }},
      {"slopes_per_batch", Slopes,
       [](Call& c) {
         c.pse->shape = {2, 4};
       },
       [](const Problem& p) { return p.pse.batch == 2; }},
      {"slopes_float16", Slopes,
       [](Call& c) { c.query.dtype = c.key.dtype = c.value.dtype = DType::kFloat16; }, Any},
      {"slopes_float64", Slopes,
       [](Call& c) { c.query.dtype = c.key.dtype = c.value.dtype = DType::kFloat64; }, Any},
      {"slopes_start", Slopes,
       [](Call& c) {
         c.q_start_idx = {1000, kMax};  // entries behind the first do not count
         c.kv_start_idx = {990};
       },
       [](const Problem& p) { return p.pse.start_offset == -10; }},
      {"slopes_one_start", Slopes,
       [](Call& c) {
         c.q_start_idx = {1000};
         c.kv_start_idx = Sizes{};
       },
       [](const Problem& p) { return p.pse.start_offset == 0; }},
      {"slopes_far_start", Slopes,
       [](Call& c) {
         c.q_start_idx = {0};
         c.kv_start_idx = {kFar + 1};
       },
       [](const Problem& p) { return p.pse.start_offset == kFar; }},
      {"slopes_farthest_start", Slopes,
       [](Call& c) {
         c.q_start_idx = {kMin};
         c.kv_start_idx = {kMax};
       },
       [](const Problem& p) { return p.pse.start_offset == kFar; }},
      {"slopes_farthest_start_back", Slopes,
       [](Call& c) {
         c.q_start_idx = {kMax};
         c.kv_start_idx = {kMin};
       },
       [](const Problem& p) { return p.pse.start_offset == -kFar; }},
      {"slopes_packed", Packed,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat32, {3, 4}};
         c.pse_type = 2;
       },
       Any},
      {"slopes_packed_unused_and_empty", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 3, 12, 0};
         c.actual_seq_kvlen = {4, 9, 9, 0};
         c.pse = TensorSpec{DType::kFloat32, {4, 4}};
         c.pse_type = 2;
       },
       [](const Problem& p) { return p.pse.batch == 4 && p.sequences() == 3; }},
      {"slopes_mode_7_without_mask", Packed,
       [](Call& c) {
         c.sparse_mode = 7;
         c.pse = TensorSpec{DType::kFloat32, {4}};
         c.pse_type = 2;
       },
       Any},
      {"slopes_mode_8", CutSlopes, [](Call&) {},
       [](const Problem& p) { return p.pse.start_offset == -2 && p.mask.band_sequence == 0; }},
      {"slopes_mode_8_without_mask", CutSlopes,
       [](Call& c) {
         c.atten_mask.reset();
         c.q_start_idx = {7};
       },
       [](const Problem& p) { return p.pse.start_offset == -7; }},
      {"slopes_mode_8_square", CutSlopes,
       [](Call& c) {
         SetEnds(c, {3, 8, 12}, {3, 8, 12});
         c.q_start_idx.reset();
       },
       Any},
      // Ropes
      {"ropes", Roped, [](Call&) {},
       [](const Problem& p) {
         return p.rope_dim == 4 && p.head_dim == 8 && p.score_dim() == 12 && p.value_dim == 6;
       }},
      {"ropes_of_all_channels", Roped,
       [](Call& c) { c.query_rope->shape[2] = c.key_rope->shape[2] = 8; },
       [](const Problem& p) { return p.score_dim() == 16; }},
      {"ropes_of_768_channels", Roped,
       [](Call& c) {
         c.query.shape[2] = c.key.shape[2] = 768;
         c.query_rope->shape[2] = c.key_rope->shape[2] = 768;
       },
       [](const Problem& p) { return p.head_dim == 768 && p.score_dim() == 1536; }},
      {"ropes_without_dimensions", Dense,
       [](Call& c) {
         c.query_rope = TensorSpec{DType::kBool, {}};
         c.key_rope = TensorSpec{DType::kBool, {}};
       },
       [](const Problem& p) { return p.rope_dim == 0; }},
      {"ropes_keep_prob_near_1", Roped, [](Call& c) { c.keep_prob = 1 - 1e-10; }, Any},
      {"ropes_dense_mask", Roped,
       [](Call& c) {
         SetMask(c, 1, {5, 6});
       },
       Any},
      {"ropes_sink", Roped,
       [](Call& c) {
         c.sink = TensorSpec{DType::kFloat32, {4}};
       },
       Any},
      {"ropes_float16", Roped,
       [](Call& c) {
         for (TensorSpec* tensor : {&c.query, &c.key, &c.value, &*c.query_rope, &*c.key_rope}) {
           tensor->dtype = DType::kFloat16;
         }
       },
       Any},
  };
}

}  // namespace fusion_attention
