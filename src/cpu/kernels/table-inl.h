// Fills a KernelTable with the verbs of one SIMD target.
#if defined(FUSION_ATTENTION_TABLE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_TABLE_INL_H_
#undef FUSION_ATTENTION_TABLE_INL_H_
#else
#define FUSION_ATTENTION_TABLE_INL_H_
#endif

#include "src/cpu/kernels/dropout-inl.h"
#include "src/cpu/kernels/products-inl.h"
#include "src/cpu/kernels/rows-inl.h"
#include "src/cpu/kernels/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {

template <typename T>
const KernelTable<T>& Table() {
  static constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  static constexpr KernelTable<T> table = {
      .lanes = kLanes,
      .block_rows = kBlockVectors * kLanes,
      .pack = Pack,
      .store = StoreRows,
      .transpose = Transpose<T>,
      .transpose_back = TransposeBack<T>,
      .scores = Scores<T>,
      .add_bias = AddBias<T>,
      .mask = MaskScores<T>,
      .online_softmax = OnlineSoftmax<T>,
      .drop = Drop<T>,
      .accumulate = Accumulate<T>,
      .accumulate_visible = AccumulateVisible<T>,
      .deltas = Deltas<T>,
      .probabilities = Probabilities<T>,
      .score_gradients = ScoreGradients<T>,
      .gradient = Gradient<T>,
      .gradient_visible = GradientVisible<T>,
      .line_products = LineProducts<T>,
      .keep_bits = KeepBits<T>,
  };
  return table;
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
