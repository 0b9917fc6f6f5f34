// Compares a backend with the reference, and with itself under everything that must not matter.
#include "tests/cc/fuzz/check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "src/reference/matrix.h"
#include "tests/cc/fuzz/case.h"
#include "tests/cc/fuzz/magnitude.h"
#include "tests/cc/fuzz/run.h"

namespace fusion_attention::fuzz {
namespace {

std::string Mismatch(const char* output, size_t index, double got, double expected, double bound) {
  char text[200];
  std::snprintf(text, sizeof(text), "%s[%zu] is %.9g, expected %.9g within %.3g", output, index,
                got, expected, bound);
  return text;
}

bool Agrees(double got, double expected, double bound) {
  // What NaN and infinity do to each other on the way may differ; that they are there may not.
  if (!std::isfinite(expected)) return !std::isfinite(got);
  return std::fabs(got - expected) <= bound;
}

std::string CompareWithin(const Problem& p, const char* output, DType dtype, double factor_roundoff,
                          const std::vector<char>& got, const std::vector<char>& expected,
                          const std::vector<Magnitude>& magnitudes) {
  const double vanishing = factor_roundoff > 0 ? SmallestWeight(p.dtype) : 0;
  for (size_t i = 0; i < magnitudes.size(); ++i) {
    const double a = reference::Load(got.data(), dtype, static_cast<int64_t>(i));
    const double g = reference::Load(expected.data(), dtype, static_cast<int64_t>(i));
    const Magnitude& m = magnitudes[i];
    const double bound =
        m.terms == 0 ? 0
                     : UnitRoundoff(dtype) * (std::fabs(g) + m.terms) + factor_roundoff * m.terms +
                           RoundingSteps(p, m.count) * ArithmeticRoundoff(p.dtype) * m.weighted +
                           SmallestWeight(p.dtype) * m.factors + vanishing * m.operands +
                           SmallestDistance(dtype);
    if (!Agrees(a, g, bound)) return Mismatch(output, i, a, g, bound);
  }
  return "";
}

// The maximum, and the normaliser log(sum) + max that the pair stands for. Rows without scores
// report constants.
std::string CompareStatistics(const Problem& p, const Results& got, const Results& expected,
                              const std::vector<double>& score_size) {
  for (size_t i = 0; i < score_size.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    const double max = reference::Load(got.max.data(), DType::kFloat32, index);
    const double sum = reference::Load(got.sum.data(), DType::kFloat32, index);
    const double true_max = reference::Load(expected.max.data(), DType::kFloat32, index);
    const double true_sum = reference::Load(expected.sum.data(), DType::kFloat32, index);
    if (!std::isfinite(true_sum)) {
      if (std::isfinite(sum)) return Mismatch("softmax_sum", i, sum, true_sum, 0);
      continue;
    }
    const bool constant = std::fabs(true_max) == std::numeric_limits<float>::max() || true_sum == 0;
    const double bound = constant ? 0 : RoundingSteps(p, p.kv_len) * 0x1p-24 * (1 + score_size[i]);
    if (!Agrees(max, true_max, bound)) return Mismatch("softmax_max", i, max, true_max, bound);
    if (constant ? sum != true_sum
                 : !Agrees(std::log(sum) + max, std::log(true_sum) + true_max, bound)) {
      return Mismatch("softmax_sum", i, sum, true_sum, bound);
    }
  }
  return "";
}

// Bit for bit, but any NaN for any NaN: which of two NaN a sum hands on is up to the compiler.
std::string CompareBits(const char* output, DType dtype, const std::vector<char>& got,
                        const std::vector<char>& expected) {
  const int64_t size = SizeOf(dtype);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (got[i] == expected[i]) continue;
    const int64_t index = static_cast<int64_t>(i) / size;
    const double a = reference::Load(got.data(), dtype, index);
    const double g = reference::Load(expected.data(), dtype, index);
    if (!(std::isnan(a) && std::isnan(g))) {
      return Mismatch(output, static_cast<size_t>(index), a, g, 0);
    }
  }
  return "";
}

std::string FirstOf(std::initializer_list<std::string> findings) {
  for (const std::string& finding : findings) {
    if (!finding.empty()) return finding;
  }
  return "";
}

std::string CompareWithReference(const Problem& p, const Operands& operands, const Variant& variant,
                                 double factor, const Results& got) {
  const Bench bench(p, operands, variant);
  const Inputs& in = bench.inputs();
  const Results forward = RunReferenceForward(p, in);
  const ForwardMagnitudes f = MagnitudesOfForward(p, in);
  std::string finding =
      FirstOf({CompareStatistics(p, got, forward, f.score_size),
               CompareWithin(p, "attention_out", p.dtype, factor, got.out, forward.out, f.out)});
  if (!finding.empty()) return finding;

  const Results backward = RunReferenceBackward(p, in, bench.dy(), got);
  const BackwardMagnitudes b = MagnitudesOfBackward(p, in, bench.dy(), got);
  return FirstOf(
      {CompareWithin(p, "dq", p.dtype, factor, got.dq, backward.dq, b.dq),
       CompareWithin(p, "dk", p.dtype, factor, got.dk, backward.dk, b.dk),
       CompareWithin(p, "dv", p.dtype, factor, got.dv, backward.dv, b.dv),
       CompareWithin(p, "dq_rope", p.dtype, factor, got.dq_rope, backward.dq_rope, b.dq_rope),
       CompareWithin(p, "dk_rope", p.dtype, factor, got.dk_rope, backward.dk_rope, b.dk_rope),
       CompareWithin(p, "dpse", PseDType(p), 0, got.dpse, backward.dpse, b.dpse),
       CompareWithin(p, "dsink", DType::kFloat32, 0, got.dsink, backward.dsink, b.dsink)});
}

std::string CompareAllBits(const Problem& p, const Results& got, const Results& expected,
                           const Variant& variant) {
  std::string finding = FirstOf(
      {CompareBits("attention_out", p.dtype, got.out, expected.out),
       CompareBits("softmax_max", DType::kFloat32, got.max, expected.max),
       CompareBits("softmax_sum", DType::kFloat32, got.sum, expected.sum),
       CompareBits("dq", p.dtype, got.dq, expected.dq),
       CompareBits("dk", p.dtype, got.dk, expected.dk),
       CompareBits("dv", p.dtype, got.dv, expected.dv),
       CompareBits("dq_rope", p.dtype, got.dq_rope, expected.dq_rope),
       CompareBits("dk_rope", p.dtype, got.dk_rope, expected.dk_rope),
       got.dpse.empty() ? "" : CompareBits("dpse", PseDType(p), got.dpse, expected.dpse),
       got.dsink.empty() ? "" : CompareBits("dsink", DType::kFloat32, got.dsink, expected.dsink)});
  if (finding.empty()) return "";
  char text[160];
  std::snprintf(text, sizeof(text), " (another run; now workers=%d fill=0x%02X memory=%s)",
                variant.workers, variant.fill,
                variant.memory == Memory::kContiguous ? "contiguous" : "scattered");
  return finding + text;
}

bool IsWellWorded(const Status& status) {
  const std::string& text = status.message();
  const bool ascii =
      std::all_of(text.begin(), text.end(), [](char c) { return c >= 32 && c < 127; });
  return ascii && text.size() <= 400 && text.starts_with("npu_fusion_attention: expected ");
}

}  // namespace

