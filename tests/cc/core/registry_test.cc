// Which backend runs a problem: the first that can, or exactly the one asked for.
#include "src/backend/registry.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "fusion_attention/plan.h"

namespace fusion_attention {
namespace {

class FakeBackend final : public Backend {
 public:
  FakeBackend(std::string name, std::vector<std::string> reasons)
      : name_(std::move(name)), reasons_(std::move(reasons)) {}
  std::string_view Name() const override { return name_; }
  std::vector<std::string> UnsupportedReasons(const Problem&) const override { return reasons_; }
  Status Forward(const Problem&, const ForwardArgs&, ParallelFor&) const override { return {}; }
  Status Backward(const Problem&, const BackwardArgs&, ParallelFor&) const override { return {}; }

 private:
  std::string name_;
  std::vector<std::string> reasons_;
};

const FakeBackend kPicky("picky", {"head_dim is odd", "it is Sunday"});
const FakeBackend kWilling("willing", {});
constexpr const Backend* kBoth[] = {&kPicky, &kWilling};
constexpr const Backend* kOnlyPicky[] = {&kPicky};

TEST(ChooseBackend, TakesTheFirstThatSupportsTheProblem) {
  const auto chosen = ChooseBackend(kBoth, "", {});
  ASSERT_TRUE(chosen.ok());
  EXPECT_EQ(*chosen, &kWilling);
}

TEST(ChooseBackend, TakesTheNamedOne) {
  const auto chosen = ChooseBackend(kBoth, "willing", {});
  ASSERT_TRUE(chosen.ok());
  EXPECT_EQ(*chosen, &kWilling);
}

TEST(ChooseBackend, NeverFallsBackFromANamedOne) {
  const auto chosen = ChooseBackend(kBoth, "picky", {});
  ASSERT_FALSE(chosen.ok());
  EXPECT_EQ(chosen.status().code(), StatusCode::kUnimplemented);
  EXPECT_EQ(chosen.status().message(),
            "npu_fusion_attention: expected backend to support the call, but got backend='picky' "
            "(picky (head_dim is odd; it is Sunday)). Leave it empty to take the first backend "
            "that supports the call.");
}

TEST(ChooseBackend, SaysWhyNoneServes) {
  const auto chosen = ChooseBackend(kOnlyPicky, "", {});
  ASSERT_FALSE(chosen.ok());
  EXPECT_EQ(chosen.status().code(), StatusCode::kUnimplemented);
  EXPECT_NE(chosen.status().message().find("head_dim is odd; it is Sunday"), std::string::npos);
}

TEST(ChooseBackend, ListsTheNames) {
  const auto chosen = ChooseBackend(kBoth, "fast", {});
  ASSERT_FALSE(chosen.ok());
  EXPECT_EQ(chosen.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(chosen.status().message(),
            "npu_fusion_attention: expected backend to be one of picky, willing, but got "
            "backend='fast'. Leave it empty to take the first backend that supports the call.");
}

Call SmallCall() {
  const TensorSpec tensor = {.dtype = DType::kFloat32, .shape = {1, 2, 3, 4}};
  Call call;
  call.query = call.key = call.value = tensor;
  call.head_num = 2;
  call.input_layout = "BNSD";
  return call;
}

TEST(Plan, CpuIsPreferredToTheReference) {
  EXPECT_EQ(BackendNames(), (std::vector<std::string>{"cpu", "reference"}));
}

TEST(Targets, RunnableOnesAreAmongTheBuiltOnesInTheSameOrder) {
  const std::vector<std::string> built = BuiltTargetNames();
  auto next = built.begin();
  for (const std::string& name : TargetNames()) {
    next = std::find(next, built.end(), name);
    ASSERT_NE(next, built.end()) << name;
  }
  EXPECT_FALSE(TargetNames().empty());
}

TEST(Plan, RunsOnTheBackendAskedFor) {
  for (const std::string& name : BackendNames()) {
    const auto plan = Plan::Create(SmallCall(), {.backend = name});
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(plan->backend_name(), name);
    EXPECT_EQ(plan->problem().head_dim, 4);
  }
}

TEST(Plan, RefusesABrokenCall) {
  Call call = SmallCall();
  call.head_num = 3;
  const auto plan = Plan::Create(call);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
}

TEST(Plan, RefusesAnUnknownBackend) {
  const auto plan = Plan::Create(SmallCall(), {.backend = "npu"});
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fusion_attention
