// Rows for the rules of validate_mask.cc: atten_mask, tokens and prefix.
#include <limits>

#include "tests/cc/problem/reject_rows.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

}  // namespace

std::vector<Reject> MaskRejects() {
  return {
      // Masks: dtype and shape
      {"mask_dtype", Dense,
       [](Call& c) {
         c.atten_mask = TensorSpec{DType::kFloat32, {16, 24}};
       },
       "atten_mask to have dtype bool or uint8, but got atten_mask.dtype=float32"},
      {"mask_rank_3", Dense,
       [](Call& c) {
         SetMask(c, 0, {2, 16, 24});
       },
       "atten_mask to have 2 or 4 dimensions, but got atten_mask.shape=[2, 16, 24]"},
      {"mask_rank_1", Dense, [](Call& c) { SetMask(c, 1, {24}); }, "atten_mask to have 2 or 4"},
      {"mask_batch", Dense,
       [](Call& c) {
         SetMask(c, 0, {3, 1, 16, 24});
       },
       "atten_mask of 4 dimensions to start with 1 or B, but got atten_mask.shape=[3, 1, 16, 24] "
       "(B=2)"},
      {"mask_heads", Dense,
       [](Call& c) {
         SetMask(c, 0, {2, 2, 16, 24});
       },
       "atten_mask of 4 dimensions to be [B, N, ...] when its second is not 1"},
      {"mask_heads_without_batch", Dense,
       [](Call& c) {
         SetMask(c, 0, {1, 4, 16, 24});
       },
       "atten_mask of 4 dimensions to be [B, N, ...] when its second is not 1"},
      {"mask_rows", Dense,
       [](Call& c) {
         SetMask(c, 0, {1, 24});
       },
       "atten_mask to end with [Sq, Skv] in sparse_mode 0, 1 and 5"},
      {"mask_keys", Dense,
       [](Call& c) {
         SetMask(c, 1, {16, 16});
       },
       "atten_mask to end with [Sq, Skv] in sparse_mode 0, 1 and 5"},
      {"mask_compressed_in_mode_0", Dense,
       [](Call& c) {
         SetMask(c, 0, {2048, 2048});
       },
       "atten_mask to end with [Sq, Skv] in sparse_mode 0, 1 and 5"},
      {"mask_prefix_full_rows", Dense,
       [](Call& c) {
         SetMask(c, 5, {2, 1, 15, 24});
       },
       "atten_mask to end with [Sq, Skv] in sparse_mode 0, 1 and 5"},
      {"mask_full_in_mode_2", Dense,
       [](Call& c) {
         SetMask(c, 2, {16, 24});
       },
       "atten_mask to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8"},
      {"mask_full_in_mode_3", Packed,
       [](Call& c) {
         SetMask(c, 3, {5, 6});
       },
       "atten_mask to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8"},
      {"mask_prefix_in_mode_4", Dense,
       [](Call& c) {
         SetMask(c, 4, {3072, 2048});
       },
       "atten_mask to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8"},
      {"mask_4d_in_mode_7", Packed,
       [](Call& c) {
         SetMask(c, 7, {1, 1, 2048, 2047});
       },
       "atten_mask to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8"},
      {"mask_min_in_mode_8", Packed,
       [](Call& c) {
         SetMask(c, 8, {kMin, kMax});
       },
       "atten_mask to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8"},
      {"mask_square_in_mode_6", Dense,
       [](Call& c) {
         SetMask(c, 6, {2048, 2048});
       },
       "atten_mask to end with [3072, 2048] in sparse_mode 6"},
      {"mask_packed_rows", Packed,
       [](Call& c) {
         SetMask(c, 1, {6, 6});
       },
       "atten_mask to end with [max Sq, max Skv] in layout TND, sparse_mode 0 and 1, but got "
       "atten_mask.shape=[6, 6] (max Sq=5, max Skv=6). Each sequence reads its top-left corner."},
      {"mask_packed_tokens", Packed,
       [](Call& c) {
         SetMask(c, 0, {13, 16});
       },
       "atten_mask to end with [max Sq, max Skv] in layout TND, sparse_mode 0 and 1, but got "
       "atten_mask.shape=[13, 16] (max Sq=5, max Skv=6). A mask over all T tokens"},
      {"mask_packed_batch", Packed,
       [](Call& c) {
         SetMask(c, 0, {2, 1, 5, 6});
       },
       "atten_mask of 4 dimensions to start with 1 or B"},
      // Tokens
      {"band_empty", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, 3, -4);
       },
       "pre_tockens + next_tockens to be at least 0 in sparse_mode 0 and 4, but got pre_tockens=3 "
       "(next_tockens=-4)"},
      {"band_both_negative", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, -1, -1);
       },
       "pre_tockens + next_tockens to be at least 0"},
      {"band_both_min", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, kMin, kMin);
       },
       "pre_tockens + next_tockens to be at least 0"},
      {"band_pre_is_minus_keys", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, -24, 30);
       },
       "pre_tockens to be above -Skv in sparse_mode 0, but got pre_tockens=-24 (Skv=24)"},
      {"band_pre_min", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, kMin, kMax);
       },
       "pre_tockens to be above -Skv in sparse_mode 0"},
      {"band_next_is_minus_rows", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, 20, -16);
       },
       "next_tockens to be above -Sq in sparse_mode 0, but got next_tockens=-16 (Sq=16)"},
      {"band_next_min", Dense,
       [](Call& c) {
         SetMask(c, 0, {16, 24});
         SetTokens(c, kMax, kMin);
       },
       "next_tockens to be above -Sq in sparse_mode 0"},
      {"mode_4_empty", Dense,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, 512, -1024);
       },
       "pre_tockens + next_tockens to be at least 0 in sparse_mode 0 and 4"},
      {"mode_4_pre", Dense,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, -16, 100);
       },
       "pre_tockens to be above -Sq in sparse_mode 4, but got pre_tockens=-16 (Sq=16)"},
      {"mode_4_next", Dense,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, 100, -24);
       },
       "next_tockens to be above -Skv in sparse_mode 4, but got next_tockens=-24 (Skv=24)"},
      {"packed_0_next", Packed,
       [](Call& c) {
         SetMask(c, 0, {5, 6});
         SetTokens(c, 100, -1);
       },
       "next_tockens to be at least 0 in layout TND, sparse_mode 0, but got next_tockens=-1"},
      {"packed_0_empty", Packed,
       [](Call& c) {
         SetMask(c, 0, {5, 6});
         SetTokens(c, -2, 1);
       },
       "pre_tockens + next_tockens to be at least 0 in layout TND, sparse_mode 0"},
      {"packed_0_pre", Packed,
       [](Call& c) {
         SetMask(c, 0, {5, 6});
         SetTokens(c, -1, 5);
       },
       "pre_tockens to be at least Sq - Skv of every sequence in layout TND, sparse_mode 0, but "
       "got "
       "pre_tockens=-1 (Sq=5, Skv=5, sequence=1)"},
      {"packed_4_pre", Packed,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, -1, 5);
       },
       "pre_tockens to be at least 0 in layout TND, sparse_mode 4, but got pre_tockens=-1"},
      {"packed_4_empty", Packed,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, 100, -256);
       },
       "pre_tockens + next_tockens to be at least 0 in layout TND, sparse_mode 4"},
      {"packed_4_next", Packed,
       [](Call& c) {
         SetMask(c, 4, {2048, 2048});
         SetTokens(c, 100, -1);
       },
       "next_tockens to be at least Sq - Skv of every sequence in layout TND, sparse_mode 4, but "
       "got next_tockens=-1 (Sq=5, Skv=5, sequence=1)"},
      {"packed_3_more_rows", Packed,
       [](Call& c) {
         SetMask(c, 3, {2048, 2048});
         SetEnds(c, {3, 8}, {4, 8});
       },
       "actual_seq_kvlen to give Skv >= Sq in layout TND, sparse_mode 3 and 7, but got Sq=5 "
       "(Skv=4, "
       "sequence=1"},
      {"packed_3_no_keys", Packed,
       [](Call& c) {
         SetMask(c, 3, {2048, 2048});
         SetEnds(c, {3, 4}, {4, 4});
       },
       "actual_seq_kvlen to give Skv >= Sq in layout TND, sparse_mode 3 and 7"},
      {"mode_7_more_rows", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 100, 0);
         SetEnds(c, {5, 6}, {4, 9});
       },
       "actual_seq_kvlen to give Skv >= Sq in layout TND, sparse_mode 3 and 7, but got Sq=5 "
       "(Skv=4, "
       "sequence=0"},
      {"mode_7_next", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 100, 1);
       },
       "next_tockens to be at most 0 in sparse_mode 7, but got next_tockens=1"},
      {"mode_7_pre", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 5, 0);
       },
       "pre_tockens to be at least Skv of the band sequence in sparse_mode 7 and 8, but got "
       "pre_tockens=5 (Skv=6, sequence=2)"},
      {"mode_7_cut_too_much", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 6, -3);
       },
       "next_tockens to be at least Sq - Skv of the band sequence in sparse_mode 7 and 8, but got "
       "next_tockens=-3 (Sq=4, Skv=6, sequence=2)"},
      {"mode_7_band_before_empty", Packed,
       [](Call& c) {
         SetMask(c, 7, {2048, 2048});
         SetTokens(c, 5, 0);
         SetEnds(c, {3, 8, 8}, {4, 10, 12});
       },
       "pre_tockens to be at least Skv of the band sequence in sparse_mode 7 and 8, but got "
       "pre_tockens=5 (Skv=6, sequence=1)"},
      {"mode_8_pre", Packed,
       [](Call& c) {
         SetMask(c, 8, {2048, 2048});
         SetTokens(c, 3, 0);
       },
       "pre_tockens to be at least Skv of the band sequence in sparse_mode 7 and 8, but got "
       "pre_tockens=3 (Skv=4, sequence=0)"},
      {"mode_8_next", Packed,
       [](Call& c) {
         SetMask(c, 8, {2048, 2048});
         SetTokens(c, 4, -2);
       },
       "next_tockens to be at least Sq - Skv of the band sequence in sparse_mode 7 and 8"},
      {"mode_8_next_min", Packed,
       [](Call& c) {
         SetMask(c, 8, {2048, 2048});
         SetTokens(c, kMax, kMin);
       },
       "next_tockens to be at least Sq - Skv of the band sequence in sparse_mode 7 and 8"},
      // Prefix
      {"prefix_missing", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
       },
       "prefix to have one entry per sequence in sparse_mode 5 and 6, but got len(prefix)=0 (B=2)"},
      {"prefix_missing_mode_5", Dense,
       [](Call& c) {
         SetMask(c, 5, {2, 1, 16, 24});
       },
       "prefix to have one entry per sequence in sparse_mode 5 and 6"},
      {"prefix_long", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.prefix = {8, 8, 8};
       },
       "prefix to have one entry per sequence in sparse_mode 5 and 6, but got len(prefix)=3"},
      {"prefix_batch", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.query.shape[0] = c.key.shape[0] = c.value.shape[0] = 33;
         c.prefix = Sizes(33, 8);
       },
       "prefix to serve at most 32 sequences in sparse_mode 5 and 6, but got B=33"},
      {"prefix_small", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.prefix = {8, 7};
       },
       "prefix to be in [max(Skv - Sq, 0), Skv] for each sequence, but got prefix[1]=7 (Sq=16, "
       "Skv=24)"},
      {"prefix_large", Dense,
       [](Call& c) {
         SetMask(c, 5, {2, 1, 16, 24});
         c.prefix = {25, 8};
       },
       "prefix to be in [max(Skv - Sq, 0), Skv] for each sequence, but got prefix[0]=25"},
      {"prefix_negative", Dense,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         SetLengths(c, 24, 16);
         c.prefix = {0, kMin};
       },
       "prefix to be in [max(Skv - Sq, 0), Skv] for each sequence, but got prefix[1]=-92233720"},
      {"prefix_max_packed", Packed,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.prefix = {1, 5, kMax};
       },
       "prefix to be in [max(Skv - Sq, 0), Skv] for each sequence"},
      {"prefix_packed_short", Packed,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.prefix = {1, 0};
       },
       "prefix to have one entry per sequence in sparse_mode 5 and 6"},
      {"prefix_unused_sequence", Packed,
       [](Call& c) {
         SetMask(c, 6, {3072, 2048});
         c.actual_seq_qlen = {3, 8, 0};
         c.actual_seq_kvlen = {4, 9, 0};
         c.prefix = {1, 0, 1};
       },
       "prefix to be in [max(Skv - Sq, 0), Skv] for each sequence, but got prefix[2]=1 (Sq=0, "
       "Skv=0)"},
      {"mode_5_shared_mask", Dense,
       [](Call& c) {
         SetMask(c, 5, {16, 24});
         c.prefix = {8, 8};
       },
       "atten_mask to be [B, 1, Sq, Skv] or [B, N, Sq, Skv] in sparse_mode 5"},
      {"mode_5_batch_1_mask", Dense,
       [](Call& c) {
         SetMask(c, 5, {1, 1, 16, 24});
         c.prefix = {8, 8};
       },
       "atten_mask to be [B, 1, Sq, Skv] or [B, N, Sq, Skv] in sparse_mode 5"},
  };
}

}  // namespace fusion_attention
