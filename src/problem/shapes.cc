// Reading shapes and sequence lists. See shapes.h.
#include "src/problem/shapes.h"

#include <algorithm>
#include <cctype>
#include <utility>

namespace fusion_attention {
namespace {

constexpr std::pair<std::string_view, Layout> kLayouts[] = {
    {"BSH", Layout::kBSH},   {"SBH", Layout::kSBH}, {"BNSD", Layout::kBNSD},
    {"BSND", Layout::kBSND}, {"TND", Layout::kTND},
};

bool SameLetters(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::toupper(x) == std::toupper(y);
  });
}

}  // namespace

std::optional<Layout> ParseLayout(std::string_view name) {
  for (const auto& [known, layout] : kLayouts) {
    if (SameLetters(known, name)) return layout;
  }
  return std::nullopt;
}

std::string_view Name(Layout layout) {
  for (const auto& [known, value] : kLayouts) {
    if (value == layout) return known;
  }
  return "";
}

size_t RankOf(Layout layout) { return layout == Layout::kBNSD || layout == Layout::kBSND ? 4 : 3; }

Axes AxesOf(Layout layout, const std::vector<int64_t>& shape) {
  switch (layout) {
    case Layout::kBSH:
      return {.batch = shape[0], .tokens = shape[1], .width = shape[2]};
    case Layout::kSBH:
      return {.batch = shape[1], .tokens = shape[0], .width = shape[2]};
    case Layout::kBNSD:
      return {.batch = shape[0], .tokens = shape[2], .heads = shape[1], .width = shape[3]};
    case Layout::kBSND:
      return {.batch = shape[0], .tokens = shape[1], .heads = shape[2], .width = shape[3]};
    case Layout::kTND:
      break;
  }
  return {.tokens = shape[0], .heads = shape[1], .width = shape[2]};
}

std::vector<int64_t> OutputShape(const Call& call, const Problem& problem) {
  std::vector<int64_t> shape = call.query.shape;
  shape.back() =
      FoldsHeads(problem.layout) ? problem.q_heads * problem.value_dim : problem.value_dim;
  return shape;
}

std::vector<int64_t> StatisticsShape(const Problem& problem) {
  if (problem.layout == Layout::kTND) return {problem.q_len, problem.q_heads, 8};
  return {problem.batch, problem.q_heads, problem.q_len, 8};
}

int64_t SaturatingProduct(std::span<const int64_t> factors) {
  if (std::find(factors.begin(), factors.end(), 0) != factors.end()) return 0;
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return kSaturated;
  }
  return product;
}

bool AllZero(const std::vector<int64_t>& ends) {
  return std::all_of(ends.begin(), ends.end(), [](int64_t end) { return end == 0; });
}

size_t UsedEntries(const std::vector<int64_t>& ends) {
  size_t used = ends.size();
  while (used > 0 && ends[used - 1] == 0) --used;
  return used == 0 ? ends.size() : used;
}

std::optional<size_t> FirstDecrease(const std::vector<int64_t>& ends, size_t used) {
  for (size_t i = 1; i < used; ++i) {
    if (ends[i] < ends[i - 1]) return i;
  }
  return std::nullopt;
}

std::vector<Sequence> PackSequences(const std::vector<int64_t>& q_ends,
                                    const std::vector<int64_t>& kv_ends, size_t used,
                                    int64_t q_heads) {
  std::vector<Sequence> packed;
  packed.reserve(used);
  Sequence next;
  for (size_t i = 0; i < used; ++i) {
    next.batch = static_cast<int64_t>(i);
    next.q_len = q_ends[i] - next.q_begin;
    next.kv_len = kv_ends[i] - next.kv_begin;
    packed.push_back(next);
    next.q_begin = q_ends[i];
    next.kv_begin = kv_ends[i];
    next.dropout_begin += q_heads * next.q_len * next.kv_len;
  }
  return packed;
}

}  // namespace fusion_attention
