// Status and StatusOr: how the core reports that a request cannot be served. The core never prints,
// aborts or throws.
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>

namespace fusion_attention {

enum class StatusCode {
  kOk,
  kInvalidArgument,    // the call breaks a rule of the operator
  kUnimplemented,      // the call is legal, but not supported here
  kResourceExhausted,  // memory could not be had
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  // The whole text for the user: "npu_fusion_attention: expected <param> <rule>, but got <value>.
  // <hint>"
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// Either a value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] StatusOr {
 public:
  // Implicit, so that a function can return either. NOLINTNEXTLINE(google-explicit-constructor)
  StatusOr(Status status) : status_(std::move(status)) { assert(!status_.ok()); }
  // NOLINTNEXTLINE(google-explicit-constructor)
  StatusOr(T value) : value_(std::move(value)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  const T& operator*() const { return *value_; }
  const T* operator->() const { return &*value_; }
  T&& TakeValue() { return std::move(*value_); }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace fusion_attention
