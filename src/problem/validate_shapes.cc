// Rules about the shapes of query, key and value, and about actual_seq_qlen and actual_seq_kvlen.
// Fills in the extents of the problem and its packed sequences.
#include <algorithm>
#include <optional>
#include <utility>

#include "src/problem/shapes.h"
#include "src/problem/validate.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMaxHeadDim = 768;
constexpr int64_t kMaxBatch = 2 * 1024 * 1024;
constexpr int64_t kMaxTokens = 1024 * 1024;
constexpr int64_t kMaxPackedSequences = 2048;

// Rank and sizes of one of query, key, value.
Status CheckAxes(const char* name, const TensorSpec& tensor, const Draft& draft) {
  const Layout layout = draft.problem.layout;
  const auto shown_layout = [&] { return "input_layout=" + std::string(Name(layout)); };
  if (tensor.shape.size() != RankOf(layout)) {
    return Broken(name, "to have 3 dimensions in BSH, SBH, TND and 4 in BNSD, BSND",
                  {ShowShape(name, tensor), shown_layout()}, "Check input_layout.");
  }
  for (const int64_t size : tensor.shape) {
    if (size < 0) {
      return Broken(name, "to have sizes of at least 0", {ShowShape(name, tensor)},
                    "A size of 0 is legal and gives empty or zero results.");
    }
  }
  const Axes axes = AxesOf(layout, tensor.shape);
  if (axes.batch > kMaxBatch) {
    return Broken(name, "to have B of at most 2097152",
                  {ShowInt("B", axes.batch), ShowShape(name, tensor), shown_layout()},
                  "Split the batch.");
  }
  if (axes.tokens > kMaxTokens) {
    return Broken(
        name, "to have S (T in layout TND) of at most 1048576",
        {ShowInt(draft.packed() ? "T" : "S", axes.tokens), ShowShape(name, tensor), shown_layout()},
        "Split the sequence, or check input_layout.");
  }
  return Status();
}

// Heads and head sizes of the layouts that fold them into H. Without a head_dim the number of key
// heads cannot be told; it is then head_num.
Status CheckFoldedHeads(const Call& call, Problem& problem, int64_t q_width, int64_t k_width,
                        int64_t v_width) {
  if (q_width % call.head_num != 0) {
    return Broken("query", "to have H divisible by head_num",
                  {ShowShape("query", call.query), ShowInt("head_num", call.head_num)},
                  "H is head_num * D.");
  }
  problem.head_dim = q_width / call.head_num;
  const int64_t head_dim = problem.head_dim;
  if (head_dim == 0 ? k_width != 0 : k_width % head_dim != 0) {
    return Broken("key", "to have H divisible by D of query",
                  {ShowShape("key", call.key), ShowInt("D", head_dim),
                   ShowShape("query", call.query), ShowInt("head_num", call.head_num)},
                  "H of key is its number of heads * D, where D is H of query / head_num.");
  }
  problem.kv_heads = head_dim == 0 ? call.head_num : k_width / head_dim;
  if (problem.kv_heads == 0 || v_width % problem.kv_heads == 0) {
    problem.value_dim = problem.kv_heads == 0 ? 0 : v_width / problem.kv_heads;
    return Status();
  }
  return Broken("value", "to have H divisible by the number of heads of key",
                {ShowShape("value", call.value), ShowInt("Nkv", problem.kv_heads),
                 ShowShape("key", call.key)},
                "H of value is that number * Dv.");
}

// The same for layouts in which N is an axis.
Status CheckHeadAxes(const Call& call, Problem& problem, const Axes& q, const Axes& k,
                     const Axes& v) {
  if (q.heads != call.head_num) {
    return Broken("head_num", "to equal N of query",
                  {ShowInt("head_num", call.head_num), ShowShape("query", call.query),
                   ShowText("input_layout", call.input_layout)},
                  "Check input_layout: the position of N depends on it.");
  }
  if (k.width != q.width) {
    return Broken("key", "to have D of query",
                  {ShowShape("key", call.key), ShowShape("query", call.query)},
                  "Only value may have a smaller D.");
  }
  if (v.heads != k.heads) {
    return Broken("value", "to have N of key",
                  {ShowShape("value", call.value), ShowShape("key", call.key)},
                  "key and value differ in D at most.");
  }
  problem.head_dim = q.width;
  problem.kv_heads = k.heads;
  problem.value_dim = v.width;
  return Status();
}

