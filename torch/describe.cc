// A validated call as plain numbers and words. All of them are read off Plan and Problem: nothing
// here decides anything.
#include "torch/describe.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "fusion_attention/plan.h"
#include "torch/adapt.h"
#include "torch/threads.h"

namespace fusion_attention::torch_front_end {
namespace {

std::string_view Word(Layout layout) {
  static constexpr std::array<std::string_view, 5> kWords = {"BSH", "SBH", "BNSD", "BSND", "TND"};
  return kWords[static_cast<size_t>(layout)];
}

std::string_view Word(PseKind kind) {
  static constexpr std::array<std::string_view, 4> kWords = {"none", "dense", "compressed",
                                                             "slopes"};
  return kWords[static_cast<size_t>(kind)];
}

std::string_view Word(DropoutKind kind) {
  static constexpr std::array<std::string_view, 4> kWords = {"none", "philox", "external",
                                                             "drop_all"};
  return kWords[static_cast<size_t>(kind)];
}

std::string_view Word(const MaskSpec& mask) {
  if (mask.full) return "none";
  return mask.source == MaskSource::kDense ? "dense" : "compressed";
}

// Lines of `name=value`.
class Facts {
 public:
  void Add(std::string_view name, std::string_view value) {
    text_.append(name).append("=").append(value).append("\n");
  }
  template <typename Number>
  requires std::is_arithmetic_v<Number>
  void Add(std::string_view name, Number value) {
    std::array<char, 32> digits;  // to_chars: the shortest text that reads back as the same number
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    Add(name, std::string_view(digits.data(), static_cast<size_t>(end - digits.data())));
  }
  void Add(std::string_view name, const std::vector<int64_t>& values) {
    std::string joined;
    for (const int64_t value : values)
      joined += (joined.empty() ? "" : ",") + std::to_string(value);
    Add(name, std::string_view(joined));
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

std::string FactsOf(const Plan& plan) {
  const Problem& p = plan.problem();
  Facts facts;
  facts.Add("layout", Word(p.layout));
  facts.Add("dtype", Name(p.dtype));
  facts.Add("sequences", p.sequences());
  facts.Add("q_heads", p.q_heads);
  facts.Add("kv_heads", p.kv_heads);
  facts.Add("q_len", p.q_len);
  facts.Add("kv_len", p.kv_len);
  facts.Add("head_dim", p.head_dim);
  facts.Add("rope_dim", p.rope_dim);
  facts.Add("value_dim", p.value_dim);
  facts.Add("scale", p.scale);
  facts.Add("keep_prob", p.keep_prob);
  facts.Add("dropout", Word(p.dropout));
  facts.Add("drop_rate", plan.DropRate());
  facts.Add("numels", p.numels);
  facts.Add("mask", Word(p.mask));
  facts.Add("sparse_mode", p.mask.sparse_mode);
  facts.Add("pre_tockens", p.mask.pre_tockens);
  facts.Add("next_tockens", p.mask.next_tockens);
  facts.Add("band_sequence", p.mask.band_sequence);
  facts.Add("pse", Word(p.pse.kind));
  facts.Add("pse_after_scale", int{p.pse.after_scale});
  facts.Add("has_sink", int{p.has_sink});
  facts.Add("softmax_layout_tnd", int{p.softmax_layout_tnd});
  facts.Add("invalid_row_mode", int{p.invalid_row_mode});
  facts.Add("out_shape", OutShape(p));
  facts.Add("statistics_shape", StatisticsShape(p));
  facts.Add("backend", plan.backend_name());
  facts.Add("threads", TorchThreads().Workers());
  const StatusOr<std::string> target = SelectedTarget();
  facts.Add("target", plan.backend_name() == "cpu" && target.ok() ? *target : "none");
  return facts.text();
}

constexpr int64_t kColumns = 10;

OwnedTensor SequencesOf(const Problem& problem) {
  // Without a prefix the sequences of a dense layout differ in nothing but their index.
  const bool alike = problem.layout != Layout::kTND && problem.mask.prefix.empty();
  const int64_t rows = alike ? std::min<int64_t>(problem.batch, 1) : problem.sequences();
  OwnedTensor table = NewInts({rows, kColumns});
  int64_t* cell = MutableInts(table);
  for (int64_t index = 0; index < rows; ++index) {
    const Sequence s = problem.SequenceAt(index);
    const RowIntervals keys = problem.IntervalsOf(s);
    for (const int64_t value :
         {s.batch, alike ? problem.batch : 1, s.q_begin, s.q_len, s.kv_begin, s.kv_len,
          s.dropout_begin, keys.begin_offset, keys.end_offset, keys.prefix}) {
      *cell++ = value;
    }
  }
  return table;
}

void ReturnText(StableIValue* place, const std::string& text) {
  *place = torch::stable::detail::from(text);
}

std::string Joined(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ",") + name;
  return joined;
}

}  // namespace

void Targets(StableIValue* stack, uint64_t, uint64_t) { ReturnText(stack, Joined(TargetNames())); }

void BuiltTargets(StableIValue* stack, uint64_t, uint64_t) {
  ReturnText(stack, Joined(BuiltTargetNames()));
}

void Backends(StableIValue* stack, uint64_t, uint64_t) {
  ReturnText(stack, Joined(BackendNames()));
}

void Target(StableIValue* stack, uint64_t, uint64_t) {
  const StatusOr<std::string> target = SelectedTarget();
  RaiseUnlessOk(target.status());
  ReturnText(stack, *target);
}

void Describe(StableIValue* stack, uint64_t, uint64_t) {
  Stack input(stack);
  const Arguments arguments = input.TakeArguments();
  const GradTensors grad = input.TakeGradTensors();
  const std::shared_ptr<const Plan> plan = PlanFor(arguments, grad.dy ? &grad : nullptr);
  Return(stack, SequencesOf(plan->problem()));
  ReturnText(stack + 1, FactsOf(*plan));
}

void RowKeys(StableIValue* stack, uint64_t, uint64_t) {
  const auto sequence = Stack(stack).Take<Tensor>();
  if (sequence.dim() != 1 || sequence.size(0) != kColumns || !sequence.is_contiguous()) {
    Raise({StatusCode::kInvalidArgument, "row_keys: expected a row of what describe() returned."});
  }
  const auto* cell = static_cast<const int64_t*>(sequence.const_data_ptr());
  const int64_t q_len = cell[3];
  const RowIntervals keys = {
      .begin_offset = cell[7], .end_offset = cell[8], .prefix = cell[9], .kv_len = cell[5]};
  OwnedTensor table = NewInts({q_len, 2});
  int64_t* out = MutableInts(table);
  for (int64_t row = 0; row < q_len; ++row) {
    *out++ = keys.Begin(row);
    *out++ = keys.End(row);
  }
  Return(stack, std::move(table));
}

}  // namespace fusion_attention::torch_front_end
