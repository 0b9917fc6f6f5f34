// How the forward pass is cut into pieces of work, and in which order they are started. Rows are
// independent of each other, so no choice made here changes a bit. Knows the problem's geometry, no
// data and no kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "fusion_attention/problem.h"

namespace fusion_attention::cpu {

// Some blocks of query rows that share one key/value head, and so every tile of packed keys.
struct ForwardPiece {
  int64_t sequence;
  int64_t kv_head;
  int64_t first_block;  // blocks are numbered row block first, then query head of the group
  int64_t blocks;
};

class ForwardPieces {
 public:
  // Most blocks of a piece: more would save little packing and cost L2.
  static constexpr int64_t kMaxBlocks = 16;

  // `block_rows` and `block_bytes`: query rows of a block, and the bytes of its query and output.
  ForwardPieces(const Problem& problem, int64_t block_rows, int64_t block_bytes, int64_t workers);

  int64_t count() const { return count_; }
  // Most blocks of a piece of this call.
  int64_t most_blocks() const { return most_blocks_; }
  // Piece 0 is to be started first.
  ForwardPiece At(int64_t index) const;

 private:
  int64_t BlocksOf(const Sequence& sequence) const;
  int64_t Cost(const ForwardPiece& piece) const;

  const Problem& problem_;
  int64_t block_rows_;
  int64_t most_blocks_ = 1;
  int64_t pieces_per_head_ = 0;  // dense layouts
  int64_t count_ = 0;
  std::vector<ForwardPiece> packed_;  // TND
};

}  // namespace fusion_attention::cpu
