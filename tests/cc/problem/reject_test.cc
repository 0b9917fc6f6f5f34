// A row for every rule: a valid call with one thing wrong, and the rule that must be named. Rows
// stand in the order of the stages.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/cc/problem/reject_rows.h"
#include "tests/cc/problem/rules.h"

namespace fusion_attention {
namespace {

std::vector<Reject> Rejects() {
  std::vector<Reject> rows = OptionAndTensorRejects();
  for (const auto more : {MaskRejects, PseRejects, InputRejects}) {
    for (Reject& row : more()) rows.push_back(std::move(row));
  }
  return rows;
}

std::string MessageOf(const Reject& row) {
  Call call = row.base();
  row.change(call);
  const StatusOr<Problem> result = Validate(call);
  return result.ok() ? "" : result.status().message();
}

class RejectTest : public testing::TestWithParam<Reject> {};

TEST_P(RejectTest, NamesTheRule) {
  const Reject& row = GetParam();
  ASSERT_TRUE(Validate(row.base()).ok()) << Validate(row.base()).status().message();
  Call call = row.base();
  row.change(call);
  const StatusOr<Problem> result = Validate(call);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), row.code);
  const std::string& message = result.status().message();
  EXPECT_EQ(message.rfind("npu_fusion_attention: expected " + row.expected, 0), 0U) << message;
  EXPECT_NE(message.find(", but got "), std::string::npos) << message;
  EXPECT_LE(message.size(), 400U) << message;
  EXPECT_EQ(message.back(), '.') << message;
  for (const char c : message) EXPECT_TRUE(c >= ' ' && c <= '~') << message;
}

INSTANTIATE_TEST_SUITE_P(Rules, RejectTest, testing::ValuesIn(Rejects()),
                         [](const auto& info) { return std::string(info.param.name); });

// Keeps the table above complete.
TEST(RulesTest, EveryRuleHasARow) {
  const std::vector<StatedRule> rules = StatedRules();
  EXPECT_GE(rules.size(), 60U);
  std::set<std::string> messages;
  for (const Reject& row : Rejects()) messages.insert(MessageOf(row));
  for (const StatedRule& rule : rules) {
    if (rule.text.find("triu(ones") != std::string::npos ||
        rule.text.find("in rows 2048") != std::string::npos) {
      continue;  // about data: mask_content_test.cc
    }
    bool seen = false;
    for (const std::string& message : messages) {
      seen |= message.find(" " + rule.text + ", but got ") != std::string::npos;
    }
    EXPECT_TRUE(seen) << "no row breaks the rule: " << rule.text;
  }
}

// Keeps docs/errors.md complete.
TEST(RulesTest, EveryRuleIsDocumented) {
  const std::string docs = ReadSource("docs/errors.md");
  for (const StatedRule& rule : StatedRules()) {
    EXPECT_NE(docs.find(rule.text), std::string::npos) << rule.text;
    for (const std::string& hint : rule.hints) {
      EXPECT_NE(docs.find(hint), std::string::npos) << hint;
    }
  }
}

// Leaves room for the values in a text of 400 characters.
TEST(RulesTest, TextsAreShort) {
  for (const StatedRule& rule : StatedRules()) {
    for (const std::string& hint : rule.hints)
      EXPECT_LE(rule.text.size() + hint.size(), 200U) << hint;
  }
}

// The first broken rule in the order of the stages is reported, whatever else is wrong.
TEST(RulesTest, OrderIsFixed) {
  Call call = Dense();
  call.sink = TensorSpec{DType::kFloat16, {7}};
  const auto message = [&call] { return Validate(call).status().message(); };
  EXPECT_NE(message().find("expected sink "), std::string::npos);
  SetMask(call, 1, {1, 1});
  EXPECT_NE(message().find("expected atten_mask "), std::string::npos);
  call.actual_seq_qlen = {1};
  EXPECT_NE(message().find("expected actual_seq_qlen "), std::string::npos);
  call.value.shape = {1};
  EXPECT_NE(message().find("expected value "), std::string::npos);
  call.key.dtype = DType::kBool;
  EXPECT_NE(message().find("expected key to have the dtype"), std::string::npos);
  call.keep_prob = 2.0;
  EXPECT_NE(message().find("expected keep_prob "), std::string::npos);
  call.input_layout = "";
  EXPECT_NE(message().find("expected input_layout "), std::string::npos);
}

}  // namespace
}  // namespace fusion_attention
