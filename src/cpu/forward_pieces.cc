#include "src/cpu/forward_pieces.h"

#include <algorithm>

namespace fusion_attention::cpu {

ForwardPieces::ForwardPieces(const Problem& problem, int64_t block_rows, int64_t block_bytes,
                             int64_t workers)
    : problem_(problem), block_rows_(block_rows) {
  // Blocks that share packed keys: up to 512 KiB of L2, but never so many that workers go idle.
  const Problem& p = problem;
  most_blocks_ =
      std::clamp<int64_t>((512 << 10) / std::max<int64_t>(block_bytes, 1), 1, kMaxBlocks);
  const int64_t heads = p.kv_heads;
  if (p.layout != Layout::kTND) {
    const int64_t blocks = BlocksOf(p.SequenceAt(0));
    most_blocks_ = std::clamp<int64_t>(p.batch * heads * blocks / (4 * workers), 1, most_blocks_);
    pieces_per_head_ = (blocks + most_blocks_ - 1) / most_blocks_;
    count_ = p.batch * heads * pieces_per_head_;
    return;
  }
  int64_t all_blocks = 0;
  for (int64_t s = 0; s < p.sequences(); ++s) all_blocks += BlocksOf(p.SequenceAt(s));
  most_blocks_ = std::clamp<int64_t>(all_blocks * heads / (4 * workers), 1, most_blocks_);
  for (int64_t s = 0; s < p.sequences(); ++s) {
    const int64_t blocks = BlocksOf(p.SequenceAt(s));
    for (int64_t b = 0; b < blocks; b += most_blocks_) {
      const int64_t count = std::min(most_blocks_, blocks - b);
      for (int64_t h = 0; h < heads; ++h) packed_.push_back({s, h, b, count});
    }
  }
  // Longest first: the keys that a piece walks over grow with its last row in causal masks and
  // with the sequence in all.
  std::stable_sort(packed_.begin(), packed_.end(),
                   [&](const ForwardPiece& a, const ForwardPiece& b) { return Cost(a) > Cost(b); });
  count_ = static_cast<int64_t>(packed_.size());
}

ForwardPiece ForwardPieces::At(int64_t index) const {
  const Problem& p = problem_;
  if (p.layout == Layout::kTND) return packed_[static_cast<size_t>(index)];
  // Head by head, so that its keys stay in the caches; the last rows first, they see the most keys.
  const int64_t head = index / pieces_per_head_;
  const int64_t first = (pieces_per_head_ - 1 - index % pieces_per_head_) * most_blocks_;
  const int64_t count = std::min(most_blocks_, BlocksOf(p.SequenceAt(0)) - first);
  return {head / p.kv_heads, head % p.kv_heads, first, count};
}

// All of a key/value head: those of its query heads together.
int64_t ForwardPieces::BlocksOf(const Sequence& sequence) const {
  return (sequence.q_len + block_rows_ - 1) / block_rows_ * problem_.group();
}

int64_t ForwardPieces::Cost(const ForwardPiece& piece) const {
  const Sequence s = problem_.SequenceAt(piece.sequence);
  const int64_t row =
      std::min((piece.first_block / problem_.group() + 1) * block_rows_, s.q_len) - 1;
  const RowIntervals intervals = problem_.IntervalsOf(s);
  return intervals.End(row) - intervals.Begin(row);
}

}  // namespace fusion_attention::cpu
