// Calls at the edge of what the rules allow are accepted, with the problem that they state.
#include <gtest/gtest.h>

#include <string>

#include "tests/cc/problem/accept_rows.h"

namespace fusion_attention {
namespace {

class AcceptTest : public testing::TestWithParam<Accept> {};

TEST_P(AcceptTest, GivesTheProblem) {
  Call call = GetParam().base();
  GetParam().change(call);
  const StatusOr<Problem> problem = Validate(call);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  EXPECT_TRUE(GetParam().holds(*problem));
}

std::string NameOf(const testing::TestParamInfo<Accept>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Tensors, AcceptTest, testing::ValuesIn(TensorAccepts()), NameOf);
INSTANTIATE_TEST_SUITE_P(Masks, AcceptTest, testing::ValuesIn(MaskAccepts()), NameOf);
INSTANTIATE_TEST_SUITE_P(Inputs, AcceptTest, testing::ValuesIn(InputAccepts()), NameOf);

}  // namespace
}  // namespace fusion_attention
