// Rows for the rules of validate.cc and validate_shapes.cc: options, dtypes, shapes and sequence
// lengths.
#include <limits>

#include "tests/cc/problem/reject_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

std::vector<Reject> OptionAndTensorRejects() {
  return {
      // Options
      {"layout_empty", Dense, [](Call& c) { c.input_layout = ""; },
       "input_layout to be one of BSH, SBH, BNSD, BSND, TND, but got input_layout=''"},
      {"layout_unknown", Dense, [](Call& c) { c.input_layout = "NTD"; },
       "input_layout to be one of"},
      {"layout_padded", Dense, [](Call& c) { c.input_layout = "BNSD "; },
       "input_layout to be one of"},
      {"layout_nul", Dense, [](Call& c) { c.input_layout = std::string("BNSD\0", 5); },
       "input_layout to be one of BSH, SBH, BNSD, BSND, TND, but got input_layout='BNSD?'"},
      {"layout_not_ascii", Dense, [](Call& c) { c.input_layout = "B\xe5N"; },
       "input_layout to be one of BSH, SBH, BNSD, BSND, TND, but got input_layout='B?N'"},
      {"layout_long", Dense, [](Call& c) { c.input_layout = std::string(100000, 'B'); },
       "input_layout to be one of BSH, SBH, BNSD, BSND, TND, but got "
       "input_layout='BBBBBBBBBBBBBBBBBBBBBBBB...'"},
      {"head_num_zero", Dense, [](Call& c) { c.head_num = 0; },
       "head_num to be in [1, 256], but got head_num=0"},
      {"head_num_negative", Dense, [](Call& c) { c.head_num = -4; }, "head_num to be in [1, 256]"},
      {"head_num_min", Dense, [](Call& c) { c.head_num = kMin; }, "head_num to be in [1, 256]"},
      {"head_num_257", Dense, [](Call& c) { c.head_num = 257; }, "head_num to be in [1, 256]"},
      {"padding_mask", Dense,
       [](Call& c) {
         c.padding_mask = TensorSpec{DType::kBool, {2, 24}};
       },
       "padding_mask to be None, but got padding_mask.shape=[2, 24]", StatusCode::kUnimplemented},
      {"scale_nan", Dense, [](Call& c) { c.scale = kNan; },
       "scale to be finite in float32, but got scale=nan"},
      {"scale_minus_nan", Dense, [](Call& c) { c.scale = -kNan; },
       "scale to be finite in float32, but got scale=nan"},
      {"scale_inf", Dense, [](Call& c) { c.scale = -kInf; },
       "scale to be finite in float32, but got scale=-inf"},
      {"scale_beyond_float", Dense, [](Call& c) { c.scale = 1e39; },
       "scale to be finite in float32, but got scale=1e+39"},
      {"keep_prob_zero", Dense, [](Call& c) { c.keep_prob = 0.0; },
       "keep_prob to be in (0, 1], but got keep_prob=0"},
      {"keep_prob_negative", Dense, [](Call& c) { c.keep_prob = -0.1; },
       "keep_prob to be in (0, 1]"},
      {"keep_prob_above_1", Dense, [](Call& c) { c.keep_prob = 1.2; },
       "keep_prob to be in (0, 1], but got keep_prob=1.2"},
      {"keep_prob_nan", Dense, [](Call& c) { c.keep_prob = kNan; },
       "keep_prob to be in (0, 1], but got keep_prob=nan"},
      {"pse_type_minus_1", Dense, [](Call& c) { c.pse_type = -1; },
       "pse_type to be in [0, 3], but got pse_type=-1"},
      {"pse_type_4", Slopes, [](Call& c) { c.pse_type = 4; }, "pse_type to be in [0, 3]"},
      {"pse_type_max", Dense, [](Call& c) { c.pse_type = kMax; }, "pse_type to be in [0, 3]"},
      {"mode_minus_1", Dense, [](Call& c) { c.sparse_mode = -1; },
       "sparse_mode to be in [0, 6] in layouts other than TND, but got sparse_mode=-1"},
      {"mode_7_dense", Dense, [](Call& c) { c.sparse_mode = 7; },
       "sparse_mode to be in [0, 6] in layouts other than TND"},
      {"mode_8_folded", Folded, [](Call& c) { c.sparse_mode = 8; },
       "sparse_mode to be in [0, 6] in layouts other than TND"},
      {"mode_max", Dense, [](Call& c) { c.sparse_mode = kMax; },
       "sparse_mode to be in [0, 6] in layouts other than TND"},
      {"mode_5_packed", Packed, [](Call& c) { c.sparse_mode = 5; },
       "sparse_mode to be one of 0, 1, 2, 3, 4, 6, 7, 8 in layout TND, but got sparse_mode=5"},
      {"mode_9_packed", Packed, [](Call& c) { c.sparse_mode = 9; },
       "sparse_mode to be one of 0, 1, 2, 3, 4, 6, 7, 8 in layout TND"},
      {"mode_min_packed", Packed, [](Call& c) { c.sparse_mode = kMin; },
       "sparse_mode to be one of 0, 1, 2, 3, 4, 6, 7, 8 in layout TND"},
      {"softmax_layout_lower", Packed, [](Call& c) { c.softmax_layout = "tnd"; },
       "softmax_layout to be '' or 'TND', but got softmax_layout='tnd'"},
      {"softmax_layout_dense", Dense, [](Call& c) { c.softmax_layout = "TND"; },
       "softmax_layout to be '' in layouts other than TND"},
      // Dtypes
      {"query_dtype_uint8", Dense, [](Call& c) { c.query.dtype = DType::kUInt8; },
       "query to have dtype float16, bfloat16 or float32 (or float64), but got query.dtype=uint8"},
      {"query_dtype_other", Dense, [](Call& c) { c.query.dtype = DType::kOther; },
       "query to have dtype float16"},
      {"key_dtype", Dense, [](Call& c) { c.key.dtype = DType::kFloat16; },
       "key to have the dtype of query, but got key.dtype=float16 (query.dtype=float32)"},
      {"value_dtype", Dense, [](Call& c) { c.value.dtype = DType::kBFloat16; },
       "value to have the dtype of query, but got value.dtype=bfloat16"},
      {"slopes_dtype", Slopes,
       [](Call& c) {
         c.query.dtype = c.key.dtype = c.value.dtype = c.pse->dtype = DType::kBFloat16;
       },
       "pse to have dtype float32 with pse_type 2 and 3, but got pse.dtype=bfloat16 (pse_type=2)"},
      {"pse_type_0_dtype", Dense,
       [](Call& c) {
         c.pse_type = 0;
         c.query.dtype = c.key.dtype = c.value.dtype = DType::kBFloat16;
         c.pse = TensorSpec{DType::kFloat32, {2, 4, 16, 24}};
       },
       "pse to have the dtype of query, but got pse.dtype=float32"},
      {"pse_dtype", Dense,
       [](Call& c) {
         c.pse = TensorSpec{DType::kFloat64, {2, 4, 16, 24}};
       },
       "pse to have the dtype of query, but got pse.dtype=float64"},
      // Shapes
      {"query_rank_3", Dense,
       [](Call& c) {
         c.query.shape = {2, 16, 32};
       },
       "query to have 3 dimensions in BSH, SBH, TND and 4 in BNSD, BSND, but got "
       "query.shape=[2, 16, 32] (input_layout=BNSD)"},
      {"key_rank_0", Dense, [](Call& c) { c.key.shape = {}; },
       "key to have 3 dimensions in BSH, SBH, TND and 4 in BNSD, BSND, but got key.shape=[]"},
      {"value_rank_4", Folded,
       [](Call& c) {
         c.value.shape = {2, 2, 24, 6};
       },
       "value to have 3 dimensions"},
      {"query_rank_9", Packed, [](Call& c) { c.query.shape = Sizes(9, 1); },
       "query to have 3 dimensions in BSH, SBH, TND and 4 in BNSD, BSND, but got "
       "query.shape=[1, 1, 1, 1, 1, 1, 1, 1, ...]"},
      {"query_negative", Dense, [](Call& c) { c.query.shape[2] = -1; },
       "query to have sizes of at least 0, but got query.shape=[2, 4, -1, 8]"},
      {"value_min", Dense, [](Call& c) { c.value.shape[3] = kMin; },
       "value to have sizes of at least 0"},
      {"batch_too_large", Dense,
       [](Call& c) { c.query.shape[0] = c.key.shape[0] = c.value.shape[0] = 2097153; },
       "query to have B of at most 2097152, but got B=2097153"},
      {"query_too_long", Dense, [](Call& c) { c.query.shape[2] = 1048577; },
       "query to have S (T in layout TND) of at most 1048576, but got S=1048577"},
      {"key_too_long", Folded, [](Call& c) { c.key.shape[1] = kMax; },
       "key to have S (T in layout TND) of at most 1048576"},
      {"tokens_too_many", Packed, [](Call& c) { c.query.shape[0] = 1048577; },
       "query to have S (T in layout TND) of at most 1048576, but got T=1048577"},
      {"key_batch", Dense, [](Call& c) { c.key.shape[0] = 3; },
       "key to have B of query, but got key.shape=[3, 2, 24, 8] (query.shape=[2, 4, 16, 8]"},
      {"value_batch", Dense, [](Call& c) { c.value.shape[0] = 1; },
       "value to have B and S (T in layout TND) of key"},
      {"value_length", Dense, [](Call& c) { c.value.shape[2] = 23; },
       "value to have B and S (T in layout TND) of key"},
      {"value_tokens", Packed, [](Call& c) { c.value.shape[0] = 15; },
       "value to have B and S (T in layout TND) of key"},
      {"folded_query_width", Folded, [](Call& c) { c.query.shape[2] = 33; },
       "query to have H divisible by head_num, but got query.shape=[2, 16, 33] (head_num=4)"},
      {"folded_key_width", Folded, [](Call& c) { c.key.shape[2] = 20; },
       "key to have H divisible by D of query, but got key.shape=[2, 24, 20] (D=8"},
      {"folded_key_width_without_dim", Folded, [](Call& c) { c.query.shape[2] = 0; },
       "key to have H divisible by D of query"},
      {"folded_key_empty", Folded, [](Call& c) { c.key.shape[2] = 0; },
       "key to have a number of heads that divides head_num, but got Nkv=0"},
      {"folded_value_width", Folded, [](Call& c) { c.value.shape[2] = 13; },
       "value to have H divisible by the number of heads of key, but got value.shape=[2, 24, 13]"},
      {"head_num_not_n", Dense, [](Call& c) { c.head_num = 8; },
       "head_num to equal N of query, but got head_num=8 (query.shape=[2, 4, 16, 8]"},
      {"head_num_not_n_packed", Packed, [](Call& c) { c.head_num = 2; },
       "head_num to equal N of query"},
      {"key_dim", Dense, [](Call& c) { c.key.shape[3] = 16; }, "key to have D of query"},
      {"value_heads", Dense, [](Call& c) { c.value.shape[1] = 4; }, "value to have N of key"},
      {"key_heads_none", Dense, [](Call& c) { c.key.shape[1] = c.value.shape[1] = 0; },
       "key to have a number of heads that divides head_num, but got Nkv=0 (head_num=4"},
      {"key_heads_3", Dense, [](Call& c) { c.key.shape[1] = c.value.shape[1] = 3; },
       "key to have a number of heads that divides head_num"},
      {"key_heads_8", Packed, [](Call& c) { c.key.shape[1] = c.value.shape[1] = 8; },
       "key to have a number of heads that divides head_num"},
      {"dim_769", Dense, [](Call& c) { c.query.shape[3] = c.key.shape[3] = 769; },
       "query to have D of at most 768, but got D=769"},
      {"dim_folded", Folded,
       [](Call& c) {
         c.query.shape[2] = 4 * 1024;
         c.key.shape[2] = 1024;
       },
       "query to have D of at most 768, but got D=1024"},
      {"value_dim_above", Dense, [](Call& c) { c.value.shape[3] = 9; },
       "value to have D of at most D of key, but got Dv=9 (D=8"},
      {"value_dim_above_folded", Folded, [](Call& c) { c.value.shape[2] = 18; },
       "value to have D of at most D of key"},
      // Sequences
      {"qlen_dense", Dense,
       [](Call& c) {
         c.actual_seq_qlen = {16, 32};
       },
       "actual_seq_qlen to be None in layouts other than TND, but got length=2"},
      {"kvlen_dense", Folded, [](Call& c) { c.actual_seq_kvlen = {24}; },
       "actual_seq_kvlen to be None in layouts other than TND"},
      {"numels_overflow", Dense,
       [](Call& c) {
         c.query.shape = {2097152, 4, 1048576, 8};
         c.key.shape = {2097152, 2, 1048576, 8};
         c.value.shape = c.key.shape;
       },
       "query and key to have B * N * Sq * Skv below 2^63 - 1"},
      {"qlen_missing", Packed, [](Call& c) { c.actual_seq_qlen.reset(); },
       "actual_seq_qlen to be given in layout TND"},
      {"qlen_empty", Packed, [](Call& c) { c.actual_seq_qlen = Sizes{}; },
       "actual_seq_qlen to be given in layout TND"},
      {"kvlen_missing", Packed, [](Call& c) { c.actual_seq_kvlen.reset(); },
       "actual_seq_kvlen to be given in layout TND"},
      {"lengths_differ", Packed,
       [](Call& c) {
         c.actual_seq_kvlen = {4, 9};
       },
       "actual_seq_kvlen to have as many entries as actual_seq_qlen, but got "
       "len(actual_seq_kvlen)=2 (len(actual_seq_qlen)=3)"},
      {"sequences_2049", Packed,
       [](Call& c) { c.actual_seq_qlen = c.actual_seq_kvlen = Sizes(2049, 1); },
       "actual_seq_qlen to have at most 2048 entries, but got len(actual_seq_qlen)=2049"},
      {"qlen_negative", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, -1, 12};
       },
       "actual_seq_qlen to have entries of at least 0, but got actual_seq_qlen[1]=-1"},
      {"kvlen_min", Packed,
       [](Call& c) {
         c.actual_seq_kvlen = {4, 9, kMin};
       },
       "actual_seq_kvlen to have entries of at least 0"},
      {"qlen_decreases", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 9, 8};
       },
       "actual_seq_qlen to be non-decreasing (only trailing zeros may follow), but got "
       "actual_seq_qlen[2]=8 (actual_seq_qlen[1]=9)"},
      {"qlen_zero_inside", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 0, 12};
       },
       "actual_seq_qlen to be non-decreasing (only trailing zeros may follow), but got "
       "actual_seq_qlen[1]=0"},
      {"kvlen_decreases", Packed,
       [](Call& c) {
         c.actual_seq_kvlen = {9, 4, 15};
       },
       "actual_seq_kvlen to be non-decreasing"},
      {"qlen_beyond_tokens", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 8, 14};
       },
       "actual_seq_qlen to end at T of its tensor or before, but got actual_seq_qlen[2]=14 (T=13)"},
      {"kvlen_max", Packed,
       [](Call& c) {
         c.actual_seq_kvlen = {4, 9, kMax};
       },
       "actual_seq_kvlen to end at T of its tensor or before"},
      {"used_beyond_tokens", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 14, 0};
         c.actual_seq_kvlen = {4, 9, 0};
       },
       "actual_seq_qlen to end at T of its tensor or before, but got actual_seq_qlen[1]=14"},
      {"trailing_zeros_differ", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 8, 0};
         c.actual_seq_kvlen = {4, 9, 9};
       },
       "actual_seq_kvlen to have as many trailing zeros as actual_seq_qlen, but got trailing "
       "zeros=0"},
      {"trailing_zeros_more", Packed,
       [](Call& c) {
         c.actual_seq_qlen = {3, 8, 0};
         c.actual_seq_kvlen = {4, 0, 0};
       },
       "actual_seq_kvlen to have as many trailing zeros as actual_seq_qlen"},
  };
}

}  // namespace fusion_attention
