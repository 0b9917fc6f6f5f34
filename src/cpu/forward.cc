// Forward pass: FlashAttention's tiling (Dao et al., 2022, algorithm 1; online softmax after
// Milakov and Gimelshein, 2018). A piece of work (forward_pieces.h) is a few blocks of query rows
// that share one key/value head; it walks over the key tiles that any of its rows sees.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "src/cpu/forward_pieces.h"
#include "src/cpu/key_tile.h"
#include "src/cpu/passes.h"
#include "src/cpu/ropes.h"
#include "src/cpu/scratch.h"
#include "src/cpu/tile_inputs.h"
#include "src/cpu/work.h"

namespace fusion_attention::cpu {
namespace {

// One block of query rows and the state of its online softmax.
template <typename T, typename Operand>
struct RowBlock {
  int64_t head;
  Span rows;
  Operand* qt;  // query, transposed, times the sign of scale
  T* out;       // [value_dim][block rows]
  T* m;
  T* l;
};

template <typename T, typename Operand>
class ForwardPass {
 public:
  using Products = ProductTable<T, Operand>;
  using Block = RowBlock<T, Operand>;

  ForwardPass(const Job<T>& job, const Products& products, const ForwardArgs& args, int64_t workers)
      : job_(job),
        products_(products),
        args_(args),
        pieces_(job.problem, job.rows,
                job.rows * (job.key_ld + job.value_ld) * static_cast<int64_t>(sizeof(T)), workers) {
  }

  int64_t pieces() const { return pieces_.count(); }
  int64_t ScratchBytes() const {
    Arena arena;
    Scratch scratch(arena, job_, products_, pieces_.most_blocks());
    return arena.bytes();
  }

  void Run(std::byte* memory, int64_t index) const {
    Arena arena(memory);
    Scratch scratch(arena, job_, products_, pieces_.most_blocks());
    RunPiece(pieces_[index], scratch);
  }

 private:
  struct Scratch {
    Scratch(Arena& arena, const Job<T>& job, const Products& products, int64_t blocks)
        : tile(arena, job), keys(arena, job, products) {
      scores = arena.Take<T>((job.tile_keys + kKeyPadding) * job.rows);
      query = arena.Take<Operand>(job.rows * job.key_ld);
      rows = arena.Take<T>(job.rows * job.value_ld);
      tile_max = arena.Take<T>(job.rows);
      alpha = arena.Take<T>(job.rows);
      qt = arena.Take<Operand>(blocks * job.rows * job.key_ld);
      out = arena.Take<T>(blocks * job.rows * job.value_ld);
      m = arena.Take<T>(blocks * job.rows);
      l = arena.Take<T>(blocks * job.rows);
    }
    TileScratch<T> tile;
    KeyTile<T, Operand> keys;
    Operand *query, *qt;
    T *scores, *rows, *tile_max, *alpha, *out, *m, *l;
  };

  Block StartBlock(const Sequence& s, const ForwardPiece& piece, int64_t index,
                   Scratch& scratch) const {
    const Problem& p = job_.problem;
    const int64_t number = piece.first_block + index;
    const int64_t first = number / p.group() * job_.rows;
    Block block;
    block.head = piece.kv_head * p.group() + number % p.group();
    block.rows = {first, std::min(first + job_.rows, s.q_len)};
    block.qt = scratch.qt + index * job_.rows * job_.key_ld;
    block.out = scratch.out + index * job_.rows * job_.value_ld;
    block.m = scratch.m + index * job_.rows;
    block.l = scratch.l + index * job_.rows;
    PackRoped(job_, products_.pack,
              RowsAt(Query(args_.inputs), s.batch, block.head, s.q_begin + first),
              block.rows.size(), scratch.query);
    products_.transpose(scratch.query, job_.key_ld, block.rows.size(), p.score_dim(), job_.sign,
                        block.qt);
    // A sink is a key that every row has seen already, and that has no value.
    const T sink = p.has_sink ? static_cast<T>(args_.inputs.sink[block.head])
                              : -std::numeric_limits<T>::infinity();
    std::fill_n(block.m, job_.rows, sink);
    std::fill_n(block.l, job_.rows, sink == -std::numeric_limits<T>::infinity() ? T{0} : T{1});
    std::fill_n(block.out, job_.rows * job_.value_ld, T{0});
    return block;
  }

