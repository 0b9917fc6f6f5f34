#include "src/cpu/forward_pieces.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace fusion_attention::cpu {

ForwardPieces::ForwardPieces(const Problem& problem, int64_t block_rows, int64_t block_bytes,
                             int64_t workers)
    : problem_(problem), block_rows_(block_rows) {
  // A block's query and output come from L2 or L3 for each tile of keys: 24 KiB at 64 channels, for
  // 30,000 cycles of work. So they need not stay in L2, but they are each worker's own memory.
  constexpr int64_t kMaxBytes = 2 << 20;
  const int64_t most_blocks =
      std::clamp<int64_t>(kMaxBytes / std::max<int64_t>(block_bytes, 1), 1, kMaxBlocks);
  pieces_ = PiecesFor(most_blocks, workers);
  for (const ForwardPiece& piece : pieces_) most_blocks_ = std::max(most_blocks_, piece.blocks);
}

std::vector<ForwardPiece> ForwardPieces::PiecesFor(int64_t most_blocks, int64_t workers) const {
  std::vector<ForwardPiece> pieces = Cut(most_blocks);
  if (workers == 1) return pieces;
  int64_t best = SortLongestFirst(pieces, workers);
  // Few pieces seldom divide evenly among the workers, and smaller ones pack keys more often: the
  // size that is done first.
  constexpr int64_t kManyForEach = 32;
  if (static_cast<int64_t>(pieces.size()) > kManyForEach * workers) return pieces;
  int64_t longest = 1;
  for (int64_t s = 0; s < problem_.sequences(); ++s) longest = std::max(longest, BlocksOf(s));
  for (int64_t blocks = std::min(most_blocks, longest); blocks > 1;) {
    // A size between this one and the next would cut the longest sequence into as many pieces.
    const int64_t count = (longest + blocks - 1) / blocks + 1;
    blocks = std::min((longest + count - 1) / count, blocks - 1);
    std::vector<ForwardPiece> smaller = Cut(blocks);
    const int64_t end = SortLongestFirst(smaller, workers);
    if (end >= best) continue;
    best = end;
    pieces = std::move(smaller);
  }
  return pieces;
}

// Blocks of rows that share one key/value head.
int64_t ForwardPieces::BlocksOf(int64_t sequence) const {
  const int64_t rows = problem_.SequenceAt(sequence).q_len;
  return (rows + block_rows_ - 1) / block_rows_ * problem_.group();
}

// Head by head, so that those that run one after the other read the same keys.
std::vector<ForwardPiece> ForwardPieces::Cut(int64_t most_blocks) const {
  const Problem& p = problem_;
  std::vector<ForwardPiece> pieces;
  pieces.reserve(static_cast<size_t>(p.sequences() * p.kv_heads));
  for (int64_t s = 0; s < p.sequences(); ++s) {
    const int64_t blocks = BlocksOf(s);
    const int64_t count = (blocks + most_blocks - 1) / most_blocks;
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = blocks * i / count;
        pieces.push_back({s, head, first, blocks * (i + 1) / count - first});
      }
    }
  }
  return pieces;
}

// In keys that a block walks over.
int64_t ForwardPieces::Cost(const ForwardPiece& piece) const {
  const Sequence s = problem_.SequenceAt(piece.sequence);
  const RowIntervals intervals = problem_.IntervalsOf(s);
  const auto keys = [&](int64_t first, int64_t last) {
    const int64_t end = std::min((last / problem_.group() + 1) * block_rows_, s.q_len);
    return intervals.End(end - 1) - intervals.Begin(first / problem_.group() * block_rows_);
  };
  const int64_t last = piece.first_block + piece.blocks - 1;
  // Keys are packed in half the time that a block takes for them.
  int64_t cost = keys(piece.first_block, last) / 2;
  for (int64_t b = piece.first_block; b <= last; ++b) cost += keys(b, b);
  return cost;
}

// Returns when the last worker is done, if each takes the next piece as soon as it can.
int64_t ForwardPieces::SortLongestFirst(std::vector<ForwardPiece>& pieces, int64_t workers) const {
  std::vector<std::pair<int64_t, ForwardPiece>> costs;
  costs.reserve(pieces.size());
  for (const ForwardPiece& piece : pieces) costs.emplace_back(Cost(piece), piece);
  std::stable_sort(costs.begin(), costs.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> free;
  for (int64_t w = 0; w < workers; ++w) free.push(0);
  int64_t end = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    pieces[i] = costs[i].second;
    const int64_t done = free.top() + costs[i].first;
    free.pop();
    free.push(done);
    end = std::max(end, done);
  }
  return end;
}

}  // namespace fusion_attention::cpu
