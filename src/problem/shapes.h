// Reading shapes and sequence lists: pure arithmetic that the rules of validate.cc are stated in.
// Rejects nothing. Everything here is total: any int64 in any place is harmless.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "fusion_attention/problem.h"

namespace fusion_attention {

std::optional<Layout> ParseLayout(std::string_view name);  // letter case does not matter
std::string_view Name(Layout layout);
size_t RankOf(Layout layout);

// The axes of a query, key or value tensor whose shape has RankOf(layout) entries.
struct Axes {
  int64_t batch = 1;   // 1 in TND
  int64_t tokens = 0;  // S, or T in TND
  int64_t heads = 1;   // 1 in BSH and SBH, whose heads are part of `width`
  int64_t width = 0;   // D, or H in BSH and SBH
};
Axes AxesOf(Layout layout, const std::vector<int64_t>& shape);

// Whether heads are folded into the last axis.
constexpr bool FoldsHeads(Layout layout) {
  return layout == Layout::kBSH || layout == Layout::kSBH;
}

std::vector<int64_t> OutputShape(const Call& call, const Problem& problem);
std::vector<int64_t> StatisticsShape(const Problem& problem);

// Product of non-negative factors; kSaturated when it does not fit.
inline constexpr int64_t kSaturated = INT64_MAX;
int64_t SaturatingProduct(std::span<const int64_t> factors);

// Cumulative lengths of packed sequences. `used` entries count; behind them only zeros may stand,
// which mean "unused". A list that holds nothing but zeros has no unused entries of its own.
bool AllZero(const std::vector<int64_t>& ends);
size_t UsedEntries(const std::vector<int64_t>& ends);
// The first index below `used` whose entry is smaller than the one before it.
std::optional<size_t> FirstDecrease(const std::vector<int64_t>& ends, size_t used);
// Preconditions: both lists hold `used` non-decreasing non-negative entries.
std::vector<Sequence> PackSequences(const std::vector<int64_t>& q_ends,
                                    const std::vector<int64_t>& kv_ends, size_t used,
                                    int64_t q_heads);

}  // namespace fusion_attention
