// Tensors into specs, views and back into tensors.
#include "torch/adapt.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace fusion_attention::torch_front_end {

DType DTypeOf(AtenTensorHandle tensor) {
  int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &code));
  if (code == aoti_torch_dtype_float16()) return DType::kFloat16;
  if (code == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  if (code == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (code == aoti_torch_dtype_float64()) return DType::kFloat64;
  if (code == aoti_torch_dtype_bool()) return DType::kBool;
  if (code == aoti_torch_dtype_uint8()) return DType::kUInt8;
  return DType::kOther;
}

bool IsOnCpu(AtenTensorHandle tensor) {
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device));
  return device == aoti_torch_device_type_cpu();
}

namespace {

int32_t TorchDTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return aoti_torch_dtype_float16();
    case DType::kBFloat16:
      return aoti_torch_dtype_bfloat16();
    case DType::kFloat64:
      return aoti_torch_dtype_float64();
    case DType::kUInt8:
      return aoti_torch_dtype_uint8();
    default:
      return aoti_torch_dtype_float32();
  }
}

TensorSpec SpecOf(AtenTensorHandle tensor) { return {DTypeOf(tensor), ShapeOf(tensor)}; }

std::optional<TensorSpec> SpecOf(const OptionalTensor& tensor) {
  if (!tensor) return std::nullopt;
  return SpecOf(tensor->get());
}

std::span<const int64_t> SizesOf(AtenTensorHandle tensor) {
  int64_t* sizes = nullptr;
  int64_t rank = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &rank));
  return {sizes, static_cast<size_t>(rank)};
}

const int64_t* StridesOf(AtenTensorHandle tensor) {
  int64_t* strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  return strides;
}

void* MutableData(const OwnedTensor& tensor) {
  void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor.get(), &data));
  return data;
}

// Strides of a tensor in `layout`, for heads of `dim` channels.
Strides StridesOf(Layout layout, AtenTensorHandle tensor, int64_t dim) {
  const int64_t* s = StridesOf(tensor);
  switch (layout) {
    case Layout::kBSH:
      return {.batch = s[0], .head = dim * s[2], .token = s[1], .channel = s[2]};
    case Layout::kSBH:
      return {.batch = s[1], .head = dim * s[2], .token = s[0], .channel = s[2]};
    case Layout::kBNSD:
      return {.batch = s[0], .head = s[1], .token = s[2], .channel = s[3]};
    case Layout::kBSND:
      return {.batch = s[0], .head = s[2], .token = s[1], .channel = s[3]};
    case Layout::kTND:
      break;
  }
  return {.batch = 0, .head = s[1], .token = s[0], .channel = s[2]};
}

ScoreStrides ScoreStridesOf(AtenTensorHandle tensor) {
  const std::span<const int64_t> sizes = SizesOf(tensor);
  const int64_t* strides = StridesOf(tensor);
  // Right-aligned, as broadcasting is: a rank-2 tensor has a row and a key axis only.
  const auto rank = static_cast<int64_t>(sizes.size());
  const auto stride = [&](int64_t from_end) -> int64_t {
    const int64_t axis = rank - from_end;
    return axis < 0 || sizes[static_cast<size_t>(axis)] == 1 ? 0 : strides[axis];
  };
  return {.batch = stride(4), .head = stride(3), .row = stride(2), .key = stride(1)};
}

// Slopes are [N] or [B, N]: one for all scores of a head.
ScoreStrides PseStridesOf(const Problem& problem, AtenTensorHandle pse) {
  if (problem.pse.kind != PseKind::kSlopes) return ScoreStridesOf(pse);
  const ScoreStrides last_two = ScoreStridesOf(pse);
  return {.batch = last_two.row, .head = last_two.key, .row = 0, .key = 0};
}

// The elements of a contiguous int64 tensor.
std::vector<int64_t> Values(const Tensor& tensor) {
  const auto* data = static_cast<const int64_t*>(tensor.const_data_ptr());
  return {data, data + tensor.numel()};
}

