// What must hold for one random case, and for random hostile calls.
#pragma once

#include <cstdint>
#include <string>

namespace fusion_attention::fuzz {

// Whether `backend` says that it does not support the case of `seed`, which another one then does.
bool Declines(uint64_t seed, const std::string& backend);

// Runs the case of `seed` on `backend`. Returns nothing if all is well, else one line that says
// what is not.
std::string CheckCase(uint64_t seed, const std::string& backend);

// Validates hostile calls derived from the case of `seed`.
std::string CheckHostileCalls(uint64_t seed);

}  // namespace fusion_attention::fuzz
