// Lays out operands, runs, gathers results.
#include "tests/cc/fuzz/run.h"

#include <cstring>

#include "src/reference/reference.h"

namespace fusion_attention::fuzz {
namespace {

int64_t Batches(const Problem& problem) {
  return problem.layout == Layout::kTND ? 1 : problem.batch;
}

Placement PlacementOf(const Four& extent, const std::array<bool, 4>& constant,
                      const Variant& variant, Random& random) {
  return variant.memory == Memory::kContiguous ? Placement::Contiguous(extent)
                                               : Placement::Scattered(extent, constant, random);
}

Stored StoredInput(const Operand& operand, const Variant& variant, Random& random) {
  return Stored::Input(operand, PlacementOf(operand.extent, operand.constant, variant, random),
                       variant.fill, random);
}

template <typename T>
Guarded SealedCopy(const std::vector<T>& values) {
  Guarded copy(values.size() * sizeof(T), GuardSide::kAfter, 0);
  if (!values.empty()) std::memcpy(copy.data(), values.data(), copy.bytes());
  copy.Seal();
  return copy;
}

// A pse or mask axis of extent 1 serves every index of the problem's axis.
ConstScoreView ScoreViewOf(const Stored& stored, const Operand& operand) {
  if (!operand.given()) return {};
  std::array<bool, 4> broadcast = {};
  for (int axis = 0; axis < 4; ++axis) broadcast[axis] = operand.extent[axis] == 1;
  const Four s = stored.ViewStrides(broadcast);
  return {.data = stored.first(), .dtype = operand.dtype, .strides = {s[0], s[1], s[2], s[3]}};
}

std::vector<char> BytesOf(const Guarded& memory) {
  const char* const bytes = static_cast<const char*>(memory.data());
  return {bytes, bytes + memory.bytes()};
}

TensorView ContiguousView(std::vector<char>& bytes, DType dtype, const Four& extent) {
  bytes.resize(extent[0] * extent[1] * extent[2] * extent[3] * SizeOf(dtype));
  const Four s = Placement::Contiguous(extent).stride;
  return {.data = bytes.data(), .dtype = dtype, .strides = {s[0], s[1], s[2], s[3]}};
}

ScoreView DpseView(void* data, const Problem& problem) {
  const PseSpec& pse = problem.pse;
  return {.data = data,
          .dtype = PseDType(problem),
          .strides = {.batch = pse.batch == 1 ? 0 : problem.q_heads * pse.rows * pse.keys,
                      .head = pse.rows * pse.keys,
                      .row = pse.rows == 1 ? 0 : pse.keys,
                      .key = pse.keys == 1 ? 0 : 1}};
}

}  // namespace

Four QueryExtent(const Problem& p) { return {Batches(p), p.q_heads, p.q_len, p.head_dim}; }
Four OutExtent(const Problem& p) { return {Batches(p), p.q_heads, p.q_len, p.value_dim}; }
Four KeyExtent(const Problem& p) { return {Batches(p), p.kv_heads, p.kv_len, p.head_dim}; }
Four QueryRopeExtent(const Problem& p) { return {Batches(p), p.q_heads, p.q_len, p.rope_dim}; }
Four KeyRopeExtent(const Problem& p) { return {Batches(p), p.kv_heads, p.kv_len, p.rope_dim}; }
Four ValueExtent(const Problem& p) { return {Batches(p), p.kv_heads, p.kv_len, p.value_dim}; }
int64_t StatisticsSize(const Problem& p) { return Batches(p) * p.q_heads * p.q_len * 8; }
int64_t PseSize(const Problem& p) {
  return p.pse.kind == PseKind::kNone ? 0 : p.pse.batch * p.q_heads * p.pse.rows * p.pse.keys;
}
DType PseDType(const Problem& p) {
  return p.pse.kind == PseKind::kSlopes ? DType::kFloat32 : p.dtype;
}

Bench::Bench(const Problem& problem, const Operands& operands, const Variant& variant)
    : random_(variant.memory_seed),
      query_(StoredInput(operands.query, variant, random_)),
      key_(StoredInput(operands.key, variant, random_)),
      value_(StoredInput(operands.value, variant, random_)),
      query_rope_(StoredInput(operands.query_rope, variant, random_)),
      key_rope_(StoredInput(operands.key_rope, variant, random_)),
      dy_(StoredInput(operands.dy, variant, random_)),
      pse_(StoredInput(operands.pse, variant, random_)),
      mask_(StoredInput(operands.mask, variant, random_)),
      sink_(SealedCopy(operands.sink)),
      dropout_mask_(SealedCopy(operands.dropout_mask)) {
  inputs_.query = query_.ConstView();
  inputs_.key = key_.ConstView();
  inputs_.value = value_.ConstView();
  if (problem.rope_dim > 0) {
    inputs_.query_rope = query_rope_.ConstView();
    inputs_.key_rope = key_rope_.ConstView();
  }
  inputs_.pse = ScoreViewOf(pse_, operands.pse);
  inputs_.atten_mask = ScoreViewOf(mask_, operands.mask);
  if (problem.has_sink) inputs_.sink = static_cast<const float*>(sink_.data());
  if (problem.dropout == DropoutKind::kExternal) {
    inputs_.dropout_mask = static_cast<const uint8_t*>(dropout_mask_.data());
  }
  inputs_.seed = operands.philox_seed;
  inputs_.offset = operands.philox_offset;
}

Results RunBackend(const Plan& forward, const Plan& backward, const Operands& operands,
                   const Variant& variant) {
  const Problem& p = forward.problem();
  const Bench bench(p, operands, variant);
  Random random(variant.memory_seed + 1);
  const auto output = [&](const Four& extent) {
    return Stored(p.dtype, extent, PlacementOf(extent, {}, variant, random), variant.fill, random);
  };
  const auto array = [&](int64_t bytes) { return Guarded(bytes, GuardSide::kAfter, variant.fill); };
  ThreadPerCall threads(variant.workers);
  Results results;

  const Stored out = output(OutExtent(p));
  Guarded max = array(StatisticsSize(p) * sizeof(float));
  Guarded sum = array(StatisticsSize(p) * sizeof(float));
  const Status forward_status = Forward(forward,
                                        {.inputs = bench.inputs(),
                                         .out = out.View(),
                                         .softmax_max = static_cast<float*>(max.data()),
                                         .softmax_sum = static_cast<float*>(sum.data())},
                                        threads);
  max.Seal();
  sum.Seal();

  const Stored dq = output(QueryExtent(p));
  const Stored dk = output(KeyExtent(p));
  const Stored dv = output(ValueExtent(p));
  const Stored dq_rope = output(QueryRopeExtent(p));
  const Stored dk_rope = output(KeyRopeExtent(p));
  const bool has_ropes = p.rope_dim > 0;
  const bool wants_dpse = variant.wants_dpse && p.pse.kind != PseKind::kNone;
  const bool wants_dsink = variant.wants_dsink && p.has_sink;
  const Guarded dpse = array(wants_dpse ? PseSize(p) * SizeOf(PseDType(p)) : 0);
  const Guarded dsink = array(wants_dsink ? p.q_heads * sizeof(float) : 0);
  const TensorView out_view = out.View();
  const Status backward_status =
      Backward(backward,
               {.inputs = bench.inputs(),
                .dy = bench.dy(),
                .attention_in = {out_view.data, out_view.dtype, out_view.strides},
                .softmax_max = static_cast<const float*>(max.data()),
                .softmax_sum = static_cast<const float*>(sum.data()),
                .dq = dq.View(),
                .dk = dk.View(),
                .dv = dv.View(),
                .dq_rope = has_ropes ? dq_rope.View() : TensorView{},
                .dk_rope = has_ropes ? dk_rope.View() : TensorView{},
                .dpse = wants_dpse ? DpseView(dpse.data(), p) : ScoreView{},
                .dsink = wants_dsink ? static_cast<float*>(dsink.data()) : nullptr},
               threads);

  bool intact = true;
  results.out = out.Gather(&intact);
  results.max = BytesOf(max);
  results.sum = BytesOf(sum);
  results.dq = dq.Gather(&intact);
  results.dk = dk.Gather(&intact);
  results.dv = dv.Gather(&intact);
  results.dq_rope = dq_rope.Gather(&intact);
  results.dk_rope = dk_rope.Gather(&intact);
  results.dpse = BytesOf(dpse);
  results.dsink = BytesOf(dsink);
  if (!intact) results.trouble = "wrote between the elements of an output";
  if (!backward_status.ok()) results.trouble = "Backward: " + backward_status.message();
  if (!forward_status.ok()) results.trouble = "Forward: " + forward_status.message();
  return results;
}

Results RunReferenceForward(const Problem& problem, const Inputs& inputs) {
  Results r;
  const TensorView out = ContiguousView(r.out, problem.dtype, OutExtent(problem));
  r.max.resize(StatisticsSize(problem) * sizeof(float));
  r.sum.resize(r.max.size());
  reference::Forward(problem, {.inputs = inputs,
                               .out = out,
                               .softmax_max = reinterpret_cast<float*>(r.max.data()),
                               .softmax_sum = reinterpret_cast<float*>(r.sum.data())});
  return r;
}

Results RunReferenceBackward(const Problem& problem, const Inputs& inputs, ConstTensorView dy,
                             const Results& given) {
  Results r;
  std::vector<char> given_out = given.out;
  const TensorView out = ContiguousView(given_out, problem.dtype, OutExtent(problem));
  BackwardArgs args;
  args.inputs = inputs;
  args.dy = dy;
  args.attention_in = {out.data, out.dtype, out.strides};
  args.softmax_max = reinterpret_cast<const float*>(given.max.data());
  args.softmax_sum = reinterpret_cast<const float*>(given.sum.data());
  args.dq = ContiguousView(r.dq, problem.dtype, QueryExtent(problem));
  args.dk = ContiguousView(r.dk, problem.dtype, KeyExtent(problem));
  args.dv = ContiguousView(r.dv, problem.dtype, ValueExtent(problem));
  if (problem.rope_dim > 0) {
    args.dq_rope = ContiguousView(r.dq_rope, problem.dtype, QueryRopeExtent(problem));
    args.dk_rope = ContiguousView(r.dk_rope, problem.dtype, KeyRopeExtent(problem));
  }
  r.dpse.resize(PseSize(problem) * SizeOf(PseDType(problem)));
  if (!r.dpse.empty()) args.dpse = DpseView(r.dpse.data(), problem);
  r.dsink.resize(problem.has_sink ? problem.q_heads * sizeof(float) : 0);
  if (problem.has_sink) args.dsink = reinterpret_cast<float*>(r.dsink.data());
  reference::Backward(problem, args);
  return r;
}

}  // namespace fusion_attention::fuzz