// An uninitialised contiguous tensor of elements of so many bytes.
OwnedTensor AllocateOn(int32_t device, int32_t index, const std::vector<int64_t>& shape,
                       int32_t torch_dtype, int64_t bytes) {
  std::array<int64_t, 4> strides{};  // no tensor of the operator has more axes
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    strides.at(axis) = stride;
    stride *= std::max<int64_t>(shape[axis], 1);
  }
  AtenTensorHandle tensor = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                               torch_dtype, device, index, &tensor) != TORCH_SUCCESS) {
    Raise({StatusCode::kResourceExhausted, "npu_fusion_attention: could not allocate " +
                                               std::to_string(stride * bytes) +
                                               " bytes for a result."});
  }
  return OwnedTensor(tensor);
}

// A std::bad_alloc with a text: reaches Python as MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(const std::string& message)
      : message_(std::make_shared<const std::string>(message)) {}
  const char* what() const noexcept override { return message_->c_str(); }

 private:
  std::shared_ptr<const std::string> message_;  // copying an exception must not throw
};

// The status of a call in the words of the function that was called: _v2 spells two parameters
// pre_tokens and next_tokens.
Status AsNamedBy(int64_t version, const Status& status) {
  if (version != 2) return status;
  constexpr std::string_view kOld = "_tockens";
  std::string text = status.message();
  for (size_t at = text.find(kOld); at != std::string::npos; at = text.find(kOld, at)) {
    text.replace(at, kOld.size(), "_tokens");
  }
  return Status(status.code(), text);
}

}  // namespace

uint64_t Word(const OptionalTensor& tensor) {
  if (!tensor) return 0;
  return static_cast<uint64_t>(*static_cast<const int64_t*>(tensor->const_data_ptr()));
}

Arguments Stack::TakeArguments() {
  // Braces fix the order: members are initialised as they are declared.
  return Arguments{Take<OwnedTensor>(),    Take<OwnedTensor>(),    Take<OwnedTensor>(),
                   Take<OptionalTensor>(), Take<OptionalTensor>(), Take<OptionalTensor>(),
                   Take<OptionalTensor>(), Take<OptionalTensor>(), Take<OptionalTensor>(),
                   Take<OptionalTensor>(), Take<OptionalTensor>(), Take<OptionalTensor>(),
                   Take<int64_t>(),        Take<std::string>(),    Take<double>(),
                   Take<double>(),         Take<int64_t>(),        Take<int64_t>(),
                   Take<int64_t>(),        Take<OptionalInts>(),   Take<OptionalInts>(),
                   Take<OptionalInts>(),   Take<int64_t>(),        Take<std::string>(),
                   Take<int64_t>(),        Take<OptionalInts>(),   Take<OptionalInts>(),
                   Take<int64_t>()};
}

Arguments Stack::TakePlainArguments(std::string_view layout) {
  auto query = Take<OwnedTensor>(), key = Take<OwnedTensor>(), value = Take<OwnedTensor>();
  const auto head_num = Take<int64_t>();
  const auto scale = Take<double>();
  OptionalInts actual_seq_qlen, actual_seq_kvlen;
  if (layout == "TND") {
    actual_seq_qlen = Take<std::vector<int64_t>>();
    actual_seq_kvlen = Take<std::vector<int64_t>>();
  }
  auto atten_mask = Take<OptionalTensor>();
  const auto sparse_mode = Take<int64_t>();
  const auto pre_tockens = Take<int64_t>(), next_tockens = Take<int64_t>();
  return Arguments{.query = std::move(query),
                   .key = std::move(key),
                   .value = std::move(value),
                   .atten_mask = std::move(atten_mask),
                   .head_num = head_num,
                   .input_layout = std::string(layout),
                   .scale = scale,
                   .pre_tockens = pre_tockens,
                   .next_tockens = next_tockens,
                   .actual_seq_qlen = std::move(actual_seq_qlen),
                   .actual_seq_kvlen = std::move(actual_seq_kvlen),
                   .sparse_mode = sparse_mode};
}

GradTensors Stack::TakeGradTensors() {
  return GradTensors{Take<OptionalTensor>(), Take<OptionalTensor>(), Take<OptionalTensor>(),
                     Take<OptionalTensor>(), Take<std::optional<int64_t>>()};
}

