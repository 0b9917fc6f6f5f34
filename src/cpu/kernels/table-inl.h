// Fills a KernelTable with the verbs of one SIMD target.
#if defined(FUSION_ATTENTION_TABLE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FUSION_ATTENTION_TABLE_INL_H_
#undef FUSION_ATTENTION_TABLE_INL_H_
#else
#define FUSION_ATTENTION_TABLE_INL_H_
#endif

#include "src/cpu/kernels/bias-inl.h"
#include "src/cpu/kernels/dropout-inl.h"
#include "src/cpu/kernels/mask-inl.h"
#include "src/cpu/kernels/products-inl.h"
#include "src/cpu/kernels/rows-inl.h"
#include "src/cpu/kernels/softmax-inl.h"
#include "src/cpu/kernels/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fusion_attention::cpu {
namespace HWY_NAMESPACE {

// Operands of the arithmetic type itself are plain rows and tiles: nothing is rounded, rearranged
// or copied.
template <typename T>
const T* PlainSummands(const T* src, int64_t, int64_t, T*) {
  return src;
}
template <typename T>
const T* PlainWeights(T* p, int64_t) {
  return p;
}
template <typename T>
GradientOperands<T> PlainGradientOperands(const T* p, const T* ds, int64_t, int64_t, T*) {
  return {p, ds, ds};
}

template <typename T>
const KernelTable<T>& Table() {
  static constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  static constexpr KernelTable<T> table = {
      .lanes = kLanes,
      .block_rows = kBlockVectors * kLanes,
      .pack = Pack,
      .store = StoreRows,
      .stream = StreamRows<T>,
      .add = AddRows<T>,
      .transpose_back = TransposeBack<T>,
      .add_bias = AddBias,
      .add_line = AddLine<T>,
      .hide_masked = HideMasked,
      .mask = MaskScores<T>,
      .online_softmax = OnlineSoftmax<T>,
      .drop = Drop<T>,
      .deltas = Deltas<T>,
      .probabilities = Probabilities<T>,
      .score_gradients = ScoreGradients<T>,
      .line_products = LineProducts<T>,
      .keep_bits = KeepBits<T>,
      .products = {.pack = Pack,
                   .transpose = Transpose<T>,
                   .summands = PlainSummands<T>,
                   .scores = Scores<T>,
                   .gradient_of_scores = GradientOfScores<T>,
                   .weights = PlainWeights<T>,
                   .accumulate = Accumulate<T>,
                   .accumulate_visible = AccumulateVisible<T>,
                   .gradient_operands = PlainGradientOperands<T>,
                   .gradient_of_keys = GradientOfKeys<T>,
                   .gradient_of_rows = GradientOfRows<T>,
                   .gradient_of_keys_visible = GradientOfKeysVisible<T>,
                   .gradient_of_rows_visible = GradientOfRowsVisible<T>},
  };
  return table;
}

}  // namespace HWY_NAMESPACE
}  // namespace fusion_attention::cpu
HWY_AFTER_NAMESPACE();
#endif