  void RunPiece(const ForwardPiece& piece, Scratch& scratch) const {
    const Problem& p = job_.problem;
    const Sequence s = p.SequenceAt(piece.sequence);
    const RowIntervals intervals = p.IntervalsOf(s);
    Block blocks[ForwardPieces::kMaxBlocks];
    const int64_t count = piece.blocks;
    for (int64_t i = 0; i < count; ++i) blocks[i] = StartBlock(s, piece, i, scratch);
    if (job_.HasScores(s)) {
      const Span seen{intervals.Begin(blocks[0].rows.begin),
                      intervals.End(blocks[count - 1].rows.end - 1)};
      for (int64_t first = seen.begin / job_.tile_keys * job_.tile_keys; first < seen.end;
           first += job_.tile_keys) {
        const Span keys{first, std::min(first + job_.tile_keys, s.kv_len)};
        bool loaded = false;
        for (int64_t i = 0; i < count; ++i) {
          Block& block = blocks[i];
          const VisibleTile tile = job_.mask.Look(s, intervals, block.head, block.rows, keys,
                                                  job_.rows, scratch.tile.visible);
          if (tile.keys.size() == 0) continue;
          if (!loaded) scratch.keys.LoadForward(s, piece.kv_head, keys);
          loaded = true;
          Step(s, intervals, tile, block, scratch);
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) Finish(s, blocks[i], scratch);
  }

  void Step(const Sequence& s, const RowIntervals& intervals, const VisibleTile& tile, Block& block,
            Scratch& scratch) const {
    const Problem& p = job_.problem;
    const KernelTable<T>& k = job_.k;
    const int64_t keys = tile.keys.size();
    products_.scores(block.qt, scratch.keys.KeyRows(tile.keys.begin), job_.key_ld, tile.reach,
                     p.score_dim(), scratch.scores, scratch.tile_max);
    if (p.pse.kind != PseKind::kNone) {
      AddBias(job_, s, intervals, block.head, block.rows, tile.keys, scratch.tile, scratch.scores,
              scratch.tile_max);
    }
    if (tile.partial) k.mask(scratch.scores, scratch.tile.visible, keys, scratch.tile_max);
    const bool rescale = k.online_softmax(scratch.scores, keys, block.rows.size(), job_.magnitude,
                                          scratch.tile_max, block.m, block.l, scratch.alpha);
    if (p.dropout != DropoutKind::kNone) {
      ReadKeep(job_, s, block.head, block.rows, tile.keys, scratch.tile);
      k.drop(scratch.scores, scratch.tile.keep, keys);
    }
    const T* alpha = rescale ? scratch.alpha : nullptr;
    const Operand* weights = products_.weights(scratch.scores, keys);
    const Operand* value = scratch.keys.ValueSummands(tile.keys.begin);
    if (tile.partial && !scratch.keys.finite_values()) {
      products_.accumulate_visible(weights, value, job_.value_ld, keys, p.value_dim,
                                   scratch.tile.visible, alpha, block.out);
    } else {
      products_.accumulate(weights, value, job_.value_ld, tile.reach, p.value_dim, alpha,
                           block.out);
    }
  }

  void Finish(const Sequence& s, Block& block, Scratch& scratch) const {
    const Problem& p = job_.problem;
    const bool empty = !job_.HasScores(s);
    T* factor = scratch.alpha;
    for (int64_t r = 0; r < block.rows.size(); ++r) {
      const T l = block.l[r];
      float max = static_cast<float>(block.m[r]);
      float sum = static_cast<float>(l);
      if constexpr (std::is_same_v<T, double>) {
        // Both statistics are float32. Where that rounds the maximum, the sum is taken relative to
        // the rounded one, so that the pair still encodes the float64 normaliser.
        sum = static_cast<float>(l * std::exp(block.m[r] - static_cast<T>(max)));
      }
      if (empty) {
        max = sum = 0;
      } else if (l == 0) {
        max = -FLT_MAX;
        sum = p.MaskedRowSum(s);
      } else if (std::isnan(l)) {
        max = sum = std::numeric_limits<float>::quiet_NaN();
      } else if (std::isinf(max)) {
        sum = static_cast<float>(l);
      }
      factor[r] = l == 0 ? T{0} : job_.keep_factor / l;
      if (l == 0) ClearRow(block, r);
      const int64_t at = p.StatisticsIndex(s, block.head, block.rows.begin + r);
      std::fill_n(args_.softmax_max + at, kStatisticsCopies, max);
      std::fill_n(args_.softmax_sum + at, kStatisticsCopies, sum);
    }
    job_.k.transpose_back(block.out, block.rows.size(), p.value_dim, factor, scratch.rows,
                          job_.value_ld);
    job_.k.store(scratch.rows, job_.value_ld, block.rows.size(), p.value_dim, T{1},
                 RowsAt(args_.out, s.batch, block.head, s.q_begin + block.rows.begin));
  }

  // A row without any weight is 0 also where a value that it sees is NaN.
  void ClearRow(Block& block, int64_t row) const {
    for (int64_t c = 0; c < job_.problem.value_dim; ++c) block.out[c * job_.rows + row] = T{0};
  }

  const Job<T>& job_;
  const Products& products_;
  const ForwardArgs& args_;
  ForwardPieces pieces_;
};

template <typename T, typename Operand>
void Run(const Problem& problem, const ForwardArgs& args, ParallelFor& threads,
         const KernelTable<T>& kernels, const ProductTable<T, Operand>& products) {
  if (problem.sequences() > 0 && problem.q_heads > 0) {
    const Job<T> job(problem, args.inputs, kernels);
    const int64_t workers = WorkersFor(problem, threads);
    const ForwardPass<T, Operand> pass(job, products, args, workers);
    WorkerScratch scratch(std::clamp<int64_t>(pass.pieces(), 1, workers), pass.ScratchBytes());
    RunPieces(threads, scratch, pass.pieces(),
              [&](std::byte* own, int64_t piece) { pass.Run(own, piece); });
  }
  if (problem.layout == Layout::kTND) {
    // Tokens past the last sequence belong to nobody.
    const int64_t used = UsedTokensOf(problem).q;
    ZeroTokens(args.out, problem.q_heads, used, problem.q_len, problem.value_dim);
    const int64_t begin = used * problem.q_heads * kStatisticsCopies;
    const int64_t end = problem.q_len * problem.q_heads * kStatisticsCopies;
    std::fill(args.softmax_max + begin, args.softmax_max + end, 0.0f);
    std::fill(args.softmax_sum + begin, args.softmax_sum + end, 0.0f);
  }
}

}  // namespace

void RunForward(const Problem& problem, const ForwardArgs& args, ParallelFor& threads,
                const Kernels& kernels) {
  const DefaultFloatEnvironment environment;
  kernels.For(problem.dtype, [&](const auto& table, const auto& products) {
    Run(problem, args, threads, table, products);
  });
}

}  // namespace fusion_attention::cpu
