// The sizes of a random call before they become shapes: mostly small, for speed, and sometimes
// larger than any tile. Knows nothing of dtypes, masks and options.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/cc/fuzz/random.h"

namespace fusion_attention::fuzz {

// The sizes of a call before they become shapes.
struct Sizes {
  bool packed = false;
  int64_t batch = 1, q_heads = 1, kv_heads = 1, q_len = 0, kv_len = 0;  // lengths: T in TND
  int64_t head_dim = 1, value_dim = 1;
  std::vector<int64_t> q_lens, kv_lens;  // TND: per sequence
  int64_t unused = 0;                    // TND: trailing zeros of the lists
  int64_t longest_q = 0, longest_kv = 0;

  int64_t given_sequences() const {
    return packed ? static_cast<int64_t>(q_lens.size()) + unused : batch;
  }
};

// What the rest of the call asks of the lengths of its sequences.
enum class Lengths {
  kAny,
  kShortRows,          // Sq <= Skv (TND)
  kSquare,             // Sq == Skv
  kSquareBehindFirst,  // Sq == Skv but for the first sequence (TND)
  kSquareAndNotEmpty,  // Sq == Skv >= 1 (TND)
};

Sizes RandomSizes(bool packed, Lengths lengths, Random& random);

}  // namespace fusion_attention::fuzz
