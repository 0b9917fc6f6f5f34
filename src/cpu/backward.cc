// Backward pass: which cells there are and in which order they run. Every (sequence, key/value
// head) is a grid of cells, columns of keys times segments of query rows. dQ of a segment must take
// its columns in ascending order and dK, dV of a column its segments; every schedule that respects
// this gives the same bits, so the schedule may follow the number of threads:
//   by head   each worker takes whole grids, column by column;
//   wavefront with few heads, the cells of one anti-diagonal of all grids run at once, then the
//   next.
// No float is ever added by two workers, and nothing of size rows x keys exists.
#include <algorithm>
#include <vector>

#include "src/cpu/backward_cell.h"
#include "src/cpu/passes.h"
#include "src/cpu/sink_gradient.h"
#include "src/cpu/work.h"

namespace fusion_attention::cpu {
namespace {

// How grids are cut. A column's dK and dV (`column_keys` rows each) and a segment's rows are a
// worker's working set.
struct Cut {
  int64_t column_keys;
  int64_t segment_blocks;
};

// What a worker needs to run whole grids: the scratch of a cell, dK and dV of one column.
template <typename T, typename Operand>
struct GridScratch {
  GridScratch(Arena& arena, const Job<T>& job, const ProductTable<T, Operand>& products,
              const Cut& cut)
      : cells(arena, job, products, cut.segment_blocks),
        dk(arena.Take<T>(cut.column_keys * job.key_ld)),
        dv(arena.Take<T>(cut.column_keys * job.value_ld)) {}
  CellScratch<T, Operand> cells;
  T* dk;
  T* dv;
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
        dpse_(job, args.dpse) {
    for (int64_t s = 0; s < job.problem.sequences(); ++s) {
      const Sequence sequence = job.problem.SequenceAt(s);
      max_kv_ = std::max(max_kv_, sequence.kv_len);
      max_q_ = std::max(max_q_, sequence.q_len);
      if (job.problem.layout != Layout::kTND) break;
    }
    grids_ = dpse_.across_batch() ? job.problem.kv_heads
                                  : job.problem.sequences() * job.problem.kv_heads;
    const bool must_stay_whole = dpse_.across_batch() || dpse_.across_rows();
    const bool even = job.problem.layout != Layout::kTND && grids_ % workers == 0;
    by_head_ = workers == 1 || must_stay_whole || even || grids_ >= 8 * workers;
    cut_ = ChooseCut();
  }

  void Run() {
    AllocateCarry();
    by_head_ ? RunByHead() : RunWavefront();
    dpse_.Finish();
  }

 private:
  int64_t KeyRowBytes() const {
    return (job_.key_ld + job_.value_ld) * static_cast<int64_t>(sizeof(T));
  }

  Cut ChooseCut() const {
    // Rows of a segment fill at most 512 KiB (five packed arrays), dK and dV of a column 2 MiB.
    const int64_t block_bytes =
        job_.rows * (3 * job_.key_ld + 2 * job_.value_ld) * static_cast<int64_t>(sizeof(T));
    Cut cut;
    const int64_t most_blocks = std::min<int64_t>((max_q_ + job_.rows - 1) / job_.rows, 8);
    cut.segment_blocks = std::clamp<int64_t>((512 << 10) / std::max<int64_t>(block_bytes, 1), 1,
                                             std::max<int64_t>(most_blocks, 1));
    cut.column_keys = (2 << 20) / std::max<int64_t>(KeyRowBytes(), 1);
    if (!by_head_) {
      // Enough cells on an anti-diagonal that all workers find one, and columns small enough that
      // one of each grid fits the memory even with almost 8 grids a worker.
      const int64_t cells_per_side = 8 * ((workers_ + grids_ - 1) / grids_);
      cut.column_keys = std::min(cut.column_keys / 2, max_kv_ / cells_per_side);
      cut.column_keys = std::max<int64_t>(cut.column_keys, 128);
      cut.segment_blocks =
          std::clamp<int64_t>(max_q_ / job_.rows / cells_per_side, 1, cut.segment_blocks);
    }
    cut.column_keys = std::max(cut.column_keys, job_.tile_keys) / job_.tile_keys * job_.tile_keys;
    cut.column_keys =
        std::min(cut.column_keys, RoundUp(std::max<int64_t>(max_kv_, 1), job_.tile_keys));
    return cut;
  }

