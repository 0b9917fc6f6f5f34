// Attention of one query head over two keys, through the installed library.
#include <cstdio>

#include "fusion_attention/forward.h"

int main() {
  using namespace fusion_attention;
  const float query[] = {1, 0}, key[] = {4, 0, 0, 4}, value[] = {1, 2, 3, 4};
  float out[2], softmax_max[8], softmax_sum[8];

  Call call;
  call.query = {DType::kFloat32, {1, 1, 1, 2}};
  call.key = call.value = {DType::kFloat32, {1, 1, 2, 2}};
  call.head_num = 1;
  call.input_layout = "BNSD";
  const StatusOr<Plan> plan = Plan::Create(call);
  if (!plan.ok()) return std::puts(plan.status().message().c_str()), 1;

  const Strides one_head = {.batch = 4, .head = 4, .token = 2, .channel = 1};
  ForwardArgs args;
  args.inputs.query = {query, DType::kFloat32, one_head};
  args.inputs.key = {key, DType::kFloat32, one_head};
  args.inputs.value = {value, DType::kFloat32, one_head};
  args.out = {out, DType::kFloat32, one_head};
  args.softmax_max = softmax_max;
  args.softmax_sum = softmax_sum;
  ThreadPool threads(2);
  const Status status = Forward(*plan, args, threads);
  if (!status.ok()) return std::puts(status.message().c_str()), 1;

  // softmax([4, 0]) = [0.982, 0.018], so out is close to the first value.
  std::printf("out = [%.4f, %.4f] on %s\n", out[0], out[1],
              std::string(plan->backend_name()).c_str());
}
