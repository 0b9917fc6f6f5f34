// Which backends exist, and which one runs a problem.
#pragma once

#include <span>
#include <string_view>

#include "fusion_attention/status.h"
#include "src/backend/backend.h"

namespace fusion_attention {

// All backends in order of preference.
std::span<const Backend* const> Backends();

// The first of `backends` that supports the problem; or, where `name` is not empty, the one of that
// name and no other.
StatusOr<const Backend*> ChooseBackend(std::span<const Backend* const> backends,
                                       std::string_view name, const Problem& problem);

}  // namespace fusion_attention
