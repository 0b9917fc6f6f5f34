// Rows for the rules of validate_pse.cc.
#include <limits>

#include "tests/cc/problem/reject_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

}  // namespace

std::vector<Reject> PseRejects() {
  return {
      {"pse_missing_0", Dense, [](Call& c) { c.pse_type = 0; },
       "pse to be given with pse_type 0, 2 and 3, but got pse=None (pse_type=0)"},
      {"pse_missing_3", Slopes,
       [](Call& c) {
         c.pse_type = 3;
         c.pse->shape.clear();
       },
       "pse to be given with pse_type 0, 2 and 3"},
      // A bias
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
      {"pse_type_0_mode_7", Packed,
       [](Call& c) {
         c.sparse_mode = 7;
         c.pse_type = 0;
         c.pse = TensorSpec{DType::kFloat32, {1, 4, 1024, 6}};
       },
       "pse to be None in sparse_mode 7 and 8"},
      {"pse_type_0_keys", Dense,
       [](Call& c) {
         c.pse_type = 0;
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 16, 23}};
       },
       "pse to end with [Sq, Skv], [1, Skv], or [1024, Skv] when Sq > 1024"},
      {"pse_type_0_slopes", Slopes, [](Call& c) { c.pse_type = 0; },
       "pse to have 4 dimensions that start with [1, N] or [B, N]"},
      // Slopes
      {"slopes_heads", Slopes, [](Call& c) { c.pse->shape = {2}; },
       "pse to have shape [N] or [B, N] with pse_type 2 and 3, but got pse.shape=[2] (B=2, N=4)"},
      {"slopes_batch", Slopes,
       [](Call& c) {
         c.pse->shape = {1, 4};
       },
       "pse to have shape [N] or [B, N] with pse_type 2 and 3"},
      {"slopes_bias", Slopes,
       [](Call& c) {
         c.pse->shape = {2, 4, 16, 16};
       },
       "pse to have shape [N] or [B, N] with pse_type 2 and 3"},
      {"slopes_not_square", Slopes, [](Call& c) { SetLengths(c, 16, 17); },
       "pse of slopes to come with Sq == Skv in layouts other than TND, but got Sq=16 (Skv=17"},
      {"slopes_mode_7", CutSlopes,
       [](Call& c) {
         c.sparse_mode = 7;
         SetTokens(c, 2147483647, 0);
       },
       "pse of slopes to come with a sparse_mode other than 7, but got sparse_mode=7"},
      {"slopes_mode_8_starts", CutSlopes, [](Call& c) { c.q_start_idx = {3}; },
       "q_start_idx + Sq to be kv_start_idx + Skv for the first sequence of mode 8, but got Sq=3 "
       "(Skv=5, kv_start_idx - q_start_idx=-3)"},
      {"slopes_mode_8_without_starts", CutSlopes, [](Call& c) { c.kv_start_idx.reset(); },
       "q_start_idx + Sq to be kv_start_idx + Skv for the first sequence of mode 8"},
      {"slopes_mode_8_far_starts", CutSlopes,
       [](Call& c) {
         c.q_start_idx = {kMin};
         c.kv_start_idx = {kMax};
       },
       "q_start_idx + Sq to be kv_start_idx + Skv for the first sequence of mode 8"},
      {"slopes_mode_8_lengths", CutSlopes,
       [](Call& c) {
         SetEnds(c, {3, 8, 12}, {5, 10, 15});
       },
       "pse of slopes to come with Sq == Skv behind the first sequence of mode 8, but got Sq=4 "
       "(Skv=5, sequence=2)"},
  };
}

}  // namespace fusion_attention
