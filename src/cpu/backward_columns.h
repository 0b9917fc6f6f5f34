// How the backward pass is cut into columns of keys and cells of query rows, and in which order the
// columns start. Knows the problem's geometry and the sizes of caches, no data and no kernel.
//
// Every (sequence, key/value head) is a grid: columns of keys times segments of query rows, those
// of the query heads of a group one after the other. dK, dV of a column must take its segments from
// bottom to top. Upwards, because later keys are seen by later rows: under a causal mask or a band
// two columns share their rows at the bottom of the left one, which has them done when the right
// one comes to need them.
//
// dQ of a segment is a sum over keys. These fall into chunks, and the tiles of a chunk into two
// halves. dQ takes the chunks from left to right; of each first the tiles of the first half, from
// left to right, one after the other, then the sum of those of the second half, which starts at
// zero. So two workers share a head, and the one with the second half needs the other only at the
// end of a segment. Chunks and halves depend on the number of keys alone; where they are cut into
// columns changes no bit and may follow the number of workers.
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
  int64_t tile_keys;  // a chunk is at most `most_keys` keys, in whole tiles
  int64_t most_keys;
};

struct Chunk {
  Span keys;
  int64_t tile_keys;

  // One where a second sum would cost more than a per cent.
  int64_t Halves() const { return keys.size() > 3 * tile_keys ? 2 : 1; }
  // Tiles go to the halves as 0 1 1 0 0 1 1 0...: even also where fewer rows see the later keys.
  int64_t HalfOf(int64_t key) const {
    return Halves() == 1 ? 0 : ((key - keys.begin) / tile_keys + 1) / 2 % 2;
  }
};

// The tiles of `keys` that lie in `halves` of the chunk.
struct Column {
  int64_t sequence;
  int64_t kv_head;
  Chunk chunk;
  Span keys;
  Span halves;
  int64_t left;    // the column whose sums of dQ this one continues, or -1
  int64_t beside;  // for the second half alone: the first half of the same keys, else -1
};

class BackwardColumns {
 public:
  BackwardColumns(const Problem& problem, const GridSizes& sizes, int64_t workers,
                  Undivided undivided);

  // A piece of work is a range of columns. Pieces are to be started in ascending order; then no
  // column starts before those that it waits for.
  int64_t pieces() const { return static_cast<int64_t>(pieces_.size()); }
  Span Piece(int64_t index) const { return pieces_[static_cast<size_t>(index)]; }
  const Column& operator[](int64_t index) const { return columns_[static_cast<size_t>(index)]; }
  int64_t count() const { return static_cast<int64_t>(columns_.size()); }

  int64_t segment_rows() const { return segment_rows_; }
  int64_t most_keys() const { return most_keys_; }  // of the columns there are, in whole tiles
  bool carries() const { return carries_; }         // whether a grid has several columns
  bool carries_second() const { return carries_second_; }  // whether a chunk's second half has

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
  int64_t PartsOf(const Grid& grid, int64_t workers) const;
  void Cut(const Grid& grid, int64_t workers, int64_t share);
  void Append(const Grid& grid, const Chunk& chunk, Span keys, int64_t parts);
  void Order();

  const Problem& problem_;
  GridSizes sizes_;
  int64_t segment_rows_;
  int64_t most_keys_ = 0;
  bool carries_ = false;
  bool carries_second_ = false;
  std::vector<Column> columns_;
  std::vector<double> ranks_;  // about the pairs of a column and of those to its right
  std::vector<Span> pieces_;
};

}  // namespace fusion_attention::cpu