// One cumulative list, up to `used` entries. `tokens` is T of the tensor that it describes.
Status CheckEnds(const char* name, const Shape& ends, size_t used, int64_t tokens) {
  if (const std::optional<size_t> bad = FirstDecrease(ends, used)) {
    return Broken(name, "to be non-decreasing (only trailing zeros may follow)",
                  {ShowAt(name, static_cast<int64_t>(*bad), ends[*bad]),
                   ShowAt(name, static_cast<int64_t>(*bad) - 1, ends[*bad - 1])},
                  "It holds cumulative lengths: 2, 2, 2 is passed as [2, 4, 6].");
  }
  if (ends[used - 1] > tokens) {
    return Broken(
        name, "to end at T of its tensor or before",
        {ShowAt(name, static_cast<int64_t>(used) - 1, ends[used - 1]), ShowInt("T", tokens)},
        "It holds cumulative lengths, not start positions with a leading 0.");
  }
  return Status();
}

}  // namespace

Status CheckShapes(const Call& call, Draft& draft) {
  Problem& problem = draft.problem;
  if (Status status = CheckAxes("query", call.query, draft); !status.ok()) return status;
  if (Status status = CheckAxes("key", call.key, draft); !status.ok()) return status;
  if (Status status = CheckAxes("value", call.value, draft); !status.ok()) return status;
  const Axes q = AxesOf(problem.layout, call.query.shape);
  const Axes k = AxesOf(problem.layout, call.key.shape);
  const Axes v = AxesOf(problem.layout, call.value.shape);
  if (k.batch != q.batch) {
    return Broken("key", "to have B of query",
                  {ShowShape("key", call.key), ShowShape("query", call.query),
                   ShowText("input_layout", call.input_layout)},
                  "Check input_layout.");
  }
  if (v.batch != k.batch || v.tokens != k.tokens) {
    return Broken("value", "to have B and S (T in layout TND) of key",
                  {ShowShape("value", call.value), ShowShape("key", call.key)},
                  "key and value differ in D at most.");
  }
  Status heads = FoldsHeads(problem.layout)
                     ? CheckFoldedHeads(call, problem, q.width, k.width, v.width)
                     : CheckHeadAxes(call, problem, q, k, v);
  if (!heads.ok()) return heads;
  if (problem.kv_heads == 0 || problem.q_heads % problem.kv_heads != 0) {
    return Broken("key", "to have a number of heads that divides head_num",
                  {ShowInt("Nkv", problem.kv_heads), ShowInt("head_num", call.head_num),
                   ShowShape("key", call.key)},
                  "Each key head serves head_num / Nkv query heads.");
  }
  if (problem.head_dim > kMaxHeadDim) {
    return Broken("query", "to have D of at most 768",
                  {ShowInt("D", problem.head_dim), ShowShape("query", call.query),
                   ShowInt("head_num", call.head_num)},
                  "Check head_num and input_layout.");
  }
  if (problem.value_dim > problem.head_dim) {
    return Broken("value", "to have D of at most D of key",
                  {ShowInt("Dv", problem.value_dim), ShowInt("D", problem.head_dim),
                   ShowShape("value", call.value)},
                  "Pad query and key with zeros if value must be wider.");
  }
  problem.batch = q.batch;
  problem.q_len = q.tokens;
  problem.kv_len = k.tokens;
  return Status();
}

