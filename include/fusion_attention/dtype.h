// DType: the element types that the operator knows, and their sizes and names.
#pragma once

#include <cstdint>
#include <string_view>

namespace fusion_attention {

enum class DType : uint8_t {
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,  // an extension of the page, so that gradients can be checked on the real kernels
  kBool,
  kUInt8,
  kOther,  // anything else a caller may hand in; no rule accepts it
};

constexpr int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
    case DType::kBool:
    case DType::kUInt8:
      return 1;
    case DType::kOther:
      break;
  }
  return 0;
}

// As torch spells it.
constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBool:
      return "bool";
    case DType::kUInt8:
      return "uint8";
    case DType::kOther:
      break;
  }
  return "an unsupported dtype";
}

}  // namespace fusion_attention