  // dQ between columns: in the output itself where that has the arithmetic type, else in a private
  // copy.
  void AllocateCarry() {
    carry_ = {args_.dq, args_.dq_rope};
    if (SizeOf(args_.dq.dtype) == static_cast<int64_t>(sizeof(T)) || max_kv_ <= cut_.column_keys) {
      return;
    }
    const Problem& p = job_.problem;
    const bool packed = p.layout == Layout::kTND;
    const int64_t head = p.q_len * p.score_dim();
    carry_memory_ =
        AllocateBuffer((packed ? 1 : p.batch) * p.q_heads * head * static_cast<int64_t>(sizeof(T)));
    T* own = reinterpret_cast<T*>(carry_memory_.get());
    T* rope = p.rope_dim > 0 ? own + p.head_dim : nullptr;
    const Strides strides{packed ? 0 : p.q_heads * head, head, p.score_dim(), 1};
    carry_ = {{own, DType::kFloat32, strides}, {rope, DType::kFloat32, strides}};
  }

  int64_t ColumnsOf(const Sequence& s) const {
    return std::max<int64_t>((s.kv_len + cut_.column_keys - 1) / cut_.column_keys, 1);
  }
  int64_t SegmentRows() const { return cut_.segment_blocks * job_.rows; }
  int64_t SegmentsOf(const Sequence& s) const {
    return std::max<int64_t>((s.q_len + SegmentRows() - 1) / SegmentRows(), 1);
  }
  // The query heads of a group stand one after the other.
  int64_t GridHeight(const Sequence& s) const { return job_.problem.group() * SegmentsOf(s); }

  Cell CellAt(const Sequence& s, int64_t kv_head, int64_t column, int64_t segment) const {
    const int64_t begin = segment % SegmentsOf(s) * SegmentRows();
    const int64_t key = column * cut_.column_keys;
    return {.sequence = s,
            .head = kv_head * job_.problem.group() + segment / SegmentsOf(s),
            .rows = {begin, std::min(begin + SegmentRows(), s.q_len)},
            .keys = {key, std::min(key + cut_.column_keys, s.kv_len)},
            .first_keys = column == 0,
            .last_keys = column == ColumnsOf(s) - 1};
  }

  void ClearColumn(T* dk, T* dv) const {
    std::fill_n(dk, cut_.column_keys * job_.key_ld, T{0});
    std::fill_n(dv, cut_.column_keys * job_.value_ld, T{0});
  }

  void StoreColumn(const Sequence& s, int64_t kv_head, Span keys, const T* dk, const T* dv) const {
    const Problem& p = job_.problem;
    const int64_t token = s.kv_begin + keys.begin;
    const RopedView<void> to_key{args_.dk, args_.dk_rope};
    StoreRoped(job_, dk, keys.size(), job_.scale, RowsAt(to_key, s.batch, kv_head, token));
    job_.k.store(dv, job_.value_ld, keys.size(), p.value_dim, T{1},
                 RowsAt(args_.dv, s.batch, kv_head, token));
  }

  void RunByHead() {
    const Pass pass(job_, products_, args_, carry_, dpse_);
    Arena size;
    GridScratch<T, Operand>(size, job_, products_, cut_);
    WorkerScratch scratch(std::min(workers_, std::max<int64_t>(grids_, 1)), size.bytes());
    const int64_t heads = job_.problem.kv_heads;
    const std::vector<int64_t> order = LongestFirst();
    RunPieces(threads_, scratch, grids_, [&](std::byte* own, int64_t piece) {
      Arena arena(own);
      GridScratch<T, Operand> memory(arena, job_, products_, cut_);
      const int64_t grid = order.empty() ? piece : order[static_cast<size_t>(piece)];
      if (!dpse_.across_batch()) {
        RunGrid(pass, job_.problem.SequenceAt(grid / heads), grid % heads, memory);
        return;
      }
      for (int64_t s = 0; s < job_.problem.sequences(); ++s) {
        RunGrid(pass, job_.problem.SequenceAt(s), grid, memory);
      }
    });
  }

