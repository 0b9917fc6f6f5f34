// Rows that just keep the rules of validate_mask.cc: atten_mask, tokens and prefix.
#include <limits>

#include "tests/cc/problem/accept_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

bool Any(const Problem&) { return true; }

}  // namespace

std::vector<Accept> MaskAccepts() {
  return {
      // Without a mask, everything about masks is ignored
      {"no_mask", Dense,
       [](Call& c) {
         c.sparse_mode = 5;
         SetTokens(c, kMin, kMin);
         c.prefix = Sizes(100, -1);
       },
       [](const Problem& p) { return p.mask.full && p.mask.prefix.empty(); }},
      {"no_mask_mode_7", Packed,
       [](Call& c) {
         c.sparse_mode = 7;
         SetTokens(c, 0, 5);
       },
       [](const Problem& p) { return p.mask.full; }},
      {"no_mask_mode_3_more_rows", Packed,
       [](Call& c) {
         c.sparse_mode = 3;
         SetEnds(c, {9}, {2});
       },
       Any},
      {"mask_without_dimensions", Dense, [](Call& c) { SetMask(c, 2, {}); },
       [](const Problem& p) { return p.mask.full; }},
      // Mask shapes
      {"mask_2d", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
       },
       [](const Problem& p) {
         return !p.mask.full && p.mask.source == MaskSource::kDense && p.mask.batch == 1 &&
                p.mask.heads == 1 && p.mask.rows == 16 && p.mask.keys == 24;
       }},
      {"mask_uint8_1_1", Dense,
       [](Call& c) {
         c.atten_mask = TensorSpec{DType::kUInt8, {1, 1, 16, 24}};
       },
       Any},
      {"mask_b_1", Dense,
       [](Call& c) {
         SetMask(c, 1, {2, 1, 16, 24});
       },
       [](const Problem& p) { return p.mask.batch == 2 && p.mask.heads == 1; }},
      {"mask_b_n", Dense,
       [](Call& c) {
         SetMask(c, 1, {2, 4, 16, 24});
       },
       [](const Problem& p) { return p.mask.batch == 2 && p.mask.heads == 4; }},
      {"mask_packed", Packed,
       [](Call& c) {
         SetMask(c, 1, {5, 6});
       },
       [](const Problem& p) { return p.mask.rows == 5 && p.mask.keys == 6; }},
      {"mask_packed_4d", Packed,
       [](Call& c) {
         SetMask(c, 0, {3, 4, 5, 6});
       },
       Any},
      {"mask_compressed", Dense,
       [](Call& c) {
         SetMask(c, 2, {2048, 2048});
       },
       [](const Problem& p) { return !p.mask.full && p.mask.source == MaskSource::kNone; }},
      {"mask_compressed_1_1", Packed,
       [](Call& c) {
         SetMask(c, 3, {1, 1, 2048, 2048});
       },
       Any},
      {"mask_compressed_b_n", Dense,
       [](Call& c) {
         SetMask(c, 4, {2, 4, 2048, 2048});
       },
       Any},
      // Tokens
      {"mode_0_negative_next", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, 15, -15);
       },
       [](const Problem& p) { return p.invalid_row_mode; }},
      {"mode_0_negative_pre", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, -23, 23);
       },
       Any},
      {"mode_0_saturates", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, kMax, kMax);
       },
       [](const Problem& p) {
         return p.mask.pre_tockens == RowIntervals::kUnbounded &&
                p.mask.next_tockens == RowIntervals::kUnbounded && !p.invalid_row_mode;
       }},
      {"mode_1_ignores_tokens", Dense,
       [](Call& c) {
         SetMask(c, 1, {16, 24});
         SetTokens(c, kMin, kMin);
       },
       Any},
      {"mode_4_negative_next", Long,
       [](Call& c) {
         c.sparse_mode = 4;
         SetTokens(c, 1024, -900);
       },
       [](const Problem& p) { return p.invalid_row_mode; }},
      {"mode_4_negative_pre", Long,
       [](Call& c) {
         c.sparse_mode = 4;
         SetTokens(c, -900, 1024);
       },
       [](const Problem& p) { return p.invalid_row_mode; }},
      {"packed_mode_0_diagonal", Packed,
       [](Call& c) {
         SetMask(c, 0, {5, 6});
         SetTokens(c, 0, 0);
       },
       Any},
      {"packed_mode_4_diagonal", Packed,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, 0, 0);
       },
       Any},
      {"packed_mode_4_no_keys", Packed,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetEnds(c, {3, 8}, {4, 4});
       },
       Any},
      {"packed_mode_2_more_rows", Packed,
       [](Call& c) {
         SetMask(c, 2, {2048, 2048});
         SetEnds(c, {9}, {2});
       },
       Any},
      {"dense_mode_3_more_rows", Dense,
       [](Call& c) {
         SetMask(c, 3, {2048, 2048});
         SetLengths(c, 24, 16);
       },
       [](const Problem& p) { return p.invalid_row_mode; }},
      // Modes 7 and 8: the worked examples of the page
      {"mode_7_page", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 6, -2);
         SetEnds(c, {3, 5}, {3, 9});
       },
       [](const Problem& p) { return p.mask.band_sequence == 1 && !p.invalid_row_mode; }},
      {"mode_8_page", Packed,
       [](Call& c) {
         SetMask(c, 8, {2048, 2048});
         SetTokens(c, 4, 1);
         SetEnds(c, {3, 8, 12}, {4, 9, 13});
       },
       [](const Problem& p) { return p.mask.band_sequence == 0; }},
      {"mode_7_empty_last", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 100, 0);
         SetEnds(c, {3, 5, 5}, {3, 9, 9});
       },
       [](const Problem& p) { return p.mask.band_sequence == 1; }},
      {"mode_8_empty_first", Packed,
       [](Call& c) {
         SetMask(c, 8, {2048, 2048});
         SetTokens(c, 100, 0);
         SetEnds(c, {0, 5, 5}, {3, 9, 9});
       },
       [](const Problem& p) { return p.mask.band_sequence == 1; }},
      {"mode_7_no_rows", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 0, 0);
         SetEnds(c, {0, 0}, {3, 9});
       },
       [](const Problem& p) { return p.mask.band_sequence == -1; }},
      // Prefix
      {"mode_6", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.prefix = {8, 24};
       },
       [](const Problem& p) {
         return p.mask.prefix == Sizes({8, 24}) && !p.invalid_row_mode;
       }},
      {"mode_6_invalid_rows", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         SetLengths(c, 24, 16);
         c.prefix = {16, 0};
       },
       [](const Problem& p) { return p.invalid_row_mode; }},
      {"mode_6_packed", Packed,
       [](Call& c) {
         SetMask(c, 6, {1, 1, 3072, 2048});
         SetEnds(c, {2048, 3072, 4000}, {1024, 2048, 5000});
         c.prefix = {1000, 0, 2952};
       },
       [](const Problem& p) { return !p.invalid_row_mode; }},
      {"mode_6_packed_unused", Packed,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.actual_seq_qlen = {3, 8, 0};
         c.actual_seq_kvlen = {4, 9, 0};
         c.prefix = {1, 0, 0};
       },
       [](const Problem& p) {
         return p.mask.prefix == Sizes({1, 0});
       }},
      {"mode_5_b_1", Dense,
       [](Call& c) {
         SetMask(c, 5, {2, 1, 16, 24});
         c.prefix = {8, 20};
       },
       [](const Problem& p) { return p.mask.source == MaskSource::kDense; }},
      {"mode_5_one_batch_2d", Dense,
       [](Call& c) {
         c.query.shape[0] = c.key.shape[0] = c.value.shape[0] = 1;
         SetMask(c, 5, {16, 24});
         c.prefix = {8};
       },
       Any},
      {"mode_6_no_batch", Dense,
       [](Call& c) {
         c.query.shape[0] = c.key.shape[0] = c.value.shape[0] = 0;
         SetMask(c, 6, {3072, 2048});
       },
       Any},
  };
}

}  // namespace fusion_attention
