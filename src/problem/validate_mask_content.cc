// The one rule about tensor data: a compressed atten_mask holds its canonical pattern.
// The modes are computed from their predicates and never read the compressed matrix; a few probes
// tell the mistakes that people make.
#include <algorithm>
#include <iterator>
#include <string>

#include "fusion_attention/problem.h"
#include "src/problem/message.h"

namespace fusion_attention {
namespace {

// What people pass instead of the compressed mask, recognised at the probed elements: masked(row,
// key) and the text that helps.
struct MaskPattern {
  bool (*masked)(int64_t row, int64_t key);
  const char* hint;
};
constexpr MaskPattern kLookalikes[] = {
    {[](int64_t, int64_t) { return false; }, "atten_mask is all False: it masks nothing."},
    {[](int64_t, int64_t) { return true; }, "atten_mask is all True: it masks everything."},
    {[](int64_t row, int64_t key) { return key <= row; },
     "atten_mask looks inverted: True means masked, so pass its logical_not()."},
    {[](int64_t row, int64_t key) { return key < row; },
     "atten_mask looks transposed: mask above the diagonal, not below."},
    {[](int64_t row, int64_t key) { return key >= row; },
     "atten_mask also masks the diagonal: use diagonal=1 in torch.triu."},
};

constexpr int64_t kRectangleBorder = 1024;  // columns of zeros

struct Probe {
  int64_t row;
  int64_t key;
};
constexpr Probe kTriangleProbes[] = {{0, 0},       {0, 1},       {1, 0},       {1, 1},
                                     {0, 2047},    {2047, 0},    {2046, 2047}, {2047, 2046},
                                     {2047, 2047}, {1023, 1024}, {1024, 1023}, {1024, 1024}};
constexpr Probe kRectangleProbes[] = {{2048, 0}, {2048, 1023}, {2048, 1024}, {2048, 2047},
                                      {3071, 0}, {3071, 1023}, {3071, 1024}, {3071, 2047}};

}  // namespace

Status ValidateCompressedMask(const Problem& problem, const uint8_t* data, int64_t row_stride,
                              int64_t key_stride) {
  if (problem.mask.full || problem.mask.source == MaskSource::kDense || data == nullptr) {
    return Status();
  }
  const auto masked = [&](const Probe& p) {
    return data[p.row * row_stride + p.key * key_stride] != 0;
  };
  const auto shown = [&](const Probe& p) {
    return "atten_mask[" + std::to_string(p.row) + ", " + std::to_string(p.key) +
           "]=" + (masked(p) ? "True" : "False");
  };
  for (const Probe& probe : kTriangleProbes) {
    if (masked(probe) == (probe.key > probe.row)) continue;
    const char* hint = "Pass torch.triu(torch.ones(2048, 2048), 1).bool().";
    for (const MaskPattern& pattern : kLookalikes) {
      if (std::all_of(std::begin(kTriangleProbes), std::end(kTriangleProbes),
                      [&](const Probe& p) { return masked(p) == pattern.masked(p.row, p.key); })) {
        hint = pattern.hint;
      }
    }
    return Broken("atten_mask",
                  "to be triu(ones(2048, 2048), 1) in sparse_mode 2, 3, 4, 6, 7 and 8",
                  {shown(probe), ShowInt("sparse_mode", problem.mask.sparse_mode)}, hint);
  }
  if (problem.mask.sparse_mode != 6) return Status();
  for (const Probe& probe : kRectangleProbes) {
    if (masked(probe) == (probe.key >= kRectangleBorder)) continue;
    return Broken("atten_mask",
                  "in rows 2048 to 3071 to be 1024 zeros, then 1024 ones in sparse_mode 6",
                  {shown(probe)}, "The rectangle stands below triu(ones(2048, 2048), 1).");
  }
  return Status();
}

}  // namespace fusion_attention