  // The grids of TND differ; empty for dense layouts, where they are alike.
  std::vector<int64_t> LongestFirst() const {
    std::vector<int64_t> order;
    if (job_.problem.layout != Layout::kTND || dpse_.across_batch()) return order;
    for (int64_t g = 0; g < grids_; ++g) order.push_back(g);
    const auto cost = [&](int64_t g) {
      const Sequence s = job_.problem.SequenceAt(g / job_.problem.kv_heads);
      return s.q_len * s.kv_len;
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    return order;
  }

  void RunGrid(const Pass& pass, const Sequence& s, int64_t kv_head,
               GridScratch<T, Operand>& memory) const {
    for (int64_t column = 0; column < ColumnsOf(s); ++column) {
      ClearColumn(memory.dk, memory.dv);
      for (int64_t segment = 0; segment < GridHeight(s); ++segment) {
        pass.Run(CellAt(s, kv_head, column, segment), memory.cells, memory.dk, memory.dv);
      }
      StoreColumn(s, kv_head, CellAt(s, kv_head, column, 0).keys, memory.dk, memory.dv);
    }
  }

  // One cell of a wavefront and the column that it adds to.
  struct Placed {
    int64_t sequence;
    int64_t kv_head;
    int64_t column;
    int64_t segment;
    int64_t slot;  // of the column memory
  };

  void RunWavefront() {
    const Pass pass(job_, products_, args_, carry_, dpse_);
    const Problem& p = job_.problem;
    int64_t columns = 0;
    int64_t height = 0;
    for (int64_t s = 0; s < p.sequences(); ++s) {
      columns = std::max(columns, ColumnsOf(p.SequenceAt(s)));
      height = std::max(height, GridHeight(p.SequenceAt(s)));
    }
    Arena size;
    CellScratch<T, Operand>(size, job_, products_, cut_.segment_blocks);
    WorkerScratch scratch(workers_, size.bytes());
    // As many columns of every grid at a time as fit 8 MiB a worker.
    const int64_t column_bytes = cut_.column_keys * KeyRowBytes();
    const int64_t live = std::clamp<int64_t>(
        (int64_t{8} << 20) * workers_ / std::max<int64_t>(grids_ * column_bytes, 1), 1, columns);
    const Buffer memory = AllocateBuffer(grids_ * live * column_bytes);

    std::vector<Placed> front;
    for (int64_t first = 0; first < columns; first += live) {
      for (int64_t level = 0; level < live + height - 1; ++level) {
        front.clear();
        for (int64_t grid = 0; grid < grids_; ++grid) {
          const Sequence s = p.SequenceAt(grid / p.kv_heads);
          for (int64_t c = 0; c < live; ++c) {
            const int64_t segment = level - c;
            if (segment < 0 || segment >= GridHeight(s) || first + c >= ColumnsOf(s)) continue;
            front.push_back(
                {grid / p.kv_heads, grid % p.kv_heads, first + c, segment, grid * live + c});
          }
        }
        RunPieces(threads_, scratch, static_cast<int64_t>(front.size()),
                  [&](std::byte* own, int64_t piece) {
                    Arena arena(own);
                    CellScratch<T, Operand> cells(arena, job_, products_, cut_.segment_blocks);
                    const Placed& at = front[static_cast<size_t>(piece)];
                    T* dk = reinterpret_cast<T*>(memory.get() + at.slot * column_bytes);
                    T* dv = dk + cut_.column_keys * job_.key_ld;
                    const Sequence s = p.SequenceAt(at.sequence);
                    const Cell cell = CellAt(s, at.kv_head, at.column, at.segment);
                    if (at.segment == 0) ClearColumn(dk, dv);
                    pass.Run(cell, cells, dk, dv);
                    if (at.segment == GridHeight(s) - 1)
                      StoreColumn(s, at.kv_head, cell.keys, dk, dv);
                  });
      }
    }
  }

  const Job<T>& job_;
  const Products& products_;
  const BackwardArgs& args_;
  ParallelFor& threads_;
  int64_t workers_;
  PseGradient<T> dpse_;
  int64_t max_kv_ = 0;
  int64_t max_q_ = 0;
  int64_t grids_ = 0;
  bool by_head_ = true;
  Cut cut_{};
  RopedView<void> carry_;
  Buffer carry_memory_;
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
