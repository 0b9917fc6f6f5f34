// The schemas of torch.ops.fusion_attention and their registration. The Python package adds shape
// inference, autograd and the random draw; nothing outside it should call these operators, whose
// arguments may change.
#include <torch/csrc/stable/library.h>

#include "torch/describe.h"
#include "torch/operators.h"

// As struct Arguments takes them off the stack.
#define FUSION_ATTENTION_ARGUMENTS                                                               \
  "Tensor query, Tensor key, Tensor value, Tensor? pse, Tensor? padding_mask, "                  \
  "Tensor? atten_mask, Tensor? sink, Tensor? dropout_mask, Tensor? query_rope, "                 \
  "Tensor? key_rope, Tensor? qlen_tensor, Tensor? kvlen_tensor, int head_num, "                  \
  "str input_layout, float scale, float keep_prob, int pre_tockens, int next_tockens, "          \
  "int inner_precise, int[]? prefix, int[]? actual_seq_qlen, int[]? actual_seq_kvlen, "          \
  "int sparse_mode, str softmax_layout, int pse_type, int[]? q_start_idx, int[]? kv_start_idx, " \
  "int version"

// Plain calls have operators for each layout, and only those of TND have lengths: an argument that
// is not there costs nothing. As Stack::TakePlainArguments() takes the others off the stack.
#define FUSION_ATTENTION_PLAIN_ARGUMENTS(lengths)                               \
  "Tensor query, Tensor key, Tensor value, int head_num, float scale, " lengths \
  "Tensor? atten_mask=None, int sparse_mode=0, int pre_tockens=2147483647, "    \
  "int next_tockens=2147483647"
#define FUSION_ATTENTION_PLAIN_RESULTS \
  "(Tensor out, Tensor softmax_max, Tensor softmax_sum, Tensor softmax_in, int numels)"
#define FUSION_ATTENTION_DEFINE_PLAIN(layout, lengths)                      \
  library.def("forward_plain_" layout "(" FUSION_ATTENTION_PLAIN_ARGUMENTS( \
      lengths) ") -> " FUSION_ATTENTION_PLAIN_RESULTS);                     \
  library.def("backward_plain_" layout                                      \
              "(Tensor dy, Tensor softmax_max, Tensor softmax_sum, Tensor " \
              "attention_in, " FUSION_ATTENTION_PLAIN_ARGUMENTS(            \
                  lengths) ") -> (Tensor dq, Tensor dk, Tensor dv)")
#define FUSION_ATTENTION_IMPLEMENT_PLAIN(layout)                                       \
  library.impl("forward_plain_" layout, [](StableIValue* stack, uint64_t, uint64_t) {  \
    fusion_attention::torch_front_end::ForwardPlain(layout, stack);                    \
  });                                                                                  \
  library.impl("backward_plain_" layout, [](StableIValue* stack, uint64_t, uint64_t) { \
    fusion_attention::torch_front_end::BackwardPlain(layout, stack);                   \
  })

#define FUSION_ATTENTION_CHECKED \
  FUSION_ATTENTION_ARGUMENTS     \
  ", Tensor? dy, Tensor? softmax_max, Tensor? softmax_sum, Tensor? attention_in, int? numels"

STABLE_TORCH_LIBRARY(fusion_attention, library) {
  library.def(
      "forward(" FUSION_ATTENTION_ARGUMENTS
      ", Tensor? seed, Tensor? offset) -> (Tensor out, Tensor softmax_max, Tensor softmax_sum)");
  library.def("backward(" FUSION_ATTENTION_ARGUMENTS
              ", Tensor dy, Tensor softmax_max, Tensor softmax_sum, Tensor attention_in, "
              "int numels, Tensor? seed, Tensor? offset, bool wants_dpse, bool wants_dsink) "
              "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dpse, Tensor dsink, Tensor dq_rope, "
              "Tensor dk_rope)");
  FUSION_ATTENTION_DEFINE_PLAIN("BSH", "");
  FUSION_ATTENTION_DEFINE_PLAIN("SBH", "");
  FUSION_ATTENTION_DEFINE_PLAIN("BNSD", "");
  FUSION_ATTENTION_DEFINE_PLAIN("BSND", "");
  FUSION_ATTENTION_DEFINE_PLAIN("TND", "int[] actual_seq_qlen, int[] actual_seq_kvlen, ");
  library.def("check(" FUSION_ATTENTION_CHECKED ") -> Tensor");
  library.def("check_shapes(" FUSION_ATTENTION_CHECKED ") -> Tensor");
  library.def(
      "dropout_mask(Tensor like, SymInt numels, float drop_prob, Tensor seed, Tensor offset) -> "
      "Tensor");
  library.def("describe(" FUSION_ATTENTION_CHECKED ") -> (Tensor sequences, str facts)");
  library.def("row_keys(Tensor sequence) -> Tensor");
  library.def("targets() -> str");
  library.def("built_targets() -> str");
  library.def("backends() -> str");
  library.def("target() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fusion_attention, CPU, library) {
  library.impl("forward", &fusion_attention::torch_front_end::Forward);
  library.impl("backward", &fusion_attention::torch_front_end::Backward);
  FUSION_ATTENTION_IMPLEMENT_PLAIN("BSH");
  FUSION_ATTENTION_IMPLEMENT_PLAIN("SBH");
  FUSION_ATTENTION_IMPLEMENT_PLAIN("BNSD");
  FUSION_ATTENTION_IMPLEMENT_PLAIN("BSND");
  FUSION_ATTENTION_IMPLEMENT_PLAIN("TND");
  library.impl("check", &fusion_attention::torch_front_end::Check);
  library.impl("dropout_mask", &fusion_attention::torch_front_end::DropoutMask);
}

// For the package's shape inference and its reports, which call these with meta tensors: the Meta
// kernels of the others are that inference.
STABLE_TORCH_LIBRARY_IMPL(fusion_attention, CompositeExplicitAutograd, library) {
  library.impl("check_shapes", &fusion_attention::torch_front_end::Check);
  library.impl("describe", &fusion_attention::torch_front_end::Describe);
  library.impl("row_keys", &fusion_attention::torch_front_end::RowKeys);
  library.impl("targets", &fusion_attention::torch_front_end::Targets);
  library.impl("built_targets", &fusion_attention::torch_front_end::BuiltTargets);
  library.impl("backends", &fusion_attention::torch_front_end::Backends);
  library.impl("target", &fusion_attention::torch_front_end::Target);
}
