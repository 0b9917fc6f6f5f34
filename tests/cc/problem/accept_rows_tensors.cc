// Rows that just keep the rules about options, shapes and sequence lengths.
#include <limits>

#include "tests/cc/problem/accept_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

bool Any(const Problem&) { return true; }

}  // namespace

std::vector<Accept> TensorAccepts() {
  return {
      {"dense", Dense, [](Call&) {},
       [](const Problem& p) {
         return p.batch == 2 && p.q_heads == 4 && p.kv_heads == 2 && p.group() == 2 &&
                p.q_len == 16 && p.kv_len == 24 && p.head_dim == 8 && p.value_dim == 6 &&
                p.numels == 3072 && p.mask.full && p.dropout == DropoutKind::kNone &&
                p.sequences() == 2;
       }},
      {"folded", Folded, [](Call&) {},
       [](const Problem& p) {
         return p.layout == Layout::kBSH && p.kv_heads == 2 && p.head_dim == 8 && p.value_dim == 6;
       }},
      {"sbh_lower_case", Folded,
       [](Call& c) {
         c.input_layout = "sbh";
         c.query.shape = {16, 2, 32};
         c.key.shape = {24, 2, 16};
         c.value.shape = {24, 2, 12};
       },
       [](const Problem& p) { return p.layout == Layout::kSBH && p.batch == 2 && p.q_len == 16; }},
      {"bsnd_mixed_case", Dense,
       [](Call& c) {
         c.input_layout = "BsNd";
         c.query.shape = {2, 16, 4, 8};
         c.key.shape = {2, 24, 2, 8};
         c.value.shape = {2, 24, 2, 6};
       },
       [](const Problem& p) {
         return p.layout == Layout::kBSND && p.q_len == 16 && p.kv_heads == 2;
       }},
      {"packed", Packed, [](Call&) {},
       [](const Problem& p) {
         return p.layout == Layout::kTND && p.sequences() == 3 && p.q_len == 13 && p.kv_len == 16 &&
                p.numels == 4 * (12 + 25 + 24);
       }},
      {"packed_lower_case_with_softmax_layout", Packed,
       [](Call& c) {
         c.input_layout = "tnd";
         c.softmax_layout = "TND";
       },
       [](const Problem& p) { return p.softmax_layout_tnd; }},
      {"float16", Dense,
       [](Call& c) { c.query.dtype = c.key.dtype = c.value.dtype = DType::kFloat16; },
       [](const Problem& p) { return p.dtype == DType::kFloat16; }},
      {"float64", Dense,
       [](Call& c) { c.query.dtype = c.key.dtype = c.value.dtype = DType::kFloat64; }, Any},
      {"one_key_head", Dense, [](Call& c) { c.key.shape[1] = c.value.shape[1] = 1; },
       [](const Problem& p) { return p.group() == 4; }},
      {"heads_256", Dense,
       [](Call& c) { c.head_num = c.query.shape[1] = c.key.shape[1] = c.value.shape[1] = 256; },
       Any},
      {"dim_768", Dense,
       [](Call& c) { c.query.shape[3] = c.key.shape[3] = c.value.shape[3] = 768; }, Any},
      {"batch_2m", Dense,
       [](Call& c) { c.query.shape[0] = c.key.shape[0] = c.value.shape[0] = 2097152; },
       [](const Problem& p) { return p.packed.empty() && p.sequences() == 2097152; }},
      {"length_1m", Dense, [](Call& c) { SetLengths(c, 1048576, 1048576); }, Any},
      // Zero sizes
      {"no_batch", Dense, [](Call& c) { c.query.shape[0] = c.key.shape[0] = c.value.shape[0] = 0; },
       [](const Problem& p) { return p.sequences() == 0 && p.numels == 0; }},
      {"no_rows", Dense, [](Call& c) { SetLengths(c, 0, 24); }, Any},
      {"no_keys", Dense, [](Call& c) { SetLengths(c, 16, 0); }, Any},
      {"no_rows_with_mask", Dense,
       [](Call& c) {
         SetLengths(c, 0, 24);
         SetMask(c, 0, {0, 24});
         SetTokens(c, -3, -3);
       },
       Any},
      {"no_dim", Dense, [](Call& c) { c.query.shape[3] = c.key.shape[3] = c.value.shape[3] = 0; },
       Any},
      {"no_value_dim", Dense, [](Call& c) { c.value.shape[3] = 0; },
       [](const Problem& p) { return p.value_dim == 0 && p.head_dim == 8; }},
      {"no_dim_folded", Folded,
       [](Call& c) { c.query.shape[2] = c.key.shape[2] = c.value.shape[2] = 0; },
       [](const Problem& p) { return p.kv_heads == 4 && p.head_dim == 0; }},
      {"no_tokens", Packed, [](Call& c) { SetEnds(c, {0}, {0}); },
       [](const Problem& p) { return p.sequences() == 1 && p.numels == 0; }},
      // Scalars
      {"scale_zero", Dense, [](Call& c) { c.scale = 0.0; }, Any},
      {"scale_negative", Dense, [](Call& c) { c.scale = -3.0; },
       [](const Problem& p) { return p.scale == -3.0; }},
      {"keep_prob_nearly_1", Dense, [](Call& c) { c.keep_prob = 1.0 - 1e-10; },
       [](const Problem& p) { return p.dropout == DropoutKind::kNone && p.keep_prob == 1.0; }},
      {"keep_prob_tiny", Dense, [](Call& c) { c.keep_prob = 1e-320; },
       [](const Problem& p) { return p.dropout == DropoutKind::kDropAll; }},
      {"keep_prob_half", Dense, [](Call& c) { c.keep_prob = 0.5; },
       [](const Problem& p) { return p.dropout == DropoutKind::kPhilox; }},
      {"dropout_mask", Dense,
       [](Call& c) {
         c.keep_prob = 0.5;
         c.dropout_mask = TensorSpec{DType::kUInt8, {2, 192}};
       },
       [](const Problem& p) { return p.dropout == DropoutKind::kExternal; }},
      {"dropout_mask_without_keep_prob", Dense,
       [](Call& c) {
         c.dropout_mask = TensorSpec{DType::kUInt8, {384}};
       },
       [](const Problem& p) { return p.dropout == DropoutKind::kExternal && p.keep_prob == 1.0; }},
      {"dropout_mask_huge", Dense,
       [](Call& c) {
         c.dropout_mask = TensorSpec{DType::kUInt8, {kMax, kMax}};
       },
       Any},
      {"inner_precise_any", Dense, [](Call& c) { c.inner_precise = kMin; },
       [](const Problem& p) { return !p.invalid_row_mode; }},
      {"inner_precise_2", Packed, [](Call& c) { c.inner_precise = 2; },
       [](const Problem& p) { return p.invalid_row_mode; }},
      {"sink", Dense,
       [](Call& c) {
         c.sink = TensorSpec{DType::kFloat32, {4}};
       },
       [](const Problem& p) { return p.has_sink; }},
      // Sequences
      {"trailing_zeros", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {2, 5, 9, 0, 0};
         c.actual_seq_kvlen = {2, 5, 9, 0, 0};
       },
       [](const Problem& p) { return p.sequences() == 3 && p.numels == 4 * (4 + 9 + 16); }},
      {"empty_inside", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {2, 4, 4, 6, 8};
         c.actual_seq_kvlen = {2, 4, 6, 6, 8};
       },
       [](const Problem& p) { return p.sequences() == 5 && p.packed[2].q_len == 0; }},
      {"leading_zero", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {0, 0, 8};
         c.actual_seq_kvlen = {0, 3, 8};
       },
       [](const Problem& p) { return p.sequences() == 3 && p.packed[1].kv_len == 3; }},
      {"all_zeros", Packed,
       [](Call& c) {
         c.actual_seq_qlen = c.actual_seq_kvlen = Sizes{0, 0};
       },
       [](const Problem& p) { return p.sequences() == 2 && p.numels == 0; }},
      {"no_keys_and_unused", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {2, 5, 0};
         c.actual_seq_kvlen = {0, 0, 0};
       },
       [](const Problem& p) { return p.sequences() == 2; }},
      {"sequences_2048", Packed,
       [](Call& c) { c.actual_seq_qlen = c.actual_seq_kvlen = Sizes(2048, 7); }, Any},
      {"lengths_empty_in_dense", Dense,
       [](Call& c) { c.actual_seq_qlen = c.actual_seq_kvlen = Sizes{}; }, Any},
  };
}

}  // namespace fusion_attention