bool Declines(uint64_t seed, const std::string& backend) {
  const Call call = MakeCall(seed);
  return Plan::Create(call, {.backend = backend}).status().code() == StatusCode::kUnimplemented &&
         Plan::Create(call).ok();
}

std::string CheckCase(uint64_t seed, const std::string& backend) {
  const Call call = MakeCall(seed);
  const StatusOr<Plan> forward = Plan::Create(call, {.backend = backend});
  if (!forward.ok()) return "refused: " + forward.status().message();
  const Problem& problem = forward->problem();
  const StatusOr<Plan> backward = Plan::Create(WithGradient(call, problem), {.backend = backend});
  if (!backward.ok()) return "refused: " + backward.status().message();
  const Operands operands = MakeOperands(problem, seed);

  // The first run holds NaN wherever nothing may look. The others hold other things elsewhere, run
  // on more threads, and must not differ in a single bit.
  const Variant first = {.memory = Memory::kScattered, .memory_seed = seed};
  const Results results = RunBackend(*forward, *backward, operands, first);
  std::string finding = results.trouble;
  if (finding.empty()) {
    finding = CompareWithReference(problem, operands, first, FactorRoundoff(backend, problem.dtype),
                                   results);
  }
  if (!finding.empty()) return finding;

  const Variant others[] = {
      {.memory = Memory::kContiguous, .memory_seed = seed + 1, .fill = 0x3C, .workers = 2},
      {.memory = Memory::kScattered,
       .memory_seed = seed + 2,
       .fill = 0x00,
       .workers = 3,
       .wants_dpse = false},
      {.memory = Memory::kScattered,
       .memory_seed = seed + 3,
       .fill = 0x7B,
       .workers = 7,
       .wants_dsink = false},
  };
  for (const Variant& variant : others) {
    const Results again = RunBackend(*forward, *backward, operands, variant);
    finding = again.trouble;
    if (finding.empty()) finding = CompareAllBits(problem, again, results, variant);
    if (!finding.empty()) return finding;
  }
  return "";
}

std::string CheckHostileCalls(uint64_t seed) {
  Random random(seed);
  const Call call = MakeCall(seed);
  const StatusOr<Problem> problem = Validate(call);
  if (!problem.ok()) return "refused: " + problem.status().message();
  for (int n = 0; n < 20; ++n) {
    const Call hostile =
        MakeHostile(random.Chance(50) ? call : WithGradient(call, *problem), random);
    const StatusOr<Problem> verdict = Validate(hostile);
    if (!verdict.ok() && !IsWellWorded(verdict.status())) {
      return "badly worded: " + verdict.status().message();
    }
    if (verdict.ok() != Plan::Create(hostile).ok()) return "Validate and Plan::Create disagree";
  }
  return "";
}

}  // namespace fusion_attention::fuzz
