// The list of backends and the rule that chooses one. A backend asked for by name is taken or
// refused, never replaced.
#include "src/backend/registry.h"

#include <array>
#include <string>

#include "fusion_attention/plan.h"
#include "src/problem/message.h"

namespace fusion_attention {
namespace {

std::string Join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string joined;
  for (const std::string& part : parts) {
    if (!joined.empty()) joined += separator;
    joined += part;
  }
  return joined;
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
  constexpr std::string_view hint =
      "Leave it empty to take the first backend that supports the call.";
  if (refusals.empty()) {
    return Broken("backend", "to be one of " + Join(NamesOf(backends), ", "),
                  {ShowText("backend", name)}, hint);
  }
  return Unsupported("backend", "to support the call",
                     {ShowText("backend", name), Join(refusals, ", ")}, hint);
}

}  // namespace fusion_attention
