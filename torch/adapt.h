// From the dispatcher's arguments to the core's: the one place where a tensor becomes a TensorSpec
// and a view. Rules of the operator are not checked here; Validate() does that on the Call that
// ToCall() states.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fusion_attention/backward.h"

namespace fusion_attention::torch_front_end {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalInts = std::optional<std::vector<int64_t>>;

// A tensor with one owner: what every operator takes, or makes and hands to the dispatcher.
// stable::Tensor shares its own, which takes an allocation more each and 0.3 us of a small call.
struct DeleteTensor {
  void operator()(AtenTensorHandle tensor) const { aoti_torch_delete_tensor_object(tensor); }
};
using OwnedTensor = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

// What all operators take, in the order of the schemas in library.cc. The values are those that a
// plain call does not state.
struct Arguments {
  OwnedTensor query, key, value;
  OptionalTensor pse{}, padding_mask{}, atten_mask{}, sink{}, dropout_mask{}, query_rope{},
      key_rope{};
  // Instead of the lists of the same names: contiguous int64 tensors on the CPU, whose values a
  // compiled graph does not know. No other tensor is read while a call is checked.
  OptionalTensor qlen_tensor{}, kvlen_tensor{};
  int64_t head_num;
  std::string input_layout;
  double scale, keep_prob = 1.0;
  int64_t pre_tockens, next_tockens, inner_precise = 0;
  OptionalInts prefix{}, actual_seq_qlen{}, actual_seq_kvlen{};
  int64_t sparse_mode;
  std::string softmax_layout{};
  int64_t pse_type = 1;
  OptionalInts q_start_idx{}, kv_start_idx{};
  int64_t version = 1;  // of the public function: 1, 2 or 3
};

// The gradient's tensors; a call without them may be asked about too.
struct GradTensors {
  OptionalTensor dy, softmax_max, softmax_sum, attention_in;
  std::optional<int64_t> numels;
};

// Takes a boxed call's arguments off the dispatcher's stack, one after the other.
class Stack {
 public:
  explicit Stack(StableIValue* values) : next_(values) {}
  template <typename T>
  T Take() {
    return torch::stable::detail::to<T>(*next_++);
  }
  Arguments TakeArguments();
  Arguments TakePlainArguments(std::string_view layout);
  GradTensors TakeGradTensors();

 private:
  StableIValue* next_;
};

template <>
inline OwnedTensor Stack::Take<OwnedTensor>() {
  return OwnedTensor(torch::stable::detail::to<AtenTensorHandle>(*next_++));
}

// PyTorch's own conversion (2.13) never frees the string that it returns a copy of: 48 bytes for
// each string of each call.
template <>
inline std::string Stack::Take<std::string>() {
  const auto handle = torch::stable::detail::to<StringHandle>(*next_++);
  size_t length = 0;
  const char* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  std::string text(data, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

// Puts an operator's results on the dispatcher's stack.
template <typename... Tensors>
void Return(StableIValue* stack, Tensors... tensors) {
  ((*stack++ = torch::stable::detail::from(tensors.release())), ...);
}

DType DTypeOf(AtenTensorHandle tensor);
bool IsOnCpu(AtenTensorHandle tensor);

// Of a 0-dim int64 tensor, the bits; 0 if there is none.
uint64_t Word(const OptionalTensor& tensor);

Call ToCall(const Arguments& arguments);
GradCall ToGradCall(const GradTensors& tensors);

// The plan of a call, of its gradient if `grad` is not null. Throws what Raise() throws.
std::shared_ptr<const Plan> PlanFor(const Arguments& arguments, const GradTensors* grad);

// A contiguous copy, or the tensor itself; for the small operands that the core reads through plain
// pointers.
OptionalTensor Contiguous(const OptionalTensor& tensor);

// Views of tensors that hold `heads` heads of `dim` channels each in the problem's layout.
ConstTensorView View(const Problem& problem, AtenTensorHandle tensor, int64_t dim);
TensorView MutableView(const Problem& problem, const OwnedTensor& tensor, int64_t dim);

// Views of a mask or a pse of rank 2 or 4; axes of extent 1 are broadcast.
ConstScoreView View(const Tensor& tensor);
// Views of the problem's pse, which may be slopes, and of its gradient.
ConstScoreView PseView(const Problem& problem, const Tensor& pse);
ScoreView MutablePseView(const Problem& problem, const OwnedTensor& dpse);

uint8_t* MutableBytes(const OwnedTensor& tensor);
float* MutableFloats(const OwnedTensor& tensor);
int64_t* MutableInts(const OwnedTensor& tensor);

// Everything that both directions read; the tensors behind it must outlive it.
struct BoundInputs {
  Inputs inputs;
  OptionalTensor sink, dropout_mask;  // keep alive what Contiguous() made
};
BoundInputs Bind(const Problem& problem, const Arguments& arguments, const OptionalTensor& seed,
                 const OptionalTensor& offset);

// An uninitialised contiguous tensor on `like`'s device. Throws what Raise() throws for
// kResourceExhausted.
OwnedTensor Allocate(const std::vector<int64_t>& shape, DType dtype, AtenTensorHandle like);
// The same of int64 on the CPU.
OwnedTensor NewInts(const std::vector<int64_t>& shape);

// The shapes of attention_out and of the statistics.
std::vector<int64_t> OutShape(const Problem& problem);
std::vector<int64_t> StatisticsShape(const Problem& problem);
std::vector<int64_t> ShapeOf(AtenTensorHandle tensor);

// Throws `status` so that Python sees its text alone: RuntimeError for a broken rule; ValueError
// for kUnimplemented and MemoryError for kResourceExhausted, which the Python package turns into
// NotImplementedError and torch.OutOfMemoryError. The stable ABI has no exception types of its own;
// these are the ones that PyTorch's bindings tell apart.
[[noreturn]] void Raise(const Status& status);
inline void RaiseUnlessOk(const Status& status) {
  if (!status.ok()) Raise(status);
}

}  // namespace fusion_attention::torch_front_end
