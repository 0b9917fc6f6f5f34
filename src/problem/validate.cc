// Every rule of the operator, and the only code that rejects a call. docs/errors.md lists the rules
// in the order of this file. Each stage below states the rules of one topic, in order; the first
// broken rule of the first failing stage is what the caller hears. A new rule is one `Broken(...)`
// in the stage it belongs to, a row in docs/errors.md, and a row in
// tests/cc/problem/reject_test.cc. Reads no tensor data (ValidateCompressedMask alone looks at a
// few mask bytes) and allocates the result only.
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "fusion_attention/problem.h"
#include "src/problem/message.h"
#include "src/problem/shapes.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMaxHeads = 256;
constexpr int64_t kMaxHeadDim = 768;
constexpr int64_t kMaxBatch = 2 * 1024 * 1024;
constexpr int64_t kMaxTokens = 1024 * 1024;
constexpr int64_t kMaxPackedSequences = 2048;
constexpr int64_t kMaxPrefixBatch = 32;
constexpr int64_t kCompressedMaskSize = 2048;
constexpr int64_t kCompressedPrefixMaskRows = 3072;
constexpr int64_t kCompressedPseRows = 1024;
constexpr double kKeepProbTolerance = 1e-9;  // the device's own

using Shape = std::vector<int64_t>;

// What the stages hand on to each other besides the problem itself.
struct Draft {
  Problem problem;
  int64_t given_sequences =
      0;                  // B as the caller counts it, trailing unused sequences of TND included
  int64_t longest_q = 0;  // over the sequences
  int64_t longest_kv = 0;

  bool packed() const { return problem.layout == Layout::kTND; }
};

// A tensor without dimensions stands for "not given", as on the device.
bool IsGiven(const std::optional<TensorSpec>& tensor) { return tensor && !tensor->shape.empty(); }

bool IsFloat(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 || dtype == DType::kFloat32 ||
         dtype == DType::kFloat64;
}

Status CheckOptions(const Call& call, Draft& draft) {
  Problem& problem = draft.problem;
  const std::optional<Layout> layout = ParseLayout(call.input_layout);
  if (!layout) {
    return Broken("input_layout", "to be one of BSH, SBH, BNSD, BSND, TND",
                  {ShowText("input_layout", call.input_layout)}, "Letter case does not matter.");
  }
  problem.layout = *layout;

  if (call.head_num < 1 || call.head_num > kMaxHeads) {
    return Broken("head_num", "to be in [1, 256]", {ShowInt("head_num", call.head_num)},
                  "It counts the heads of query.");
  }
  problem.q_heads = call.head_num;

  if (call.padding_mask) {
    return Unsupported("padding_mask", "to be None",
                       {ShowShape("padding_mask", *call.padding_mask)},
                       "The operator does not support it; mask padding with atten_mask.");
  }
  if (!(std::abs(call.scale) <= std::numeric_limits<float>::max())) {
    return Broken("scale", "to be finite in float32", {ShowReal("scale", call.scale)},
                  "The usual value is 1 / sqrt(head_dim).");
  }
  problem.scale = call.scale;

  if (!(call.keep_prob > 0.0 && call.keep_prob <= 1.0)) {
    return Broken("keep_prob", "to be in (0, 1]", {ShowReal("keep_prob", call.keep_prob)},
                  "It is the probability to keep a weight; 1 means no dropout.");
  }
  // 1 / keep_prob stays finite in float32: whatever is below the tolerance drops everything and is
  // never divided by.
  problem.keep_prob = call.keep_prob;
  if (std::abs(call.keep_prob - 1.0) < kKeepProbTolerance) {
    problem.keep_prob = 1.0;
    problem.dropout = DropoutKind::kNone;
  } else if (call.keep_prob < kKeepProbTolerance) {
    problem.dropout = DropoutKind::kDropAll;
  } else {
    problem.dropout = call.dropout_mask ? DropoutKind::kExternal : DropoutKind::kPhilox;
  }

  const int64_t mode = call.sparse_mode;
  if (draft.packed() && (mode < 0 || mode > 8 || mode == 5)) {
    return Broken("sparse_mode", "to be one of 0, 1, 2, 3, 4, 6, 7, 8 in layout TND",
                  {ShowInt("sparse_mode", mode)},
                  "Mode 5 needs another layout; mode 6 is its compressed form.");
  }
  if (!draft.packed() && (mode < 0 || mode > 6)) {
    return Broken("sparse_mode", "to be in [0, 6] in layouts other than TND",
                  {ShowInt("sparse_mode", mode), ShowText("input_layout", call.input_layout)},
                  "Modes 7 and 8 need layout TND.");
  }
  problem.mask.sparse_mode = mode;

  if (!call.softmax_layout.empty() && call.softmax_layout != "TND") {
    return Broken("softmax_layout", "to be '' or 'TND'",
                  {ShowText("softmax_layout", call.softmax_layout)}, "Letter case matters here.");
  }
  problem.softmax_layout_tnd = call.softmax_layout == "TND";
  if (problem.softmax_layout_tnd && !draft.packed()) {
    return Broken("softmax_layout", "to be '' in layouts other than TND",
                  {ShowText("softmax_layout", call.softmax_layout),
                   ShowText("input_layout", call.input_layout)},
                  "It chooses the memory order of packed statistics.");
  }
  return Status();
}

