#include "src/cpu/backward_columns.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "src/cpu/kernels/tile_types.h"

namespace fusion_attention::cpu {
namespace {

// The first of [0, count) for which `is_past` holds, as it then does for all later ones.
template <typename Predicate>
int64_t First(int64_t count, const Predicate& is_past) {
  int64_t begin = 0;
  while (begin < count) {
    const int64_t middle = (begin + count) / 2;
    is_past(middle) ? count = middle : begin = middle + 1;
  }
  return begin;
}

// The rows that see a key lie together, because both ends of the rows' intervals never decrease.
Span RowsThatSee(const Sequence& s, const RowIntervals& intervals, int64_t key) {
  const int64_t begin = First(s.q_len, [&](int64_t row) { return intervals.End(row) > key; });
  const int64_t end = First(s.q_len, [&](int64_t row) { return intervals.Begin(row) > key; });
  return {begin, std::max(begin, end)};
}

// (query, key) pairs of one query head, to within a block.
int64_t PairsOf(const Sequence& s, const RowIntervals& intervals, int64_t block_rows) {
  int64_t pairs = 0;
  for (int64_t first = 0; first < s.q_len; first += block_rows) {
    const int64_t rows = std::min(block_rows, s.q_len - first);
    pairs += rows * std::max<int64_t>(intervals.End(first + rows - 1) - intervals.Begin(first), 0);
  }
  return pairs;
}

int64_t LongestQuery(const Problem& problem) {
  if (problem.layout != Layout::kTND) return problem.q_len;
  int64_t longest = 0;
  for (const Sequence& s : problem.packed) longest = std::max(longest, s.q_len);
  return longest;
}

// How many of the workers have a grid's work to do while all work on what remains.
int64_t Sharing(int64_t pairs, int64_t remaining, int64_t workers) {
  return std::clamp<int64_t>((pairs * workers + remaining - 1) / std::max<int64_t>(remaining, 1), 1,
                             workers);
}

// How many pairs the next column of a grid is to have, after columns of so many, if so many workers
// run those of one half. Each worker runs two, which are its share together. The others wait for
// the first cell of a grid and are done when its last one starts, so the columns at both ends are
// narrow, an eighth of a share; there are no more, because every column packs its rows again.
double WidthOf(const std::vector<double>& before, int64_t workers, double share) {
  const auto number = static_cast<int64_t>(before.size());
  if (number >= 2 * workers - 1) return std::numeric_limits<double>::infinity();
  if (number >= workers) return share - before[static_cast<size_t>(number - workers)];
  const auto later = static_cast<double>(number) / static_cast<double>(workers - 1);
  return share * (0.125 + 0.75 * later);
}

}  // namespace

struct BackwardColumns::Grid {
  int64_t sequence;
  int64_t kv_head;
  int64_t pairs;
};

BackwardColumns::BackwardColumns(const Problem& problem, const GridSizes& sizes, int64_t workers,
                                 Undivided undivided)
    : problem_(problem), sizes_(sizes), segment_rows_(sizes.block_rows) {
  const std::vector<Grid> grids = GridsOf(workers, undivided);
  if (grids.empty()) return;
  int64_t remaining = 0;
  for (const Grid& grid : grids) remaining += grid.pairs;
  // Equal grids for all workers are best left whole: every further column packs its rows again.
  const bool even = grids.front().pairs == grids.back().pairs &&
                    static_cast<int64_t>(grids.size()) % workers == 0;
  const bool whole = workers == 1 || even || remaining == 0 || undivided != Undivided::kColumn;
  int64_t blocks = (LongestQuery(problem) + sizes.block_rows - 1) / sizes.block_rows;
  const Grid& largest = grids.front();
  const int64_t sharing = whole ? 1 : Sharing(largest.pairs, remaining, workers);
  if (sharing > PartsOf(largest, sharing)) {
    // Workers on one half follow each other at a distance of a segment. Smaller segments pack every
    // tile of keys more often.
    blocks = problem.group() * problem.SequenceAt(largest.sequence).q_len /
             (4 * sharing * sizes.block_rows);
  }
  segment_rows_ = std::clamp<int64_t>(blocks, 1, sizes.most_blocks) * sizes.block_rows;

  int64_t last_head = -1;
  for (const Grid& grid : grids) {
    const int64_t begin = count();
    // Of what is left: late grids are cut finer and so balance the early ones.
    Cut(grid, whole ? 1 : Sharing(grid.pairs, remaining, workers), remaining / workers);
    remaining -= grid.pairs;
    if (undivided == Undivided::kColumn) {
      for (int64_t c = begin; c < count(); ++c) pieces_.push_back({c, c + 1});
    } else if (undivided == Undivided::kHead && grid.kv_head == last_head) {
      pieces_.back().end = count();
    } else {
      pieces_.push_back({begin, count()});
    }
    last_head = grid.kv_head;
  }
  if (workers > 1 && undivided == Undivided::kColumn) Order();
}

// Longest first, but where each head's grids must run one after the other.
std::vector<BackwardColumns::Grid> BackwardColumns::GridsOf(int64_t workers,
                                                            Undivided undivided) const {
  const Problem& p = problem_;
  std::vector<Grid> grids;
  for (int64_t i = 0; i < p.sequences(); ++i) {
    const Sequence s = p.SequenceAt(i);
    const int64_t pairs =
        workers == 1 ? 0 : p.group() * PairsOf(s, p.IntervalsOf(s), sizes_.block_rows);
    for (int64_t head = 0; head < p.kv_heads; ++head) grids.push_back({i, head, pairs});
  }
  std::stable_sort(grids.begin(), grids.end(), [&](const Grid& a, const Grid& b) {
    return undivided == Undivided::kHead ? a.kv_head < b.kv_head : a.pairs > b.pairs;
  });
  return grids;
}

// Into how many parts `workers` cut the keys of a chunk before they cut them into ranges.
int64_t BackwardColumns::PartsOf(const Grid& grid, int64_t workers) const {
  if (workers == 1) return 1;
  const int64_t keys = std::min(problem_.SequenceAt(grid.sequence).kv_len, sizes_.most_keys);
  return Chunk{{0, keys}, sizes_.tile_keys}.Halves();
}

// Cuts a grid that `workers` share into columns, so that each of them gets about `share` pairs.
void BackwardColumns::Cut(const Grid& grid, int64_t workers, int64_t share) {
  const Sequence s = problem_.SequenceAt(grid.sequence);
  const RowIntervals intervals = problem_.IntervalsOf(s);
  const int64_t parts = PartsOf(grid, workers);
  const int64_t sharing = (workers + parts - 1) / parts;  // one part
  std::vector<double> widths;
  double pairs = 0;
  Chunk chunk{{0, 0}, sizes_.tile_keys};
  do {
    chunk.keys = {chunk.keys.end, std::min(chunk.keys.end + sizes_.most_keys, s.kv_len)};
    Span keys{chunk.keys.begin, chunk.keys.begin};
    do {
      // Two tiles are one of either half.
      const Span step{keys.end, std::min(keys.end + parts * sizes_.tile_keys, chunk.keys.end)};
      keys.end = step.end;
      bool reached = false;
      if (sharing > 1) {
        const Span rows = RowsThatSee(s, intervals, step.begin + step.size() / 2);
        const auto added = static_cast<double>(problem_.group() * rows.size() * step.size());
        pairs += added;
        // Another step would miss the width by more than this one does.
        reached = pairs + added / 2 >= WidthOf(widths, sharing, static_cast<double>(share * parts));
        if (reached) widths.push_back(std::exchange(pairs, 0));
      }
      if (reached || keys.end >= chunk.keys.end) {
        Append(grid, chunk, keys, parts);
        keys.begin = keys.end;
      }
    } while (keys.end < chunk.keys.end);
  } while (chunk.keys.end < s.kv_len);
}

void BackwardColumns::Append(const Grid& grid, const Chunk& chunk, Span keys, int64_t parts) {
  // As a quotient, because pairs times keys may exceed 2^63. It never increases from left to right:
  // a column that started before the one to its left could wait for ever.
  const int64_t all = std::max<int64_t>(problem_.SequenceAt(grid.sequence).kv_len, 1);
  const double rank = static_cast<double>(grid.pairs) / static_cast<double>(all) *
                      static_cast<double>(all - keys.begin);
  const int64_t last = keys.begin == 0 ? -1 : count() - 1;
  const auto append = [&](Span halves, int64_t left, int64_t beside) {
    columns_.push_back({grid.sequence, grid.kv_head, chunk, keys, halves, left, beside});
    ranks_.push_back(rank);
  };
  if (parts == 1 || chunk.Halves() == 1) {
    append({0, chunk.Halves()}, last, -1);
  } else {
    const bool starts = keys.begin == chunk.keys.begin;
    append({0, 1}, starts ? last : last - 1, -1);
    append({1, 2}, starts ? -1 : last, count() - 1);
    carries_second_ |= !starts;
  }
  most_keys_ = std::max(most_keys_, RoundUp(keys.size(), sizes_.tile_keys));
  carries_ |= columns_.back().left >= 0 || columns_.back().beside >= 0;
}

// By rank: first what most other work waits for.
void BackwardColumns::Order() {
  std::vector<size_t> order(columns_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return ranks_[a] > ranks_[b]; });
  std::vector<int64_t> place(order.size());
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<int64_t>(i);
  std::vector<Column> ordered;
  for (const size_t from : order) {
    ordered.push_back(columns_[from]);
    for (int64_t* column : {&ordered.back().left, &ordered.back().beside}) {
      if (*column >= 0) *column = place[static_cast<size_t>(*column)];
    }
  }
  columns_ = std::move(ordered);
}

Span BackwardColumns::KeysOf(const Sequence& sequence, const RowIntervals& intervals,
                             int64_t segment) const {
  const int64_t first = segment * segment_rows_;
  const int64_t last = std::min(first + segment_rows_, sequence.q_len) - 1;
  const int64_t begin = std::min(intervals.Begin(first), std::max<int64_t>(sequence.kv_len - 1, 0));
  return {begin, std::max(intervals.End(last), begin + 1)};
}

Span BackwardColumns::SegmentsOf(const Column& column) const {
  const Sequence s = problem_.SequenceAt(column.sequence);
  const RowIntervals intervals = problem_.IntervalsOf(s);
  const int64_t count = SegmentsOf(s);
  const int64_t end = std::max(column.keys.end, column.keys.begin + 1);
  return {First(count, [&](int64_t i) { return KeysOf(s, intervals, i).end > column.keys.begin; }),
          First(count, [&](int64_t i) { return KeysOf(s, intervals, i).begin >= end; })};
}

}  // namespace fusion_attention::cpu
