// Finds the rules in the sources: in each call of Broken() or Unsupported(), the second argument is
// the rule, and string literals that end in a full stop are hints.
#include "tests/cc/problem/rules.h"

#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace fusion_attention {
namespace {

const std::string kRoot = FUSION_ATTENTION_SOURCE_DIR;

// The string literals of one call, adjacent ones joined. `at` stands behind the opening
// parenthesis.
std::vector<std::string> LiteralsOfCall(const std::string& source, size_t at) {
  std::vector<std::string> literals;
  bool joins = false;  // nothing but blanks since the last literal
  for (int depth = 1; at < source.size() && depth > 0; ++at) {
    const char c = source[at];
    if (c == '"') {
      const size_t end = source.find('"', at + 1);
      const std::string piece = source.substr(at + 1, end - at - 1);
      if (joins) {
        literals.back() += piece;
      } else {
        literals.push_back(piece);
      }
      joins = true;
      at = end;
      continue;
    }
    if (!std::isspace(static_cast<unsigned char>(c))) joins = false;
    if (c == '(') ++depth;
    if (c == ')') --depth;
  }
  return literals;
}

}  // namespace

std::vector<StatedRule> StatedRules() {
  std::vector<StatedRule> rules;
  for (const auto& entry : std::filesystem::directory_iterator(kRoot + "/src/problem")) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("validate", 0) != 0 || entry.path().extension() != ".cc") continue;
    const std::string source = ReadSource("src/problem/" + name);
    for (const std::string& verb :
         {std::string("return Broken("), std::string("return Unsupported(")}) {
      for (size_t at = source.find(verb); at != std::string::npos; at = source.find(verb, at + 1)) {
        std::vector<std::string> literals = LiteralsOfCall(source, at + verb.size());
        // The first argument is a literal too, unless the rule serves several parameters.
        if (source[source.find_first_not_of(' ', at + verb.size())] == '"')
          literals.erase(literals.begin());
        StatedRule rule{.text = literals.front(), .hints = {}};
        for (const std::string& literal : literals) {
          if (literal.back() == '.') rule.hints.push_back(literal);
        }
        rules.push_back(rule);
      }
    }
  }
  return rules;
}

std::string ReadSource(const std::string& path) {
  std::ifstream file(kRoot + "/" + path);
  std::istringstream words(std::string(std::istreambuf_iterator<char>(file), {}));
  std::string text;
  for (std::string word; words >> word;) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace fusion_attention
