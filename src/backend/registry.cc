// The list of backends and the rule that chooses one. A backend asked for by name is taken or
// refused, never replaced.
#include "src/backend/registry.h"

#include <array>
#include <string>

#include "fusion_attention/plan.h"

namespace fusion_attention {
namespace {

constexpr size_t kMaxMessage = 400;

std::string Join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string joined;
  for (const std::string& part : parts) {
    if (!joined.empty()) joined += separator;
    joined += part;
  }
  return joined;
}

Status Refuse(StatusCode code, std::string message) {
  if (message.size() > kMaxMessage) message = message.substr(0, kMaxMessage - 3) + "...";
  return Status(code, std::move(message));
}

std::vector<std::string> NamesOf(std::span<const Backend* const> backends) {
  std::vector<std::string> names;
  for (const Backend* backend : backends) names.emplace_back(backend->Name());
  return names;
}

}  // namespace

std::span<const Backend* const> Backends() {
  static const std::array<const Backend*, 2> backends = {&CpuBackend(), &ReferenceBackend()};
  return backends;
}

std::vector<std::string> BackendNames() { return NamesOf(Backends()); }

StatusOr<const Backend*> ChooseBackend(std::span<const Backend* const> backends,
                                       std::string_view name, const Problem& problem) {
  std::vector<std::string> refusals;
  for (const Backend* backend : backends) {
    if (!name.empty() && backend->Name() != name) continue;
    const std::vector<std::string> reasons = backend->UnsupportedReasons(problem);
    if (reasons.empty()) return backend;
    refusals.push_back(std::string(backend->Name()) + " (" + Join(reasons, "; ") + ")");
  }
  if (refusals.empty()) {
    return Refuse(StatusCode::kInvalidArgument,
                  "npu_fusion_attention: expected backend to be one of " +
                      Join(NamesOf(backends), ", ") + ", but got backend=" + std::string(name) +
                      ". Leave it empty to take the first one that supports the call.");
  }
  return Refuse(StatusCode::kUnimplemented,
                "npu_fusion_attention: expected backend to support the call, but got backend=" +
                    Join(refusals, ", ") +
                    (name.empty() ? "."
                                  : ". Leave it empty to take the first one that supports "
                                    "the call."));
}

}  // namespace fusion_attention
