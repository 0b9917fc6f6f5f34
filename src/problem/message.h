// The wording of rejections: one sentence pattern, and how values are shown in it.
// Knows nothing of the rules themselves (validate.cc states them). Every text is ASCII, at most
// kMaxMessage characters, and depends on the call alone, so that eager, fake and gradient calls
// report the same.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "fusion_attention/call.h"
#include "fusion_attention/status.h"

namespace fusion_attention {

inline constexpr size_t kMaxMessage = 400;

// "npu_fusion_attention: expected <param> <rule>, but got <got[0]> (<got[1]>, ...). <hint>" as
// kInvalidArgument. `got` is cut when the whole would be too long; rule and hint never are.
Status Broken(std::string_view param, std::string_view rule, std::initializer_list<std::string> got,
              std::string_view hint);

// The same text for a call that is legal but not served here: kUnimplemented.
Status Unsupported(std::string_view param, std::string_view rule,
                   std::initializer_list<std::string> got, std::string_view hint);

std::string ShowInt(std::string_view name, int64_t value);                // head_num=8
std::string ShowAt(std::string_view name, int64_t index, int64_t value);  // prefix[3]=7
std::string ShowReal(std::string_view name, double value);                // scale=nan
std::string ShowText(std::string_view name, std::string_view text);       // input_layout='BNS'
std::string ShowShape(std::string_view name, const TensorSpec& tensor);   // query.shape=[2, 4]
std::string ShowDType(std::string_view name, const TensorSpec& tensor);   // query.dtype=bool
std::string ShowShape(std::string_view name, const std::vector<int64_t>& shape);

}  // namespace fusion_attention
