// How far a result may be from the reference: derived from what is added up for it, element by
// element.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "tests/cc/fuzz/run.h"

namespace fusion_attention::fuzz {

// For a result g that is a sum of `count` terms x_n = w_n * y_n, each with a weight
// w_n = exp(s_n - m), and every s_n, y_n itself a sum of up to score_dim terms:
//
//   |a - g| <= u_out * (|g| + A) + d_out + u_p * A + sum_n (r * u * (1 + S_n) * |x_n| + t * |y_n|)
//              + t_p * sum_n (1 + |z_n|)
//
// where A is the sum of |x_n|, and
//   u_out, d_out  result and reference round once each, to the output's dtype;
//   u_p           is that of bfloat16 where its products are native, else 0: one factor of each
//                 term, w_n or dS, is rounded to it;
//   t_p, z_n      is then t, else 0: such a product takes factors and partial sums below the
//                 smallest normal number for 0; z_n is the other factor of the product, and for
//                 gradients that are scaled afterwards, by more than 1, both are too;
//   u             is the unit roundoff of the arithmetic;
//   r             is 16 + (count + score_dim) / 2: exp and a quotient err by a few u; a running sum
//                 of terms of one sign is half its last value in the mean, and if the terms are
//                 equal every step may err by u of it in one direction; the quotient counts twice
//                 for float64, where the reference's own sums err too;
//   S_n           is the size of what is added up for s_n: an error of some u of it is a relative
//                 error of w_n;
//   t             is about the smallest normal number: a smaller weight may be taken for 0.
//
// For the gradient of a slope y_n has one more factor, the distance that the slope is multiplied
// with, which is a known number but for a rounding or two.
//
// Where nothing is added up the result is exactly 0.
struct Magnitude {
  double terms = 0;     // A
  double weighted = 0;  // sum of (1 + S_n) * |x_n|
  double factors = 0;   // sum of |y_n|
  double operands = 0;  // sum of 1 + |z_n|
  int64_t count = 0;

  // `other` is z_n, `scale` what the sum is multiplied by in the end.
  void Add(double weight, double factor, double score_size, double other = 0, double scale = 1) {
    const double term = std::fabs(weight * factor);
    terms += term;
    weighted += (1 + score_size) * term;
    factors += std::fabs(factor);
    operands += std::fmax(1, std::fabs(scale)) * (1 + std::fabs(other));
    ++count;
  }
};

// r of a sum of `count` terms.
inline double RoundingSteps(const Problem& problem, int64_t count) {
  const double sides = problem.dtype == DType::kFloat64 ? 2 : 1;
  return 16 + sides * static_cast<double>(count + problem.score_dim()) / 2;
}

// Half the distance from 1 to the next number of `dtype`.
double UnitRoundoff(DType dtype);

// u_p where a backend's products take inputs of `dtype`.
double FactorRoundoff(const std::string& backend, DType dtype);

// u and t of the arithmetic for inputs of `dtype`: float32, or float64 for float64 inputs.
double ArithmeticRoundoff(DType dtype);
double SmallestWeight(DType dtype);

// The smallest distance between numbers of `dtype`. Results and reference round to at most half of
// it where u * |g| underflows.
double SmallestDistance(DType dtype);

struct ForwardMagnitudes {
  std::vector<Magnitude> out;      // [batch, q_heads, q_len, value_dim]
  std::vector<double> score_size;  // S of each statistics entry
};
ForwardMagnitudes MagnitudesOfForward(const Problem& problem, const Inputs& inputs);

struct BackwardMagnitudes {
  std::vector<Magnitude> dq, dk, dv, dq_rope, dk_rope, dpse, dsink;
};
// `given` holds the out, max and sum that the backward pass was given.
BackwardMagnitudes MagnitudesOfBackward(const Problem& problem, const Inputs& inputs,
                                        ConstTensorView dy, const Results& given);

}  // namespace fusion_attention::fuzz