std::vector<int64_t> ShapeOf(AtenTensorHandle tensor) {
  const std::span<const int64_t> sizes = SizesOf(tensor);
  return {sizes.begin(), sizes.end()};
}

Call ToCall(const Arguments& a) {
  return {.query = SpecOf(a.query.get()),
          .key = SpecOf(a.key.get()),
          .value = SpecOf(a.value.get()),
          .head_num = a.head_num,
          .input_layout = a.input_layout,
          .pse = SpecOf(a.pse),
          .padding_mask = SpecOf(a.padding_mask),
          .atten_mask = SpecOf(a.atten_mask),
          .scale = a.scale,
          .keep_prob = a.keep_prob,
          .pre_tockens = a.pre_tockens,
          .next_tockens = a.next_tockens,
          .inner_precise = a.inner_precise,
          .prefix = a.prefix,
          .actual_seq_qlen = a.qlen_tensor ? Values(*a.qlen_tensor) : a.actual_seq_qlen,
          .actual_seq_kvlen = a.kvlen_tensor ? Values(*a.kvlen_tensor) : a.actual_seq_kvlen,
          .sparse_mode = a.sparse_mode,
          .softmax_layout = a.softmax_layout,
          .sink = SpecOf(a.sink),
          .dropout_mask = SpecOf(a.dropout_mask),
          .query_rope = SpecOf(a.query_rope),
          .key_rope = SpecOf(a.key_rope),
          .pse_type = a.pse_type,
          .q_start_idx = a.q_start_idx,
          .kv_start_idx = a.kv_start_idx,
          .grad = std::nullopt};
}

GradCall ToGradCall(const GradTensors& tensors) {
  return {.dy = SpecOf(tensors.dy->get()),
          .softmax_max = SpecOf(tensors.softmax_max->get()),
          .softmax_sum = SpecOf(tensors.softmax_sum->get()),
          .attention_in = SpecOf(tensors.attention_in->get()),
          .numels = tensors.numels};
}

std::shared_ptr<const Plan> PlanFor(const Arguments& arguments, const GradTensors* grad) {
  // The layers of a model make equal calls, forward and backward. Not to check one again saves
  // 0.2 us of the 5 us of a small one.
  struct Planned {
    Call call;
    std::shared_ptr<const Plan> plan;
  };
  thread_local std::array<Planned, 2> last_planned;

  Call call = ToCall(arguments);
  if (grad != nullptr) call.grad = ToGradCall(*grad);
  Planned& last = last_planned[grad == nullptr ? 0 : 1];
  // Zeros are equal, but -0.0 gives zeros another sign.
  const bool equal = last.plan != nullptr && last.call == call &&
                     std::signbit(last.call.scale) == std::signbit(call.scale);
  if (!equal) {
    StatusOr<Plan> plan = Plan::Create(call);
    if (!plan.ok()) Raise(AsNamedBy(arguments.version, plan.status()));
    last.plan = std::make_shared<const Plan>(plan.TakeValue());
    last.call = std::move(call);
  }
  return last.plan;
}

OptionalTensor Contiguous(const OptionalTensor& tensor) {
  if (!tensor || tensor->is_contiguous()) return tensor;
  return torch::stable::contiguous(*tensor);
}

ConstTensorView View(const Problem& problem, AtenTensorHandle tensor, int64_t dim) {
  const void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &data));
  return {data, problem.dtype, StridesOf(problem.layout, tensor, dim)};
}

TensorView MutableView(const Problem& problem, const OwnedTensor& tensor, int64_t dim) {
  return {MutableData(tensor), problem.dtype, StridesOf(problem.layout, tensor.get(), dim)};
}

ConstScoreView View(const Tensor& tensor) {
  return {tensor.const_data_ptr(), DTypeOf(tensor.get()), ScoreStridesOf(tensor.get())};
}

ConstScoreView PseView(const Problem& problem, const Tensor& pse) {
  return {pse.const_data_ptr(), DTypeOf(pse.get()), PseStridesOf(problem, pse.get())};
}