Status CheckDTypes(const Call& call, Draft& draft) {
  if (!IsFloat(call.query.dtype)) {
    return Broken("query", "to have dtype float16, bfloat16 or float32 (or float64)",
                  {ShowDType("query", call.query)},
                  "Convert query, key and value with .to(dtype).");
  }
  draft.problem.dtype = call.query.dtype;
  const auto same = [&call](const char* name, const TensorSpec& tensor) {
    if (tensor.dtype == call.query.dtype) return Status();
    return Broken(name, "to have the dtype of query",
                  {ShowDType(name, tensor), ShowDType("query", call.query)},
                  "query, key, value and pse share one dtype.");
  };
  if (Status status = same("key", call.key); !status.ok()) return status;
  if (Status status = same("value", call.value); !status.ok()) return status;
  return IsGiven(call.pse) ? same("pse", *call.pse) : Status();
}

// Rank and sizes of one of query, key, value.
Status CheckAxes(const char* name, const TensorSpec& tensor, const Draft& draft) {
  const Layout layout = draft.problem.layout;
  const std::string shown_layout = "input_layout=" + std::string(Name(layout));
  if (tensor.shape.size() != RankOf(layout)) {
    return Broken(name, "to have 3 dimensions in BSH, SBH, TND and 4 in BNSD, BSND",
                  {ShowShape(name, tensor), shown_layout}, "Check input_layout.");
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
                  {ShowInt("B", axes.batch), ShowShape(name, tensor), shown_layout},
                  "Split the batch.");
  }
  if (axes.tokens > kMaxTokens) {
    return Broken(
        name, "to have S (T in layout TND) of at most 1048576",
        {ShowInt(draft.packed() ? "T" : "S", axes.tokens), ShowShape(name, tensor), shown_layout},
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
    const int64_t numels =
        SaturatingProduct({problem.batch, problem.q_heads, problem.q_len, problem.kv_len});
    if (numels == kSaturated) {
      return Broken("query and key", "to have B * N * Sq * Skv below 2^63 - 1",
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

bool ReadsWholeMask(int64_t mode) { return mode == 0 || mode == 1 || mode == 5; }

Status CheckMaskShape(const Call& call, Draft& draft) {
  const TensorSpec& mask = *call.atten_mask;
  const Shape& shape = mask.shape;
  MaskSpec& spec = draft.problem.mask;
  const std::string mode = ShowInt("sparse_mode", call.sparse_mode);
  if (shape.size() != 2 && shape.size() != 4) {
    return Broken("atten_mask", "to have 2 or 4 dimensions", {ShowShape("atten_mask", mask)},
                  "Use [Sq, Skv], [1, 1, Sq, Skv], [B, 1, Sq, Skv] or [B, N, Sq, Skv].");
  }
  const bool is_4d = shape.size() == 4;
  const int64_t rows = shape[shape.size() - 2], keys = shape[shape.size() - 1];
  const int64_t batch = is_4d ? shape[0] : 1, heads = is_4d ? shape[1] : 1;
  const int64_t full_batch = draft.given_sequences;
  if (batch != 1 && batch != full_batch) {
    return Broken("atten_mask", "of 4 dimensions to start with 1 or B",
                  {ShowShape("atten_mask", mask), ShowInt("B", full_batch)},
                  "Use [1, 1, Sq, Skv], [B, 1, Sq, Skv] or [B, N, Sq, Skv].");
  }
  if (heads != 1 && !(heads == call.head_num && batch == full_batch)) {
    return Broken(
        "atten_mask", "of 4 dimensions to be [B, N, ...] when its second is not 1",
        {ShowShape("atten_mask", mask), ShowInt("B", full_batch), ShowInt("N", call.head_num)},
        "Use [1, 1, Sq, Skv], [B, 1, Sq, Skv] or [B, N, Sq, Skv].");
  }
  if (call.sparse_mode == 6) {
    if (rows == kCompressedPrefixMaskRows && keys == kCompressedMaskSize) return Status();
    return Broken(
        "atten_mask", "to end with [3072, 2048] in sparse_mode 6", {ShowShape("atten_mask", mask)},
        "It is the compressed form: triu(ones(2048, 2048), 1) above 1024 rows of 1024 zeros and "
        "1024 ones.");
  }
  if (!ReadsWholeMask(call.sparse_mode)) {
    if (rows == kCompressedMaskSize && keys == kCompressedMaskSize) return Status();
    return Broken(
        "atten_mask", "to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8",
        {ShowShape("atten_mask", mask), mode},
        "Pass torch.triu(torch.ones(2048, 2048), 1).bool(), or a full mask with sparse_mode 1.");
  }
  if (rows != draft.longest_q || keys != draft.longest_kv) {
    if (!draft.packed()) {
      return Broken(
          "atten_mask", "to end with [Sq, Skv] in sparse_mode 0, 1 and 5",
          {ShowShape("atten_mask", mask), ShowInt("Sq", draft.longest_q),
           ShowInt("Skv", draft.longest_kv), mode},
          "Masks are not broadcast over rows or keys; a 2048 x 2048 mask needs mode 2, 3 or 4.");
    }
    const bool over_tokens = rows == draft.problem.q_len && keys == draft.problem.kv_len;
    return Broken("atten_mask", "to end with [max Sq, max Skv] in layout TND, sparse_mode 0 and 1",
                  {ShowShape("atten_mask", mask), ShowInt("max Sq", draft.longest_q),
                   ShowInt("max Skv", draft.longest_kv)},
                  over_tokens
                      ? "A mask over all T tokens is not supported; sequences never see each "
                        "other anyway."
                      : "Each sequence reads its top-left corner.");
  }
  spec.source = MaskSource::kDense;
  spec.batch = batch;
  spec.heads = heads;
  spec.rows = rows;
  spec.keys = keys;
  return Status();
}

// The tokens as texts show them.
std::string ShowPre(const Call& call) { return ShowInt("pre_tockens", call.pre_tockens); }
std::string ShowNext(const Call& call) { return ShowInt("next_tockens", call.next_tockens); }
std::string ShowSq(const Sequence& sequence) { return ShowInt("Sq", sequence.q_len); }
std::string ShowSkv(const Sequence& sequence) { return ShowInt("Skv", sequence.kv_len); }
std::string ShowIndex(const Sequence& sequence) { return ShowInt("sequence", sequence.batch); }

// Modes 0 and 4 of dense layouts. Lengths of 0 leave nothing to mask.
Status CheckDenseBand(const Call& call, const Problem& problem) {
  const int64_t pre = problem.mask.pre_tockens, next = problem.mask.next_tockens;
  const Sequence all = {.q_len = problem.q_len, .kv_len = problem.kv_len};
  if (problem.q_len == 0 || problem.kv_len == 0) return Status();
  if (pre + next < 0) {
    return Broken("pre_tockens", "+ next_tockens to be at least 0 in sparse_mode 0 and 4",
                  {ShowPre(call), ShowNext(call)},
                  "Row i sees keys from i - pre_tockens to i + next_tockens.");
  }
  if (call.sparse_mode == 0) {
    if (pre <= -problem.kv_len) {
      return Broken("pre_tockens", "to be above -Skv in sparse_mode 0",
                    {ShowPre(call), ShowSkv(all)},
                    "Otherwise no row sees a key: row i starts at key i - pre_tockens.");
    }
    if (next <= -problem.q_len) {
      return Broken("next_tockens", "to be above -Sq in sparse_mode 0",
                    {ShowNext(call), ShowSq(all)},
                    "Otherwise no row sees a key: row i ends at key i + next_tockens.");
    }
    return Status();
  }
  if (pre <= -problem.q_len) {
    return Broken("pre_tockens", "to be above -Sq in sparse_mode 4", {ShowPre(call), ShowSq(all)},
                  "Otherwise no row sees a key: the band is counted from the bottom-right corner.");
  }
  if (next <= -problem.kv_len) {
    return Broken("next_tockens", "to be above -Skv in sparse_mode 4",
                  {ShowNext(call), ShowSkv(all)},
                  "Otherwise no row sees a key: the band is counted from the bottom-right corner.");
  }
  return Status();
}

Status CheckPackedMode0(const Call& call, const Problem& problem) {
  const int64_t pre = problem.mask.pre_tockens, next = problem.mask.next_tockens;
  if (next < 0) {
    return Broken("next_tockens", "to be at least 0 in layout TND, sparse_mode 0", {ShowNext(call)},
                  "Row 0 of each sequence would see no key.");
  }
  if (pre + next < 0) {
    return Broken("pre_tockens", "+ next_tockens to be at least 0 in layout TND, sparse_mode 0",
                  {ShowPre(call), ShowNext(call)},
                  "Row i sees keys from i - pre_tockens to i + next_tockens.");
  }
  for (const Sequence& sequence : problem.packed) {
    if (sequence.q_len == 0 || sequence.kv_len + pre >= sequence.q_len) continue;
    return Broken("pre_tockens",
                  "to be at least Sq - Skv of every sequence in layout TND, sparse_mode 0",
                  {ShowPre(call), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
                  "The last row would see no key.");
  }
  return Status();
}

Status CheckPackedMode4(const Call& call, const Problem& problem) {
  const int64_t pre = problem.mask.pre_tockens, next = problem.mask.next_tockens;
  if (pre < 0) {
    return Broken("pre_tockens", "to be at least 0 in layout TND, sparse_mode 4", {ShowPre(call)},
                  "The last row of each sequence would see no key.");
  }
  if (pre + next < 0) {
    return Broken("pre_tockens", "+ next_tockens to be at least 0 in layout TND, sparse_mode 4",
                  {ShowPre(call), ShowNext(call)},
                  "The band is counted from the bottom-right corner.");
  }
  for (const Sequence& sequence : problem.packed) {
    if (sequence.q_len == 0 || sequence.q_len - next <= sequence.kv_len) continue;
    return Broken("next_tockens",
                  "to be at least Sq - Skv of every sequence in layout TND, sparse_mode 4",
                  {ShowNext(call), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
                  "The first row would see no key.");
  }
  return Status();
}

Status CheckCausalLengths(const Call& call, const Problem& problem) {
  for (const Sequence& sequence : problem.packed) {
    if (sequence.q_len == 0 || sequence.q_len <= sequence.kv_len) continue;
    return Broken("sequences", "to have Sq <= Skv in layout TND, sparse_mode 3 and 7",
                  {ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence),
                   ShowInt("sparse_mode", call.sparse_mode)},
                  "Rows above the bottom-right diagonal would see no key; use sparse_mode 2 or 8.");
  }
  return Status();
}

// Modes 7 and 8: the last, or first, sequence that has rows was cut, and is a band.
Status CheckBandSequence(const Call& call, Problem& problem) {
  const bool last = call.sparse_mode == 7;
  for (const Sequence& sequence : problem.packed) {
    if (sequence.q_len == 0) continue;
    problem.mask.band_sequence = sequence.batch;
    if (!last) break;
  }
  const int64_t pre = problem.mask.pre_tockens, next = problem.mask.next_tockens;
  if (last && next > 0) {
    return Broken("next_tockens", "to be at most 0 in sparse_mode 7", {ShowNext(call)},
                  "It is minus the number of rows that were cut off after the last sequence.");
  }
  if (problem.mask.band_sequence < 0) return Status();
  const Sequence& band = problem.packed[static_cast<size_t>(problem.mask.band_sequence)];
  if (pre < band.kv_len) {
    return Broken("pre_tockens", "to be at least Skv of the band sequence in sparse_mode 7 and 8",
                  {ShowPre(call), ShowSkv(band), ShowIndex(band)},
                  "The band sequence is the last (mode 7) or first (mode 8) that has rows.");
  }
  if (band.q_len - next > band.kv_len) {
    return Broken("next_tockens",
                  "to be at least Sq - Skv of the band sequence in sparse_mode 7 and 8",
                  {ShowNext(call), ShowSq(band), ShowSkv(band), ShowIndex(band)},
                  "The band sequence is the last (mode 7) or first (mode 8) that has rows.");
  }
  return Status();
}

Status CheckPrefix(const Call& call, Draft& draft) {
  const int64_t count = draft.given_sequences;
  static const Shape kNone;
  const Shape& prefix = call.prefix ? *call.prefix : kNone;
  if (count > kMaxPrefixBatch) {
    return Broken("prefix", "to serve at most 32 sequences in sparse_mode 5 and 6",
                  {ShowInt("B", count)}, "Split the batch.");
  }
  if (static_cast<int64_t>(prefix.size()) != count) {
    return Broken(
        "prefix", "to have one entry per sequence in sparse_mode 5 and 6",
        {ShowInt("len(prefix)", static_cast<int64_t>(prefix.size())), ShowInt("B", count)},
        "Entry b is the number of leading keys that every row of sequence b sees.");
  }
  for (int64_t b = 0; b < count; ++b) {
    // Unused sequences at the end have no length.
    const Sequence sequence =
        b < draft.problem.batch ? draft.problem.SequenceAt(b) : Sequence{.batch = b};
    const int64_t smallest = std::max<int64_t>(sequence.kv_len - sequence.q_len, 0);
    const int64_t given = prefix[static_cast<size_t>(b)];
    if (given >= smallest && given <= sequence.kv_len) continue;
    return Broken("prefix", "to be in [max(Skv - Sq, 0), Skv] for each sequence",
                  {ShowAt("prefix", b, given), ShowSq(sequence), ShowSkv(sequence)},
                  "A shorter prefix would change nothing, a longer one has no keys.");
  }
  draft.problem.mask.prefix.assign(prefix.begin(), prefix.begin() + draft.problem.batch);
  const MaskSpec& mask = draft.problem.mask;
  if (call.sparse_mode == 5 && count > 1 &&
      (call.atten_mask->shape.size() != 4 || mask.batch != count)) {
    return Broken("atten_mask", "to be [B, 1, Sq, Skv] or [B, N, Sq, Skv] in sparse_mode 5",
                  {ShowShape("atten_mask", *call.atten_mask), ShowInt("B", count)},
                  "Each sequence has a prefix of its own; mode 6 needs no full mask.");
  }
  return Status();
}

// Rules of one mode besides the mask's shape.
Status CheckMode(const Call& call, Draft& draft) {
  switch (call.sparse_mode) {
    case 0:
      return draft.packed() ? CheckPackedMode0(call, draft.problem)
                            : CheckDenseBand(call, draft.problem);
    case 3:
      return CheckCausalLengths(call, draft.problem);
    case 4:
      return draft.packed() ? CheckPackedMode4(call, draft.problem)
                            : CheckDenseBand(call, draft.problem);
    case 5:
    case 6:
      return CheckPrefix(call, draft);
    case 7:
      if (Status status = CheckCausalLengths(call, draft.problem); !status.ok()) return status;
      return CheckBandSequence(call, draft.problem);
    case 8:
      return CheckBandSequence(call, draft.problem);
    default:
      return Status();
  }
}

Status CheckMask(const Call& call, Draft& draft) {
  MaskSpec& mask = draft.problem.mask;
  mask.pre_tockens =
      std::clamp(call.pre_tockens, -RowIntervals::kUnbounded, RowIntervals::kUnbounded);
  mask.next_tockens =
      std::clamp(call.next_tockens, -RowIntervals::kUnbounded, RowIntervals::kUnbounded);
  if (!IsGiven(call.atten_mask)) return Status();
  mask.full = false;
  if (call.atten_mask->dtype != DType::kBool && call.atten_mask->dtype != DType::kUInt8) {
    return Broken("atten_mask", "to have dtype bool or uint8",
                  {ShowDType("atten_mask", *call.atten_mask)},
                  "True (or any non-zero byte) masks; an additive float mask belongs in pse.");
  }
  if (Status status = CheckMaskShape(call, draft); !status.ok()) return status;
  return CheckMode(call, draft);
}

// Whether row i sees exactly the keys up to i, given that Sq == Skv.
bool IsCausal(const Draft& draft) {
  const MaskSpec& mask = draft.problem.mask;
  if (mask.full) return false;
  return mask.sparse_mode == 2 || mask.sparse_mode == 3 ||
         (mask.sparse_mode == 0 && mask.pre_tockens >= draft.longest_q && mask.next_tockens == 0);
}

// What a compressed pse needs: it holds the last 1024 rows of a bias that depends on i - j alone.
Status CheckCompressedPse(const Call& call, Draft& draft) {
  const Problem& problem = draft.problem;
  const int64_t sequences = problem.sequences() == 0 ? 0 : draft.packed() ? problem.batch : 1;
  for (int64_t index = 0; index < sequences; ++index) {
    const Sequence sequence = problem.SequenceAt(index);
    if (sequence.q_len == sequence.kv_len) continue;
    return Broken(
        "pse", "of 1024 rows to come with Sq == Skv",
        {ShowShape("pse", *call.pse), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
        "It holds the last 1024 rows of a square bias; pass [B, N, Sq, Skv] instead.");
  }
  if (!IsCausal(draft)) {
    return Broken(
        "pse", "of 1024 rows to come with a causal atten_mask",
        {problem.mask.full ? "atten_mask=None" : ShowInt("sparse_mode", call.sparse_mode),
         ShowPre(call), ShowNext(call), ShowShape("pse", *call.pse)},
        "Causal is sparse_mode 2 or 3, or 0 with pre_tockens >= Sq and next_tockens = 0.");
  }
  return Status();
}

Status CheckPse(const Call& call, Draft& draft) {
  if (!IsGiven(call.pse)) return Status();
  Problem& problem = draft.problem;
  const Shape& shape = call.pse->shape;
  if (problem.mask.sparse_mode >= 7) {
    return Broken("pse", "to be None in sparse_mode 7 and 8",
                  {ShowShape("pse", *call.pse), ShowInt("sparse_mode", call.sparse_mode)},
                  "Cut sequences cannot be combined with a bias.");
  }
  for (const Sequence& sequence : problem.packed) {
    if (sequence.q_len > 0 && sequence.kv_len > 0) continue;
    return Broken(
        "pse", "to be None when a sequence of layout TND is empty",
        {ShowShape("pse", *call.pse), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
        "Leave empty sequences out of actual_seq_qlen and actual_seq_kvlen.");
  }
  if (shape.size() != 4 || (shape[0] != 1 && shape[0] != draft.given_sequences) ||
      shape[1] != call.head_num) {
    return Broken("pse", "to have 4 dimensions that start with [1, N] or [B, N]",
                  {ShowShape("pse", *call.pse), ShowInt("B", draft.given_sequences),
                   ShowInt("N", call.head_num)},
                  "Use [B, N, Sq, Skv], [1, N, Sq, Skv], [B, N, 1, Skv] or the compressed [B, N, "
                  "1024, Skv].");
  }
  problem.pse = {.kind = PseKind::kDense, .batch = shape[0], .rows = shape[2], .keys = shape[3]};
  if (draft.packed()) {
    if (shape[2] != kCompressedPseRows || shape[3] != draft.longest_kv) {
      return Broken(
          "pse", "to end with [1024, max Skv] in layout TND",
          {ShowShape("pse", *call.pse), ShowInt("max Skv", draft.longest_kv)},
          "Packed sequences take the compressed form only: the last 1024 rows of the bias.");
    }
    problem.pse.kind = PseKind::kCompressed;
    return CheckCompressedPse(call, draft);
  }
  const bool compressed = shape[2] == kCompressedPseRows && problem.q_len > kCompressedPseRows;
  if (shape[3] != problem.kv_len || (shape[2] != problem.q_len && shape[2] != 1 && !compressed)) {
    return Broken(
        "pse", "to end with [Sq, Skv], [1, Skv], or [1024, Skv] when Sq > 1024",
        {ShowShape("pse", *call.pse), ShowInt("Sq", problem.q_len), ShowInt("Skv", problem.kv_len)},
        "pse is added to the scores before scale.");
  }
  if (!compressed) return Status();
  problem.pse.kind = PseKind::kCompressed;
  return CheckCompressedPse(call, draft);
}

Status CheckSink(const Call& call, Draft& draft) {
  if (!call.sink) return Status();
  if (call.sink->dtype != DType::kFloat32) {
    return Broken("sink", "to have dtype float32", {ShowDType("sink", *call.sink)},
                  "It has this dtype for every dtype of query.");
  }
  if (call.sink->shape != Shape{call.head_num}) {
    return Broken("sink", "to have shape [N]",
                  {ShowShape("sink", *call.sink), ShowInt("N", call.head_num)},
                  "It holds one logit per query head.");
  }
  draft.problem.has_sink = true;
  return Status();
}

Status CheckDropoutMask(const Call& call, Draft& draft) {
  if (!call.dropout_mask) return Status();
  const TensorSpec& mask = *call.dropout_mask;
  if (mask.dtype != DType::kUInt8) {
    return Broken("dropout_mask", "to have dtype uint8", {ShowDType("dropout_mask", mask)},
                  "Each byte holds 8 keep bits, lowest bit first.");
  }
  bool negative = false;
  for (const int64_t size : mask.shape) negative |= size < 0;
  const int64_t bytes_needed = draft.problem.numels / 8 + (draft.problem.numels % 8 != 0);
  if (negative || SaturatingProduct(mask.shape) < bytes_needed) {
    return Broken("dropout_mask", "to have at least ceil(numels / 8) elements",
                  {ShowShape("dropout_mask", mask), ShowInt("numels", draft.problem.numels)},
                  "numels is N times the sum of Sq * Skv over all sequences.");
  }
  return Status();
}

Status CheckGradient(const Call& call, Draft& draft) {
  if (!call.grad) return Status();
  const GradCall& grad = *call.grad;
  const Problem& problem = draft.problem;
  const Shape out_shape = OutputShape(call, problem);
  for (const auto& [name, tensor] :
       {std::pair("dy", &grad.dy), std::pair("attention_in", &grad.attention_in)}) {
    if (tensor->dtype != problem.dtype) {
      return Broken(name, "to have the dtype of the forward output",
                    {ShowDType(name, *tensor), ShowDType("query", call.query)},
                    "It is the dtype of query.");
    }
    if (tensor->shape != out_shape) {
      return Broken(name, "to have the shape of the forward output",
                    {ShowShape(name, *tensor), ShowShape("attention_out", out_shape)},
                    "It is the shape of query with D of value.");
    }
  }
  const Shape statistics_shape = StatisticsShape(problem);
  for (const auto& [name, tensor] :
       {std::pair("softmax_max", &grad.softmax_max), std::pair("softmax_sum", &grad.softmax_sum)}) {
    if (tensor->dtype != DType::kFloat32) {
      return Broken(name, "to have dtype float32", {ShowDType(name, *tensor)},
                    "Pass it as the forward call returned it.");
    }
    if (tensor->shape != statistics_shape) {
      return Broken(name, "to have shape [B, N, Sq, 8], or [T, N, 8] in layout TND",
                    {ShowShape(name, *tensor), ShowShape("expected", statistics_shape)},
                    "Pass it as the forward call returned it.");
    }
  }
  const bool draws = problem.dropout != DropoutKind::kNone;
  if (draws && grad.numels.value_or(0) != 0 && *grad.numels != problem.numels) {
    return Broken("numels", "to be 0 or what the forward call returned",
                  {ShowInt("numels", *grad.numels), ShowInt("forward numels", problem.numels)},
                  "The dropout mask is the forward call's, element by element.");
  }
  return Status();
}

// The device reports fully masked rows in one of two ways, and chooses by the arguments alone.
bool IsInvalidRowMode(const Call& call, const Problem& problem) {
  if (call.inner_precise == 2) return true;
  if (problem.layout == Layout::kTND || problem.mask.full) return false;
  const MaskSpec& mask = problem.mask;
  const bool more_rows = problem.q_len > problem.kv_len;
  switch (mask.sparse_mode) {
    case 0:
      return mask.next_tockens < 0 || mask.pre_tockens + problem.kv_len < problem.q_len;
    case 3:
      return more_rows;
    case 4:
      return mask.pre_tockens < 0 || mask.next_tockens + problem.kv_len < problem.q_len;
    case 5:
    case 6:
      return more_rows && std::count(mask.prefix.begin(), mask.prefix.end(), 0) > 0;
    default:
      return false;
  }
}

constexpr Status (*kStages[])(const Call&, Draft&) = {
    CheckOptions, CheckDTypes, CheckShapes,      CheckSequences, CheckMask,
    CheckPse,     CheckSink,   CheckDropoutMask, CheckGradient,
};

// What people pass instead of the compressed mask, recognised at the probed elements: masked(row,
// key) and the text that helps.
struct MaskPattern {
  bool (*masked)(int64_t row, int64_t key);
  const char* hint;
};
constexpr MaskPattern kLookalikes[] = {
    {[](int64_t, int64_t) { return false; }, "atten_mask is all False: it masks nothing."},
    {[](int64_t, int64_t) { return true; }, "atten_mask is all True: it masks everything."},
    {[](int64_t row, int64_t key) { return key <= row; },
     "atten_mask looks inverted: True means masked, so pass its logical_not()."},
    {[](int64_t row, int64_t key) { return key < row; },
     "atten_mask looks transposed: mask above the diagonal, not below."},
    {[](int64_t row, int64_t key) { return key >= row; },
     "atten_mask also masks the diagonal: use diagonal=1 in torch.triu."},
};

struct Probe {
  int64_t row;
  int64_t key;
};
constexpr Probe kTriangleProbes[] = {{0, 0},       {0, 1},       {1, 0},       {1, 1},
                                     {0, 2047},    {2047, 0},    {2046, 2047}, {2047, 2046},
                                     {2047, 2047}, {1023, 1024}, {1024, 1023}, {1024, 1024}};
constexpr Probe kRectangleProbes[] = {{2048, 0}, {2048, 1023}, {2048, 1024}, {2048, 2047},
                                      {3071, 0}, {3071, 1023}, {3071, 1024}, {3071, 2047}};

}  // namespace

StatusOr<Problem> Validate(const Call& call) {
  Draft draft;
  for (const auto stage : kStages) {
    if (Status status = stage(call, draft); !status.ok()) return status;
  }
  draft.problem.invalid_row_mode = IsInvalidRowMode(call, draft.problem);
  return std::move(draft.problem);
}

Status ValidateCompressedMask(const Problem& problem, const uint8_t* data, int64_t row_stride,
                              int64_t key_stride) {
  if (problem.mask.full || problem.mask.source == MaskSource::kDense || data == nullptr) {
    return Status();
  }
  const auto masked = [&](const Probe& p) {
    return data[p.row * row_stride + p.key * key_stride] != 0;
  };
  const auto shown = [&](const Probe& p) {
    return "atten_mask[" + std::to_string(p.row) + ", " + std::to_string(p.key) +
           "]=" + (masked(p) ? "True" : "False");
  };
  for (const Probe& probe : kTriangleProbes) {
    if (masked(probe) == (probe.key > probe.row)) continue;
    const char* hint = "Pass torch.triu(torch.ones(2048, 2048), 1).bool().";
    for (const MaskPattern& pattern : kLookalikes) {
      if (std::all_of(std::begin(kTriangleProbes), std::end(kTriangleProbes),
                      [&](const Probe& p) { return masked(p) == pattern.masked(p.row, p.key); })) {
        hint = pattern.hint;
      }
    }
    return Broken("atten_mask",
                  "to be triu(ones(2048, 2048), 1) in sparse_mode 2, 3, 4, 6, 7 and 8",
                  {shown(probe), ShowInt("sparse_mode", problem.mask.sparse_mode)}, hint);
  }
  if (problem.mask.sparse_mode != 6) return Status();
  for (const Probe& probe : kRectangleProbes) {
    if (masked(probe) == (probe.key >= kCompressedMaskSize / 2)) continue;
    return Broken("atten_mask",
                  "in rows 2048 to 3071 to be 1024 zeros, then 1024 ones in sparse_mode 6",
                  {shown(probe)}, "The rectangle stands below triu(ones(2048, 2048), 1).");
  }
  return Status();
}

}  // namespace fusion_attention
