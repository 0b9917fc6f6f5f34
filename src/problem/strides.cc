// The layouts as one table: everything below this line sees strides only.
#include "fusion_attention/tensor_view.h"

namespace fusion_attention {

Strides ContiguousStrides(Layout layout, int64_t batch, int64_t heads, int64_t tokens,
                          int64_t dim) {
  const int64_t width = heads * dim;
  switch (layout) {
    case Layout::kBSH:
    case Layout::kBSND:
      return {.batch = tokens * width, .head = dim, .token = width, .channel = 1};
    case Layout::kSBH:
      return {.batch = width, .head = dim, .token = batch * width, .channel = 1};
    case Layout::kBNSD:
      return {.batch = tokens * width, .head = tokens * dim, .token = dim, .channel = 1};
    case Layout::kTND:
      break;
  }
  return {.batch = 0, .head = dim, .token = width, .channel = 1};
}

}  // namespace fusion_attention
