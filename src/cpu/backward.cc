// Backward pass: runs the columns of backward_columns.h, each on one worker from bottom to top. A
// cell adds to dQ when the columns before it have, so dQ, too, is added up in one order, and the
// bits depend neither on the number of workers nor on the cuts. No float is ever added to by two
// workers at once, and nothing of size rows x keys exists.
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "src/cpu/backward_cell.h"
#include "src/cpu/backward_columns.h"
#include "src/cpu/dq_sums.h"
#include "src/cpu/passes.h"
#include "src/cpu/sink_gradient.h"
#include "src/cpu/work.h"

namespace fusion_attention::cpu {
namespace {

// What a worker needs to run columns: the scratch of a cell, dK and dV of one column.
template <typename T, typename Operand>
struct ColumnScratch {
  ColumnScratch(Arena& arena, const Job<T>& job, const ProductTable<T, Operand>& products,
                const BackwardColumns& columns)
      : cells(arena, job, products, columns.segment_rows() / job.rows),
        dk(arena.Take<T>(columns.most_keys() * job.key_ld)),
        dv(arena.Take<T>(columns.most_keys() * job.value_ld)) {}
  CellScratch<T, Operand> cells;
  T* dk;
  T* dv;
};

// How far each column has come: its cells before passed_ are done, or do not exist.
class Progress {
 public:
  explicit Progress(int64_t columns) : passed_(static_cast<size_t>(columns)) {}
  void Pass(int64_t column, int64_t cell) {
    passed_[static_cast<size_t>(column)].store(cell + 1, std::memory_order_release);
  }
  // The column has a worker already, which waits for none that started later.
  void Await(int64_t column, int64_t cell) const {
    constexpr int kSpins = 1000;
    for (int n = 0; passed_[static_cast<size_t>(column)].load(std::memory_order_acquire) <= cell;) {
      if (++n > kSpins) std::this_thread::yield();
    }
  }

 private:
  std::vector<std::atomic<int64_t>> passed_;
};

template <typename T, typename Operand>
class BackwardPass {
 public:
  using Products = ProductTable<T, Operand>;
  using Pass = CellPass<T, Operand>;

  BackwardPass(const Job<T>& job, const Products& products, const BackwardArgs& args,
               ParallelFor& threads, int64_t workers)
      : job_(job),
        products_(products),
        args_(args),
        threads_(threads),
        workers_(workers),
        dpse_(job, args.dpse),
        columns_(job.problem, SizesOf(job), workers, UndividedBy(dpse_)),
        dq_(job, args, columns_),
        progress_(columns_.count()) {}

  void Run() {
    if (columns_.carries()) deltas_ = AllocateBuffer(Rows() * static_cast<int64_t>(sizeof(T)));
    const Pass pass(job_, products_, args_, reinterpret_cast<T*>(deltas_.get()), dpse_);
    Arena size;
    ColumnScratch<T, Operand>(size, job_, products_, columns_);
    WorkerScratch scratch(std::clamp<int64_t>(columns_.pieces(), 1, workers_), size.bytes());
    RunPieces(threads_, scratch, columns_.pieces(), [&](std::byte* own, int64_t index) {
      Arena arena(own);
      ColumnScratch<T, Operand> memory(arena, job_, products_, columns_);
      const Span piece = columns_.Piece(index);
      for (int64_t c = piece.begin; c < piece.end; ++c) RunColumn(pass, c, memory);
    });
    dpse_.Finish();
  }

 private:
  // Rows of a segment fill at most 512 KiB (five packed arrays), dK and dV of a column 2 MiB.
  static GridSizes SizesOf(const Job<T>& job) {
    constexpr auto kSize = static_cast<int64_t>(sizeof(T));
    const int64_t block_bytes = job.rows * (3 * job.key_ld + 2 * job.value_ld) * kSize;
    const int64_t key_bytes = (job.key_ld + job.value_ld) * kSize;
    const int64_t keys = (2 << 20) / std::max<int64_t>(key_bytes, 1);
    return {
        .block_rows = job.rows,
        .most_blocks = std::clamp<int64_t>((512 << 10) / std::max<int64_t>(block_bytes, 1), 1, 8),
        .tile_keys = job.tile_keys,
        .most_keys = std::max(keys / job.tile_keys, int64_t{1}) * job.tile_keys};
  }

  static Undivided UndividedBy(const PseGradient<T>& dpse) {
    if (dpse.across_batch()) return Undivided::kHead;
    return dpse.across_rows() ? Undivided::kGrid : Undivided::kColumn;
  }

  int64_t Rows() const {
    const Problem& p = job_.problem;
    return (p.layout == Layout::kTND ? 1 : p.batch) * p.q_heads * p.q_len;
  }

  // The tiles of a column, relative to its first key.
  template <typename Verb>
  void ForEachTile(const Column& column, const Verb& verb) const {
    for (int64_t key = column.keys.begin; key < column.keys.end; key += job_.tile_keys) {
      const int64_t half = column.chunk.HalfOf(key);
      if (half < column.halves.begin || half >= column.halves.end) continue;
      const int64_t first = key - column.keys.begin;
      verb(first, std::min(job_.tile_keys, column.keys.size() - first));
    }
  }

