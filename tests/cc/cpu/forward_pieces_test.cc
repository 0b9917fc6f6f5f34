// The pieces of the forward pass, for many geometries and numbers of workers: every block of query
// rows is in one piece, and no piece is larger than what its scratch is made for.
#include "src/cpu/forward_pieces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace fusion_attention::cpu {
namespace {

constexpr int64_t kBlockRows = 48;
constexpr int64_t kBlockBytes = kBlockRows * (64 + 64) * 4;

Problem Causal(int64_t batch, int64_t kv_heads, int64_t group, int64_t q_len) {
  Problem p;
  p.batch = batch;
  p.q_heads = kv_heads * group;
  p.kv_heads = kv_heads;
  p.q_len = p.kv_len = q_len;
  p.head_dim = p.value_dim = 64;
  p.mask.full = false;
  p.mask.sparse_mode = 3;
  return p;
}

TEST(ForwardPieces, CoverEveryBlockOnce) {
  for (const int64_t workers : {1, 2, 3, 64}) {
    for (const int64_t group : {1, 4}) {
      for (const int64_t q_len : {0, 1, 48, 49, 2000}) {
        const Problem p = Causal(2, 3, group, q_len);
        SCOPED_TRACE(testing::Message()
                     << workers << " workers, group of " << group << ", " << q_len << " rows");
        const ForwardPieces pieces(p, kBlockRows, kBlockBytes, workers);
        std::map<std::tuple<int64_t, int64_t, int64_t>, int> times;
        int64_t most_blocks = 1;
        for (int64_t i = 0; i < pieces.count(); ++i) {
          const ForwardPiece& piece = pieces[i];
          for (int64_t b = 0; b < piece.blocks; ++b) {
            ++times[{piece.sequence, piece.kv_head, piece.first_block + b}];
          }
          most_blocks = std::max(most_blocks, piece.blocks);
        }
        const int64_t blocks = (q_len + kBlockRows - 1) / kBlockRows * group;
        EXPECT_EQ(static_cast<int64_t>(times.size()), p.batch * p.kv_heads * blocks);
        for (const auto& [block, count] : times) EXPECT_EQ(count, 1);
        // Scratch is cleared: what a small call does not need it must not ask for.
        EXPECT_EQ(pieces.most_blocks(), most_blocks);
        EXPECT_LE(most_blocks, ForwardPieces::kMaxBlocks);
      }
    }
  }
}

}  // namespace
}  // namespace fusion_attention::cpu
