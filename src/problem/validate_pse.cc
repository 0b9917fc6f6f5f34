// Rules about pse, the bias of the scores: a matrix of numbers (pse_type 0 and 1) or one slope per
// head whose distances are computed (2 and 3). Fills in the problem's PseSpec.
#include <algorithm>

#include "src/problem/validate.h"

namespace fusion_attention {
namespace {

constexpr int64_t kCompressedPseRows = 1024;

// Whether row i sees exactly the keys up to i, given that Sq == Skv.
bool IsCausal(const Draft& draft) {
  const MaskSpec& mask = draft.problem.mask;
  if (mask.full) return false;
  if (mask.sparse_mode == 2 || mask.sparse_mode == 3) return true;
  // The device knows a causal band by its tokens; in dense layouts only that of mode 0.
  const bool has_tokens = mask.sparse_mode == 0 || (mask.sparse_mode == 4 && draft.packed());
  return has_tokens && mask.pre_tockens >= draft.longest_q && mask.next_tockens == 0;
}

// What a compressed pse needs: it holds the last 1024 rows of a bias that depends on i - j alone.
Status CheckCompressedPse(const Call& call, Draft& draft) {
  const Problem& problem = draft.problem;
  const int64_t distinct = draft.packed() ? problem.batch : std::min<int64_t>(problem.batch, 1);
  for (int64_t index = 0; index < distinct; ++index) {
    const Sequence sequence = problem.SequenceAt(index);
    if (sequence.q_len == sequence.kv_len) continue;
    return Broken(
        "pse", "of 1024 rows to come with Sq == Skv",
        {ShowShape("pse", *call.pse), ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
        "It holds the last 1024 rows of a square bias; pass [B, N, Sq, Skv] instead.");
  }
  if (!IsCausal(draft)) {
    return Broken("pse", "of 1024 rows to come with a causal atten_mask",
                  {problem.mask.full ? "atten_mask=None" : ShowInt("sparse_mode", call.sparse_mode),
                   ShowPre(call), ShowNext(call), ShowShape("pse", *call.pse)},
                  "Causal is sparse_mode 2, 3, or 0 (TND: or 4) with pre_tockens >= Sq and "
                  "next_tockens = 0.");
  }
  return Status();
}

// pse_type 0 and 1.
Status CheckBias(const Call& call, Draft& draft) {
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
  problem.pse.kind = PseKind::kDense;
  problem.pse.batch = shape[0];
  problem.pse.rows = shape[2];
  problem.pse.keys = shape[3];
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
        "pse is added to the scores, before scaling unless pse_type is 0.");
  }
  if (!compressed) return Status();
  problem.pse.kind = PseKind::kCompressed;
  return CheckCompressedPse(call, draft);
}

// kv_start_idx - q_start_idx of any two int64; a distance that no sequence reaches saturates.
int64_t StartOffset(const Call& call) {
  const auto is_given = [](const std::optional<Shape>& list) { return list && !list->empty(); };
  if (!is_given(call.q_start_idx) || !is_given(call.kv_start_idx)) return 0;
  const int64_t q_start = call.q_start_idx->front(), kv_start = call.kv_start_idx->front();
  int64_t offset = 0;
  if (__builtin_sub_overflow(kv_start, q_start, &offset)) {
    return kv_start < q_start ? -RowIntervals::kUnbounded : RowIntervals::kUnbounded;
  }
  return std::clamp(offset, -RowIntervals::kUnbounded, RowIntervals::kUnbounded);
}

// Modes 7 and 8, where one sequence was cut, so that its rows and keys start at different
// positions.
Status CheckSlopesOfCutSequences(const Call& call, const Problem& problem) {
  if (call.sparse_mode == 7) {
    return Broken("pse", "of slopes to come with a sparse_mode other than 7",
                  {ShowInt("sparse_mode", call.sparse_mode), ShowShape("pse", *call.pse)},
                  "Only sparse_mode 8 combines slopes with a cut sequence.");
  }
  for (const Sequence& sequence : problem.packed) {
    const int64_t missing = sequence.q_len - sequence.kv_len;
    if (sequence.batch > 0 && missing != 0) {
      return Broken("pse", "of slopes to come with Sq == Skv behind the first sequence of mode 8",
                    {ShowSq(sequence), ShowSkv(sequence), ShowIndex(sequence)},
                    "Only the first sequence of sparse_mode 8 is cut.");
    }
    if (sequence.batch == 0 && missing != problem.pse.start_offset) {
      return Broken("q_start_idx", "+ Sq to be kv_start_idx + Skv for the first sequence of mode 8",
                    {ShowSq(sequence), ShowSkv(sequence),
                     ShowInt("kv_start_idx - q_start_idx", problem.pse.start_offset)},
                    "With slopes, they say where the rows and the keys of the cut sequence start.");
    }
  }
  return Status();
}

// pse_type 2 and 3.
Status CheckSlopes(const Call& call, Draft& draft) {
  Problem& problem = draft.problem;
  const Shape& shape = call.pse->shape;
  if (shape != Shape{call.head_num} && shape != Shape{draft.given_sequences, call.head_num}) {
    return Broken("pse", "to have shape [N] or [B, N] with pse_type 2 and 3",
                  {ShowShape("pse", *call.pse), ShowInt("B", draft.given_sequences),
                   ShowInt("N", call.head_num)},
                  "It holds one slope per query head; the bias is computed from it.");
  }
  if (!draft.packed() && problem.q_len != problem.kv_len) {
    return Broken(
        "pse", "of slopes to come with Sq == Skv in layouts other than TND",
        {ShowInt("Sq", problem.q_len), ShowInt("Skv", problem.kv_len), ShowShape("pse", *call.pse)},
        "Pass the bias itself as [B, N, Sq, Skv] with pse_type 0 instead.");
  }
  problem.pse = {.kind = PseKind::kSlopes,
                 .after_scale = true,
                 .distance = call.pse_type == 2 ? PseDistance::kLinear : PseDistance::kSquareRoot,
                 .start_offset = StartOffset(call),
                 .batch = shape.size() == 1 ? 1 : shape[0],
                 .rows = 1,
                 .keys = 1};
  const bool has_cut_sequence = !problem.mask.full && call.sparse_mode >= 7;
  return has_cut_sequence ? CheckSlopesOfCutSequences(call, problem) : Status();
}

}  // namespace

Status CheckPse(const Call& call, Draft& draft) {
  if (!IsGiven(call.pse)) {
    if (call.pse_type == 1) return Status();
    return Broken("pse", "to be given with pse_type 0, 2 and 3",
                  {"pse=None", ShowInt("pse_type", call.pse_type)},
                  "Without a bias leave pse_type at 1.");
  }
  draft.problem.pse.after_scale = call.pse_type == 0;
  return TakesSlopes(call) ? CheckSlopes(call, draft) : CheckBias(call, draft);
}

}  // namespace fusion_attention
