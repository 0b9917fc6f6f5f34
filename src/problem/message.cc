// Puts rejections into words. See message.h.
#include "src/problem/message.h"

#include <cmath>
#include <cstdio>

namespace fusion_attention {
namespace {

constexpr size_t kMaxItems = 8;  // of a list
constexpr size_t kMaxText = 24;  // characters of a caller's string

Status Compose(StatusCode code, std::string_view param, std::string_view rule,
               std::initializer_list<std::string> got, std::string_view hint) {
  std::string head = "npu_fusion_attention: expected ";
  head.append(param).append(" ").append(rule).append(", but got ");
  const std::string tail = std::string(". ").append(hint);

  std::string values;
  const char* separator = "";
  for (const std::string& value : got) {
    values.append(separator).append(value);
    separator = separator[0] == '\0' ? " (" : ", ";
  }
  if (got.size() > 1) values += ")";
  const size_t room = kMaxMessage - std::min(kMaxMessage, head.size() + tail.size());
  if (values.size() > room) values = values.substr(0, room < 3 ? 0 : room - 3) + "...";
  return Status(code, head + values + tail);
}

}  // namespace

Status Broken(std::string_view param, std::string_view rule, std::initializer_list<std::string> got,
              std::string_view hint) {
  return Compose(StatusCode::kInvalidArgument, param, rule, got, hint);
}

Status Unsupported(std::string_view param, std::string_view rule,
                   std::initializer_list<std::string> got, std::string_view hint) {
  return Compose(StatusCode::kUnimplemented, param, rule, got, hint);
}

std::string ShowInt(std::string_view name, int64_t value) {
  return std::string(name) + "=" + std::to_string(value);
}

std::string ShowAt(std::string_view name, int64_t index, int64_t value) {
  return std::string(name) + "[" + std::to_string(index) + "]=" + std::to_string(value);
}

std::string ShowReal(std::string_view name, double value) {
  char digits[40] = "nan";  // printf may write a sign before nan, which would make the text depend
                            // on the platform
  if (!std::isnan(value)) std::snprintf(digits, sizeof(digits), "%.9g", value);
  return std::string(name) + "=" + digits;
}

std::string ShowText(std::string_view name, std::string_view text) {
  std::string shown = std::string(name) + "='";
  for (const char c : text.substr(0, kMaxText)) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown + (text.size() > kMaxText ? "...'" : "'");
}

std::string ShowShape(std::string_view name, const std::vector<int64_t>& shape) {
  std::string shown = std::string(name) + ".shape=[";
  for (size_t i = 0; i < shape.size() && i < kMaxItems; ++i) {
    shown += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return shown + (shape.size() > kMaxItems ? ", ...]" : "]");
}

std::string ShowShape(std::string_view name, const TensorSpec& tensor) {
  return ShowShape(name, tensor.shape);
}

std::string ShowDType(std::string_view name, const TensorSpec& tensor) {
  return std::string(name) + ".dtype=" + std::string(Name(tensor.dtype));
}

}  // namespace fusion_attention
