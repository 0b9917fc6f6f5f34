// TorchThreads: PyTorch's intra-op threads, lent to the operator. It obeys torch.set_num_threads()
// and runs serially inside another parallel region. A child of fork() gets threads of our own: the
// parent's OpenMP threads do not exist there, and waiting for them would hang, as PyTorch's own
// operators do. It knows nothing of tensors.
#pragma once

#include <functional>

#include "fusion_attention/parallel.h"

namespace fusion_attention::torch_front_end {

class TorchThreads final : public ParallelFor {
 public:
  int Workers() const override;
  void Run(int workers, const std::function<void(int)>& work) override;
};

}  // namespace fusion_attention::torch_front_end
