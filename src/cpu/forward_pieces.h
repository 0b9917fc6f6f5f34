// How the forward pass is cut into pieces of work, and in which order they start. Rows are
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
  // Most blocks of a piece: all of them take turns at a tile of packed keys. Against 16 of them,
  // forward x 1.007 at 64 channels and x 1.028 at 256; against 128, x 1.00.
  static constexpr int64_t kMaxBlocks = 64;

  // `block_rows` and `block_bytes`: query rows of a block, and the bytes of its query and output.
  ForwardPieces(const Problem& problem, int64_t block_rows, int64_t block_bytes, int64_t workers);

  int64_t count() const { return static_cast<int64_t>(pieces_.size()); }
  int64_t most_blocks() const { return most_blocks_; }  // of the pieces there are
  // Piece 0 is to be started first.
  const ForwardPiece& operator[](int64_t index) const {
    return pieces_[static_cast<size_t>(index)];
  }

 private:
  const Problem& problem_;
  int64_t block_rows_;
  int64_t most_blocks_ = 1;
  std::vector<ForwardPiece> pieces_;

  std::vector<ForwardPiece> PiecesFor(int64_t most_blocks, int64_t workers) const;
  int64_t BlocksOf(int64_t sequence) const;
  std::vector<ForwardPiece> Cut(int64_t most_blocks) const;
  int64_t Cost(const ForwardPiece& piece) const;
  int64_t SortLongestFirst(std::vector<ForwardPiece>& pieces, int64_t workers) const;
};

}  // namespace fusion_attention::cpu