ScoreView MutablePseView(const Problem& problem, const OwnedTensor& dpse) {
  return {MutableData(dpse), DTypeOf(dpse.get()), PseStridesOf(problem, dpse.get())};
}

uint8_t* MutableBytes(const OwnedTensor& tensor) {
  return static_cast<uint8_t*>(MutableData(tensor));
}
float* MutableFloats(const OwnedTensor& tensor) { return static_cast<float*>(MutableData(tensor)); }
int64_t* MutableInts(const OwnedTensor& tensor) {
  return static_cast<int64_t*>(MutableData(tensor));
}

BoundInputs Bind(const Problem& problem, const Arguments& a, const OptionalTensor& seed,
                 const OptionalTensor& offset) {
  BoundInputs bound;
  // The problem says what is in use: a tensor without axes counts as absent, and a mask may not be
  // needed.
  if (problem.has_sink) bound.sink = Contiguous(a.sink);
  if (problem.dropout == DropoutKind::kExternal) bound.dropout_mask = Contiguous(a.dropout_mask);
  Inputs& inputs = bound.inputs;
  inputs.query = View(problem, a.query.get(), problem.head_dim);
  inputs.key = View(problem, a.key.get(), problem.head_dim);
  inputs.value = View(problem, a.value.get(), problem.value_dim);
  if (problem.rope_dim > 0) {
    inputs.query_rope = View(problem, a.query_rope->get(), problem.rope_dim);
    inputs.key_rope = View(problem, a.key_rope->get(), problem.rope_dim);
  }
  if (problem.pse.kind != PseKind::kNone) inputs.pse = PseView(problem, *a.pse);
  if (problem.mask.source == MaskSource::kDense) {
    inputs.atten_mask = View(*a.atten_mask);
  } else if (!problem.mask.full) {
    const ConstScoreView mask = View(*a.atten_mask);
    RaiseUnlessOk(ValidateCompressedMask(problem, static_cast<const uint8_t*>(mask.data),
                                         mask.strides.row, mask.strides.key));
  }
  if (bound.sink) inputs.sink = static_cast<const float*>(bound.sink->const_data_ptr());
  if (bound.dropout_mask)
    inputs.dropout_mask = static_cast<const uint8_t*>(bound.dropout_mask->const_data_ptr());
  inputs.seed = Word(seed);
  inputs.offset = Word(offset);
  return bound;
}

OwnedTensor Allocate(const std::vector<int64_t>& shape, DType dtype, AtenTensorHandle like) {
  int32_t device = 0;
  int32_t index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like, &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like, &index));
  return AllocateOn(device, index, shape, TorchDTypeOf(dtype), SizeOf(dtype));
}

OwnedTensor NewInts(const std::vector<int64_t>& shape) {
  return AllocateOn(aoti_torch_device_type_cpu(), 0, shape, aoti_torch_dtype_int64(),
                    sizeof(int64_t));
}

std::vector<int64_t> OutShape(const Problem& p) {
  switch (p.layout) {
    case Layout::kBSH:
      return {p.batch, p.q_len, p.q_heads * p.value_dim};
    case Layout::kSBH:
      return {p.q_len, p.batch, p.q_heads * p.value_dim};
    case Layout::kBNSD:
      return {p.batch, p.q_heads, p.q_len, p.value_dim};
    case Layout::kBSND:
      return {p.batch, p.q_len, p.q_heads, p.value_dim};
    case Layout::kTND:
      break;
  }
  return {p.q_len, p.q_heads, p.value_dim};
}

std::vector<int64_t> StatisticsShape(const Problem& p) {
  if (p.layout == Layout::kTND) return {p.q_len, p.q_heads, kStatisticsCopies};
  return {p.batch, p.q_heads, p.q_len, kStatisticsCopies};
}

void Raise(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnimplemented:
      throw std::domain_error(status.message());
    case StatusCode::kResourceExhausted:
      throw OutOfMemory(status.message());
    default:
      throw std::runtime_error(status.message());
  }
}

}  // namespace fusion_attention::torch_front_end
