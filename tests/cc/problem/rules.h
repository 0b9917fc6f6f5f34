// The rules as they stand in the sources of src/problem, for the tests that keep the sources, the
// documentation and the tables of tests in step.
#pragma once

#include <string>
#include <vector>

namespace fusion_attention {

struct StatedRule {
  std::string text;                // "to be in [1, 256]"
  std::vector<std::string> hints;  // the sentences that may follow
};

// Every Broken(...) and Unsupported(...) of src/problem/validate*.cc.
std::vector<StatedRule> StatedRules();

// A file of the source tree, white space runs as single blanks.
std::string ReadSource(const std::string& path);

}  // namespace fusion_attention
