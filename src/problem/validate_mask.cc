// Rules about atten_mask and what gives it a meaning: sparse_mode, pre_tockens, next_tockens,
// prefix. Without an atten_mask all of these are ignored. Fills in the problem's MaskSpec.
#include <algorithm>

#include "src/problem/validate.h"

namespace fusion_attention {
namespace {

constexpr int64_t kMaxPrefixBatch = 32;
constexpr int64_t kCompressedSize = 2048;
constexpr int64_t kCompressedPrefixRows = 3072;

bool ReadsWholeMask(int64_t mode) { return mode == 0 || mode == 1 || mode == 5; }

Status CheckMaskShape(const Call& call, Draft& draft) {
  const TensorSpec& mask = *call.atten_mask;
  const Shape& shape = mask.shape;
  MaskSpec& spec = draft.problem.mask;
  const auto mode = [&] { return ShowInt("sparse_mode", call.sparse_mode); };
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
    if (rows == kCompressedPrefixRows && keys == kCompressedSize) return Status();
    return Broken(
        "atten_mask", "to end with [3072, 2048] in sparse_mode 6", {ShowShape("atten_mask", mask)},
        "It is the compressed form: triu(ones(2048, 2048), 1) above 1024 rows of 1024 zeros and "
        "1024 ones.");
  }
  if (!ReadsWholeMask(call.sparse_mode)) {
    if (rows == kCompressedSize && keys == kCompressedSize) return Status();
    return Broken(
        "atten_mask", "to end with [2048, 2048] in sparse_mode 2, 3, 4, 7 and 8",
        {ShowShape("atten_mask", mask), mode()},
        "Pass torch.triu(torch.ones(2048, 2048), 1).bool(), or a full mask with sparse_mode 1.");
  }
  if (rows != draft.longest_q || keys != draft.longest_kv) {
    if (!draft.packed()) {
      return Broken(
          "atten_mask", "to end with [Sq, Skv] in sparse_mode 0, 1 and 5",
          {ShowShape("atten_mask", mask), ShowInt("Sq", draft.longest_q),
           ShowInt("Skv", draft.longest_kv), mode()},
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
    return Broken("actual_seq_kvlen", "to give Skv >= Sq in layout TND, sparse_mode 3 and 7",
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

}  // namespace

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

}  // namespace fusion_attention