  void ClearColumn(const Column& column, T* dk, T* dv) const {
    ForEachTile(column, [&](int64_t first, int64_t keys) {
      std::fill_n(dk + first * job_.key_ld, keys * job_.key_ld, T{0});
      std::fill_n(dv + first * job_.value_ld, keys * job_.value_ld, T{0});
    });
  }

  void StoreColumn(const Column& column, const T* dk, const T* dv) const {
    const Problem& p = job_.problem;
    const Sequence s = p.SequenceAt(column.sequence);
    const RopedView<void> to_key{args_.dk, args_.dk_rope};
    ForEachTile(column, [&](int64_t first, int64_t keys) {
      const int64_t token = s.kv_begin + column.keys.begin + first;
      StoreRoped(job_, dk + first * job_.key_ld, keys, job_.scale,
                 RowsAt(to_key, s.batch, column.kv_head, token));
      job_.k.store(dv + first * job_.value_ld, job_.value_ld, keys, p.value_dim, T{1},
                   RowsAt(args_.dv, s.batch, column.kv_head, token));
    });
  }

  void RunColumn(const Pass& pass, int64_t number, ColumnScratch<T, Operand>& memory) {
    const Problem& p = job_.problem;
    const Column& column = columns_[number];
    const Sequence s = p.SequenceAt(column.sequence);
    CellScratch<T, Operand>& cells = memory.cells;
    ClearColumn(column, memory.dk, memory.dv);
    const Span segments = columns_.SegmentsOf(column);
    for (int64_t member = 0; member < p.group(); ++member) {
      for (int64_t segment = segments.end; segment-- > segments.begin;) {
        const Cell cell = CellOf(column, s, column.kv_head * p.group() + member, segment);
        const int64_t place = (member + 1) * columns_.SegmentsOf(s) - 1 - segment;
        const bool continues = cell.RunsFirst() ? !cell.first_keys : !cell.first_second;
        if (continues) progress_.Await(column.left, place);
        dq_.Load(cell, cells.dq, cells.dq_second);
        pass.Run(cell, cells, memory.dk, memory.dv);
        // Also where the second half goes on, because then its rows' place is free: whoever used it
        // for the chunk before has been waited for.
        if (column.beside >= 0) progress_.Await(column.beside, place);
        dq_.Store(cell, cells.dq, cells.dq_second);
        progress_.Pass(number, place);
      }
    }
    StoreColumn(column, memory.dk, memory.dv);
  }

  Cell CellOf(const Column& column, const Sequence& s, int64_t head, int64_t segment) const {
    const int64_t first = segment * columns_.segment_rows();
    const Span seen = columns_.KeysOf(s, job_.problem.IntervalsOf(s), segment);
    const bool starts = seen.begin >= column.keys.begin;
    const bool ends = seen.end <= std::max(column.keys.end, column.keys.begin + 1);
    // Where the second half is another column's, that one has the last word.
    const bool alone = column.halves.end == column.chunk.Halves();
    return {.sequence = s,
            .head = head,
            .rows = {first, std::min(first + columns_.segment_rows(), s.q_len)},
            .chunk = column.chunk,
            .keys = column.keys,
            .halves = column.halves,
            .first_keys = starts,
            .last_keys = ends && alone,
            .first_second = starts || column.keys.begin == column.chunk.keys.begin,
            .last_second = ends || column.keys.end == column.chunk.keys.end};
  }

  const Job<T>& job_;
  const Products& products_;
  const BackwardArgs& args_;
  ParallelFor& threads_;
  int64_t workers_;
  PseGradient<T> dpse_;
  BackwardColumns columns_;
  QuerySums<T> dq_;
  Progress progress_;
  Buffer deltas_;
};

template <typename T, typename Operand>
void Run(const Problem& problem, const BackwardArgs& args, ParallelFor& threads,
         const KernelTable<T>& kernels, const ProductTable<T, Operand>& products) {
  const Job<T> job(problem, args.inputs, kernels);
  const int64_t workers = WorkersFor(problem, threads);
  BackwardPass<T, Operand>(job, products, args, threads, workers).Run();
  if (args.dsink != nullptr) RunSinkGradient(job, args, threads, workers);
  if (problem.layout == Layout::kTND) {
    const UsedTokens used = UsedTokensOf(problem);
    ZeroTokens(args.dq, problem.q_heads, used.q, problem.q_len, problem.head_dim);
    ZeroTokens(args.dk, problem.kv_heads, used.kv, problem.kv_len, problem.head_dim);
    ZeroTokens(args.dq_rope, problem.q_heads, used.q, problem.q_len, problem.rope_dim);
    ZeroTokens(args.dk_rope, problem.kv_heads, used.kv, problem.kv_len, problem.rope_dim);
    ZeroTokens(args.dv, problem.kv_heads, used.kv, problem.kv_len, problem.value_dim);
  }
}

}  // namespace

void RunBackward(const Problem& problem, const BackwardArgs& args, ParallelFor& threads,
                 const Kernels& kernels) {
  const DefaultFloatEnvironment environment;
  kernels.For(problem.dtype, [&](const auto& table, const auto& products) {
    Run(problem, args, threads, table, products);
  });
}

}  // namespace fusion_attention::cpu
