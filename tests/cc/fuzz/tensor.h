// Tensors as the fuzzer sees them: logical values, and any number of ways to lay them out in
// memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "fusion_attention/tensor_view.h"
#include "tests/cc/fuzz/guarded.h"
#include "tests/cc/fuzz/random.h"

namespace fusion_attention::fuzz {

// Extents or strides of (batch, head, token, channel); of (batch, head, row, key) for a mask or a
// pse.
using Four = std::array<int64_t, 4>;

// Logical values, contiguous in the order of the axes.
struct Operand {
  DType dtype = DType::kFloat32;
  Four extent = {0, 0, 0, 0};
  std::array<bool, 4> constant = {};  // the same along this axis, so that its stride may be 0
  std::vector<double> values;
  // Whether any score of the problem reads the element. What none reads may hold anything, NaN
  // included.
  std::vector<bool> visible;

  bool given() const { return !values.empty(); }
  int64_t size() const { return extent[0] * extent[1] * extent[2] * extent[3]; }
  int64_t Index(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return ((a * extent[1] + b) * extent[2] + c) * extent[3] + d;
  }
};

// Where the elements lie.
struct Placement {
  Four stride = {0, 0, 0, 0};
  int64_t origin = 0;    // of element (0, 0, 0, 0)
  int64_t elements = 0;  // from the first used one to the last

  static Placement Contiguous(const Four& extent);
  // Axes in any order, gaps between them, some backwards; stride 0 where `constant`.
  static Placement Scattered(const Four& extent, const std::array<bool, 4>& constant,
                             Random& random);
};

// A tensor in guarded memory.
class Stored {
 public:
  // Elements start as bytes of value `fill`.
  Stored(DType dtype, const Four& extent, const Placement& placement, unsigned char fill,
         Random& random);

  // Writes the visible values of `operand`; everything else keeps the fill. Seals the memory.
  static Stored Input(const Operand& operand, const Placement& placement, unsigned char fill,
                      Random& random);

  void* first() const;  // element (0, 0, 0, 0)
  // The bytes of all elements in logical order. False in `intact` if a byte between elements has
  // changed.
  std::vector<char> Gather(bool* intact) const;

  // `broadcast` names axes along which the view repeats one element.
  Four ViewStrides(const std::array<bool, 4>& broadcast) const;
  ConstTensorView ConstView() const;
  TensorView View() const;

 private:
  template <typename Visit>
  void ForEach(Visit visit) const;

  DType dtype_;
  Four extent_;
  Placement placement_;
  unsigned char fill_;
  Guarded memory_;
};

}  // namespace fusion_attention::fuzz
