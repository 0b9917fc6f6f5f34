// Layouts in memory for the fuzzer.
#include "tests/cc/fuzz/tensor.h"

#include <algorithm>
#include <utility>

#include "src/reference/matrix.h"

namespace fusion_attention::fuzz {
namespace {

// `order` lists the axes from the outermost to the innermost.
Placement Place(const Four& extent, const std::array<int, 4>& order, const Four& gaps,
                const std::array<bool, 4>& constant, const std::array<bool, 4>& backwards) {
  Placement placement;
  int64_t step = 1;
  int64_t last = 0;  // farthest from the origin in either direction
  for (int i = 3; i >= 0; --i) {
    const int axis = order[i];
    if (constant[axis]) continue;
    placement.stride[axis] = backwards[axis] ? -step : step;
    const int64_t reach = std::max<int64_t>(extent[axis] - 1, 0) * step;
    (backwards[axis] ? placement.origin : last) += reach;
    step = step * std::max<int64_t>(extent[axis], 1) + gaps[axis];
  }
  // In layout TND every sequence asks for its own batch of the one there is.
  if (extent[0] == 1) placement.stride[0] = 0;
  const bool empty = std::count(extent.begin(), extent.end(), 0) > 0;
  placement.elements = empty ? 0 : placement.origin + last + 1;
  if (empty) placement.origin = 0;
  return placement;
}

}  // namespace

Placement Placement::Contiguous(const Four& extent) {
  return Place(extent, {0, 1, 2, 3}, {}, {}, {});
}

Placement Placement::Scattered(const Four& extent, const std::array<bool, 4>& constant,
                               Random& random) {
  std::array<int, 4> order = {0, 1, 2, 3};
  // Channels stay innermost most of the time: that is where kernels have most to get wrong.
  for (int i = random.Chance(75) ? 2 : 3; i > 0; --i) std::swap(order[i], order[random.Int(0, i)]);
  Four gaps = {};
  std::array<bool, 4> backwards = {};
  for (int axis = 0; axis < 4; ++axis) {
    if (random.Chance(40)) gaps[axis] = random.Int(0, 5);
    if (random.Chance(15)) backwards[axis] = true;
  }
  return Place(extent, order, gaps, constant, backwards);
}

Stored::Stored(DType dtype, const Four& extent, const Placement& placement, unsigned char fill,
               Random& random)
    : dtype_(dtype),
      extent_(extent),
      placement_(placement),
      fill_(fill),
      memory_(placement.elements * SizeOf(dtype),
              random.Chance(70) ? GuardSide::kAfter : GuardSide::kBefore, fill) {}

template <typename Visit>
void Stored::ForEach(Visit visit) const {
  int64_t index = 0;
  for (int64_t a = 0; a < extent_[0]; ++a) {
    for (int64_t b = 0; b < extent_[1]; ++b) {
      for (int64_t c = 0; c < extent_[2]; ++c) {
        for (int64_t d = 0; d < extent_[3]; ++d) {
          visit(index++, placement_.origin + a * placement_.stride[0] + b * placement_.stride[1] +
                             c * placement_.stride[2] + d * placement_.stride[3]);
        }
      }
    }
  }
}

Stored Stored::Input(const Operand& operand, const Placement& placement, unsigned char fill,
                     Random& random) {
  Stored stored(operand.dtype, operand.extent, placement, fill, random);
  char* const bytes = static_cast<char*>(stored.memory_.data());
  stored.ForEach([&](int64_t index, int64_t element) {
    if (!operand.visible[index]) return;
    if (operand.dtype == DType::kUInt8) {
      bytes[element] = static_cast<char>(operand.values[index]);
    } else {
      reference::Store(bytes, operand.dtype, element, operand.values[index]);
    }
  });
  stored.memory_.Seal();
  return stored;
}

void* Stored::first() const {
  return static_cast<char*>(memory_.data()) + placement_.origin * SizeOf(dtype_);
}

std::vector<char> Stored::Gather(bool* intact) const {
  const size_t size = SizeOf(dtype_);
  const char* const bytes = static_cast<const char*>(memory_.data());
  std::vector<char> gathered;
  std::vector<char> rest(bytes, bytes + memory_.bytes());
  ForEach([&](int64_t, int64_t element) {
    const char* const at = bytes + element * static_cast<int64_t>(size);
    gathered.insert(gathered.end(), at, at + size);
    std::fill_n(rest.begin() + element * static_cast<int64_t>(size), size,
                static_cast<char>(fill_));
  });
  const bool untouched =
      std::all_of(rest.begin(), rest.end(), [&](char c) { return c == static_cast<char>(fill_); });
  *intact = *intact && untouched;
  return gathered;
}

Four Stored::ViewStrides(const std::array<bool, 4>& broadcast) const {
  Four strides = placement_.stride;
  for (int axis = 0; axis < 4; ++axis) {
    if (broadcast[axis]) strides[axis] = 0;
  }
  return strides;
}

TensorView Stored::View() const {
  const Four& s = placement_.stride;
  return {.data = first(), .dtype = dtype_, .strides = {s[0], s[1], s[2], s[3]}};
}

ConstTensorView Stored::ConstView() const {
  const TensorView view = View();
  return {.data = view.data, .dtype = view.dtype, .strides = view.strides};
}

}  // namespace fusion_attention::fuzz
