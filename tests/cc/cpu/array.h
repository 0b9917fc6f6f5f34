// An aligned array for calls of single kernels, cleared.
#pragma once

#include <algorithm>

#include "src/cpu/scratch.h"

namespace fusion_attention::cpu {

template <typename E>
class Array {
 public:
  explicit Array(int64_t count)
      : count_(count), memory_(AllocateBuffer(count * static_cast<int64_t>(sizeof(E)))) {
    std::fill_n(data(), count, E{});
  }
  Array Copy() {
    Array copy(count_);
    std::copy_n(data(), count_, copy.data());
    return copy;
  }
  E* data() { return reinterpret_cast<E*>(memory_.get()); }
  E& operator[](int64_t i) { return data()[i]; }

 private:
  int64_t count_;
  Buffer memory_;
};

}  // namespace fusion_attention::cpu
