// Calls derived from a legal one: with a gradient part, or with something broken.
#include <cmath>
#include <functional>
#include <limits>

#include "tests/cc/fuzz/case.h"

namespace fusion_attention::fuzz {
namespace {

using Shape = std::vector<int64_t>;
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

int64_t HostileInt(int64_t near, Random& random) {
  if (random.Chance(50))
    return static_cast<int64_t>(static_cast<uint64_t>(near) + random.Int(-2, 2));
  return random.Pick<int64_t>({kMin, kMin + 1, -1, 0, 1, 2, 7, 2048, 1 << 20, (1 << 20) + 1,
                               2147483647, int64_t{1} << 40, int64_t{1} << 62, kMax - 1, kMax});
}

double HostileReal(Random& random) {
  return random.Pick({std::nan(""), -std::nan(""), HUGE_VAL, -HUGE_VAL, -0.0, -1.0, 1e-320, 1e-9,
                      1.0000001, 3.5e38, 1e308});
}

DType RandomDType(Random& random) {
  return random.Pick({DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64,
                      DType::kBool, DType::kUInt8, DType::kOther});
}

void Break(Shape& shape, Random& random) {
  const int64_t kind = random.Int(0, 9);
  if (kind == 0) {
    shape.clear();
  } else if (kind <= 2) {
    shape.push_back(HostileInt(1, random));
  } else if (kind <= 4 && !shape.empty()) {
    shape.pop_back();
  } else if (!shape.empty()) {
    int64_t& size = shape[random.Int(0, static_cast<int64_t>(shape.size()) - 1)];
    size = HostileInt(size, random);
  }
}

void Break(TensorSpec& tensor, Random& random) {
  if (random.Chance(25)) {
    tensor.dtype = RandomDType(random);
  } else {
    Break(tensor.shape, random);
  }
}

// Takes it away, makes it up, or breaks what is there.
template <typename T>
void BreakOptional(std::optional<T>& optional, Random& random) {
  if (optional && random.Chance(20)) {
    optional.reset();
  } else {
    if (!optional) optional.emplace();
    Break(*optional, random);
  }
}

void Break(std::string& text, Random& random) {
  text = random.Pick<std::string>({"", "tnd", "TND", "bsh", "BNSD", "BNDS", std::string("TND\0", 4),
                                   "\xff\xfe\n", std::string(5000, 'B')});
}

void BreakOne(Call& call, Random& random) {
  switch (random.Int(0, 25)) {
    case 0:
      return Break(call.query, random);
    case 1:
      return Break(call.key, random);
    case 2:
      return Break(call.value, random);
    case 3:
      call.head_num = HostileInt(call.head_num, random);
      return;
    case 4:
      return Break(call.input_layout, random);
    case 5:
      return BreakOptional(call.pse, random);
    case 6:
      return BreakOptional(call.padding_mask, random);
    case 7:
      return BreakOptional(call.atten_mask, random);
    case 8:
      call.scale = HostileReal(random);
      return;
    case 9:
      call.keep_prob = HostileReal(random);
      return;
    case 10:
      call.pre_tockens = HostileInt(call.pre_tockens, random);
      return;
    case 11:
      call.next_tockens = HostileInt(call.next_tockens, random);
      return;
    case 12:
      call.inner_precise = HostileInt(0, random);
      return;
    case 13:
      return BreakOptional(call.prefix, random);
    case 14:
      return BreakOptional(call.actual_seq_qlen, random);
    case 15:
      return BreakOptional(call.actual_seq_kvlen, random);
    case 16:
      call.sparse_mode = random.Chance(70) ? random.Int(0, 8) : HostileInt(0, random);
      return;
    case 17:
      return Break(call.softmax_layout, random);
    case 18:
      return BreakOptional(call.sink, random);
    case 19:
      return BreakOptional(call.dropout_mask, random);
    case 20:
      return BreakOptional(call.query_rope, random);
    case 21:
      return BreakOptional(call.key_rope, random);
    case 22:
      call.pse_type = random.Chance(70) ? random.Int(0, 3) : HostileInt(call.pse_type, random);
      return;
    case 23:
      return BreakOptional(call.q_start_idx, random);
    case 24:
      return BreakOptional(call.kv_start_idx, random);
    default:
      break;
  }
  if (!call.grad) call.grad.emplace();
  GradCall& grad = *call.grad;
  switch (random.Int(0, 4)) {
    case 0:
      return Break(grad.dy, random);
    case 1:
      return Break(grad.softmax_max, random);
    case 2:
      return Break(grad.softmax_sum, random);
    case 3:
      return Break(grad.attention_in, random);
    default:
      grad.numels = HostileInt(0, random);
  }
}

}  // namespace

Call WithGradient(Call call, const Problem& problem) {
  const bool folded = problem.layout == Layout::kBSH || problem.layout == Layout::kSBH;
  TensorSpec out = call.query;
  out.shape.back() = folded ? problem.q_heads * problem.value_dim : problem.value_dim;
  TensorSpec statistics = {DType::kFloat32, {problem.batch, problem.q_heads, problem.q_len, 8}};
  if (problem.layout == Layout::kTND) statistics.shape = {problem.q_len, problem.q_heads, 8};
  call.grad = GradCall{.dy = out,
                       .softmax_max = statistics,
                       .softmax_sum = statistics,
                       .attention_in = out,
                       .numels = problem.numels};
  return call;
}

Call MakeHostile(Call call, Random& random) {
  for (int64_t n = random.Int(1, 4); n > 0; --n) BreakOne(call, random);
  return call;
}

}  // namespace fusion_attention::fuzz
