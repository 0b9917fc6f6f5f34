// How far a result may be from the reference: derived from what is added up for it, element by
// element.
#pragma once

#include <cmath>
#include <vector>

#include "tests/cc/fuzz/run.h"

namespace fusion_attention::fuzz {

// For a result g that is a sum of terms x_n = w_n * y_n, each with a weight w_n = exp(s_n - m), / l
// perhaps:
//   |a - g| <= u_out * (|g| + A) + d_out + sum_n 16 * u * (1 + S_n) * |x_n| + t * |y_n|,   A =
//   sum_n |x_n|
// u_out, d_out: result and reference round once each, and a product may round one operand to the
// output's dtype. u: the unit roundoff of the arithmetic. Sums of a few hundred terms, exp and a
// quotient err by some u of A each; an error of some u of the size of a score, S_n, is a relative
// one of exp(s_n - m). t: the smallest normal number of the arithmetic; a weight below it may be
// taken for 0. An exact zero follows where nothing is added up.
struct Magnitude {
  double terms = 0;     // A
  double weighted = 0;  // sum of (1 + S_n) * |x_n|
  double factors = 0;   // sum of |y_n|

  void Add(double weight, double factor, double score_size) {
    const double term = std::fabs(weight * factor);
    terms += term;
    weighted += (1 + score_size) * term;
    factors += std::fabs(factor);
  }
};

// Half the distance from 1 to the next number of `dtype`.
double UnitRoundoff(DType dtype);

// u and t of the arithmetic for inputs of `dtype`: float32, or float64 for float64 inputs.
double ArithmeticRoundoff(DType dtype);
double SmallestNormal(DType dtype);

// The smallest distance between numbers of `dtype`. Results and reference round to at most half of
// it where u * |g| underflows.
double SmallestDistance(DType dtype);

struct ForwardMagnitudes {
  std::vector<Magnitude> out;      // [batch, q_heads, q_len, value_dim]
  std::vector<double> score_size;  // S of each statistics entry
};
ForwardMagnitudes MagnitudesOfForward(const Problem& problem, const Inputs& inputs);

struct BackwardMagnitudes {
  std::vector<Magnitude> dq, dk, dv, dpse, dsink;
};
// `given` holds the out, max and sum that the backward pass was given.
BackwardMagnitudes MagnitudesOfBackward(const Problem& problem, const Inputs& inputs,
                                        ConstTensorView dy, const Results& given);

}  // namespace fusion_attention::fuzz