Status CheckSequences(const Call& call, Draft& draft) {
  Problem& problem = draft.problem;
  static const Shape kNone;
  const Shape& q_ends = call.actual_seq_qlen ? *call.actual_seq_qlen : kNone;
  const Shape& kv_ends = call.actual_seq_kvlen ? *call.actual_seq_kvlen : kNone;
  if (!draft.packed()) {
    for (const auto& [name, ends] :
         {std::pair("actual_seq_qlen", &q_ends), std::pair("actual_seq_kvlen", &kv_ends)}) {
      if (ends->empty()) continue;
      return Broken(name, "to be None in layouts other than TND",
                    {ShowInt("length", static_cast<int64_t>(ends->size())),
                     ShowText("input_layout", call.input_layout)},
                    "Pass input_layout='TND' with packed tensors to use sequence lengths.");
    }
    draft.given_sequences = problem.batch;
    draft.longest_q = problem.q_len;
    draft.longest_kv = problem.kv_len;
    const int64_t extents[] = {problem.batch, problem.q_heads, problem.q_len, problem.kv_len};
    const int64_t numels = SaturatingProduct(extents);
    if (numels == kSaturated) {
      return Broken("query", "and key to have B * N * Sq * Skv below 2^63 - 1",
                    {ShowShape("query", call.query), ShowShape("key", call.key)},
                    "Split the batch, the heads or the sequence.");
    }
    problem.numels = numels;
    return Status();
  }

  for (const auto& [name, ends] :
       {std::pair("actual_seq_qlen", &q_ends), std::pair("actual_seq_kvlen", &kv_ends)}) {
    if (!ends->empty()) continue;
    return Broken(name, "to be given in layout TND", {ShowInt("length", 0)},
                  "Pass the cumulative lengths of the packed sequences, such as [2, 5, 9].");
  }
  const int64_t count = static_cast<int64_t>(q_ends.size());
  if (q_ends.size() != kv_ends.size()) {
    return Broken("actual_seq_kvlen", "to have as many entries as actual_seq_qlen",
                  {ShowInt("len(actual_seq_kvlen)", static_cast<int64_t>(kv_ends.size())),
                   ShowInt("len(actual_seq_qlen)", count)},
                  "Both lists have one entry per sequence.");
  }
  if (count > kMaxPackedSequences) {
    return Broken("actual_seq_qlen", "to have at most 2048 entries",
                  {ShowInt("len(actual_seq_qlen)", count)}, "Split the batch.");
  }
  for (const auto& [name, ends] :
       {std::pair("actual_seq_qlen", &q_ends), std::pair("actual_seq_kvlen", &kv_ends)}) {
    for (size_t i = 0; i < ends->size(); ++i) {
      if ((*ends)[i] >= 0) continue;
      return Broken(name, "to have entries of at least 0",
                    {ShowAt(name, static_cast<int64_t>(i), (*ends)[i])},
                    "It holds cumulative lengths.");
    }
  }
  // A list of zeros alone fits any number of unused entries in the other.
  const size_t used_q = AllZero(q_ends) ? UsedEntries(kv_ends) : UsedEntries(q_ends);
  const size_t used_kv = AllZero(kv_ends) ? used_q : UsedEntries(kv_ends);
  if (Status status = CheckEnds("actual_seq_qlen", q_ends, used_q, problem.q_len); !status.ok()) {
    return status;
  }
  if (Status status = CheckEnds("actual_seq_kvlen", kv_ends, used_kv, problem.kv_len);
      !status.ok()) {
    return status;
  }
  if (used_q != used_kv) {
    return Broken(
        "actual_seq_kvlen", "to have as many trailing zeros as actual_seq_qlen",
        {ShowInt("trailing zeros", count - static_cast<int64_t>(used_kv)),
         ShowInt("those of actual_seq_qlen", count - static_cast<int64_t>(used_q))},
        "A sequence is unused in both lists or in none; an empty one repeats the entry before.");
  }
  problem.packed = PackSequences(q_ends, kv_ends, used_q, problem.q_heads);
  problem.batch = static_cast<int64_t>(problem.packed.size());
  draft.given_sequences = count;
  for (const Sequence& sequence : problem.packed) {
    draft.longest_q = std::max(draft.longest_q, sequence.q_len);
    draft.longest_kv = std::max(draft.longest_kv, sequence.kv_len);
    problem.numels += problem.q_heads * sequence.q_len * sequence.kv_len;
  }
  return Status();
}

}  // namespace fusion_attention
