// How the backward pass is cut into columns of keys and cells of query rows, and in which order the
// columns start. Knows the problem's geometry and the sizes of caches, no data and no kernel.
//
// Every (sequence, key/value head) is a grid: columns of keys times segments of query rows, those
// of the query heads of a group one after the other. dQ of a segment must take its columns from
// left to right and dK, dV of a column its segments from bottom to top. Upwards, because later keys
// are seen by later rows: under a causal mask or a band two columns share their rows at the bottom
// of the left one, which has them done when the right one comes to need them. Where the cuts lie
// changes no bit, so they may follow the number of workers.
#pragma once

#include <cstdint>
#include <vector>

#include "fusion_attention/problem.h"
#include "src/cpu/tile_bits.h"

namespace fusion_attention::cpu {

// What one worker must run in order, because all of it may add to the same elements of dpse:
// nothing larger than a column, a grid, or the grids of one key/value head of all sequences.
enum class Undivided : uint8_t { kColumn, kGrid, kHead };

struct GridSizes {
  int64_t block_rows;  // a segment is at most `most_blocks` blocks of so many rows
  int64_t most_blocks;
  int64_t tile_keys;  // a column is at most `most_keys` keys, in whole tiles
  int64_t most_keys;
};

struct Column {
  int64_t sequence;
  int64_t kv_head;
  Span keys;
  int64_t left;  // the number of the column before it in its grid; -1 for the first
};

class BackwardColumns {
 public:
  BackwardColumns(const Problem& problem, const GridSizes& sizes, int64_t workers,
                  Undivided undivided);

  // A piece of work is a range of columns. Pieces are to be started in ascending order; then no
  // column starts before the one to its left.
  int64_t pieces() const { return static_cast<int64_t>(pieces_.size()); }
  Span Piece(int64_t index) const { return pieces_[static_cast<size_t>(index)]; }
  const Column& operator[](int64_t index) const { return columns_[static_cast<size_t>(index)]; }
  int64_t count() const { return static_cast<int64_t>(columns_.size()); }

  int64_t segment_rows() const { return segment_rows_; }
  int64_t most_keys() const { return most_keys_; }  // of the columns there are, in whole tiles
  bool carries() const { return carries_; }         // whether a grid has several columns

  int64_t SegmentsOf(const Sequence& sequence) const {
    return (sequence.q_len + segment_rows_ - 1) / segment_rows_;
  }
  // The keys whose columns a segment belongs to: those that its rows see, or one if there are none,
  // so that somebody writes the zeros of their dQ.
  Span KeysOf(const Sequence& sequence, const RowIntervals& intervals, int64_t segment) const;
  // The segments of each query head that belong to a column.
  Span SegmentsOf(const Column& column) const;

 private:
  struct Grid;
  std::vector<Grid> GridsOf(int64_t workers, Undivided undivided) const;
  void Cut(const Grid& grid, int64_t workers, int64_t share);
  void Append(const Grid& grid, Span keys, int64_t kv_len);
  void Order();

  const Problem& problem_;
  GridSizes sizes_;
  int64_t segment_rows_;
  int64_t most_keys_ = 0;
  bool carries_ = false;
  std::vector<Column> columns_;
  std::vector<double> ranks_;  // about the pairs of a column and of those to its right
  std::vector<Span> pieces_;
};

}  // namespace fusion_attention::cpu
