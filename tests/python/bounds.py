"""How far a result may be from the exact one, element by element; nothing is fitted to results.

Let u be the unit roundoff of the arithmetic (2^-24, for float64 inputs 2^-53), s the scaled scores
that an element depends on, A its sum with every term replaced by its absolute value
(`Quantity.magnitude`), g the exact value, a the computed one, u_out the unit roundoff of the stored
type. Then

    |a - g| <= u_out (|g| + A) + subnormal_out / 2 + 16 u (1 + max|s|) A + u_p A + t_p

1. A score is a dot product, times scale. Rounding errors of its terms are of both signs, so it is
   off by a few u|s|, and exp turns an absolute error of its argument into a relative one of the
   weight: (few u)(1 + |s|), the 1 for exp itself. The row's maximum is one of the scores, so
   subtracting it has the same bound, and so has dividing by the sum. Where a bias is added to the
   scaled score, s is the sum of the absolute values of the two: they may cancel.
2. Everything after the weights is sums of products. A product of n factors, each off by few u, is
   off by (few u) of its absolute value; a sum of such terms is off by (few u) A plus the rounding
   of partial sums, which are not larger than A. 16 is for 'few' in all levels together; blocked
   sums keep the number of levels small.
3. Storing rounds once: u_out of the computed value, whose size is at most |g| + A, or half the
   smallest subnormal.
   u_p is 0, or 2^-8 where the products of bfloat16 inputs are native: the output and the gradients
   of query, key and value are sums of products of which one factor, the weight or dS, has been
   rounded to bfloat16. The statistics and the other gradients take the unrounded ones.
4. A weight or a dS under the smallest normal number may be flushed to zero. `magnitude` counts each
   visible one as larger by smallest / (16 u), so that 16 u A covers that loss too. Native products
   of bfloat16 also take their inputs and partial sums below 2^-126 for 0, however small the other
   factor. An element is made of at most 2^16 such numbers (terms times depth, in these tests), and
   what each of them meets later, scale and other factors, is together below 2^10: t_p is 2^-100
   there, else 0.
5. delta = sum_d out * dy uses the stored, rounded out; the exact gradient is computed from that
   same attention_in, so its rounding is no error. softmax_max and softmax_sum are stored in float32
   whatever the inputs' type: softmax_sum belongs to the stored maximum, and a gradient starts from
   both, which is a relative error of 2^-24 (1 + max|s|) of each weight. So for softmax_sum and the
   gradients u is never below 2^-24.
6. softmax_max is a score: A is its dot product of absolute values (and there is no exp: its max|s|
   counts as 0). softmax_sum is a sum of positive terms: A = g.

Where A = 0 nothing was added up, so the result must be exact: rows that see no key, keys that no
row sees, tokens past the last sequence, scale = 0.
"""

import torch
from oracle import Quantity

from fusion_attention._library import target

_UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
_HALF_SUBNORMAL = {
    torch.float64: 0.0,
    torch.float32: 2.0**-150,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-134,
}
# The target that multiplies bfloat16 with the CPU's own instruction, and the results of a product
# that takes a rounded factor.
_NATIVE_BF16 = "avx512_bf16"
_OF_ROUNDED_FACTORS = ("out", "dq", "dk", "dv", "dq_rope", "dk_rope")
_VANISHING = 2.0**-100
# What is computed from the arithmetic's own numbers alone, not from statistics stored in float32.
_OF_OWN_PRECISION = ("out", "softmax_max")


def bound(name: str, exact: Quantity, stored: torch.dtype, inputs: torch.dtype) -> torch.Tensor:
    """The allowed |a - g| of result `name`, stored as `stored`; `inputs`: dtype of query."""
    double = inputs == torch.float64 and name in _OF_OWN_PRECISION
    unit = _UNIT[torch.float64 if double else torch.float32]
    magnitude = exact.magnitude
    allowed = _UNIT[stored] * (exact.value.abs() + magnitude) + _HALF_SUBNORMAL[stored]
    allowed = allowed + 16 * unit * (1 + exact.score) * magnitude
    if inputs == torch.bfloat16 and target() == _NATIVE_BF16:
        allowed = allowed + _VANISHING
        if name in _OF_ROUNDED_FACTORS:
            allowed = allowed + _UNIT[torch.bfloat16] * magnitude
    return torch.where(magnitude == 0, 0.0, allowed)


def excess(name: str, actual: torch.Tensor, exact: Quantity, inputs: torch.dtype) -> float:
    """The largest |a - g| as a fraction of what is allowed there; inf for a NaN."""
    if actual.shape != exact.value.shape:
        return torch.inf
    if actual.numel() == 0:
        return 0.0
    error = (actual.double() - exact.value).abs()
    allowed = bound(name, exact, actual.dtype, inputs)
    ratio = torch.where(error == 0, 0.0, error / allowed)
    return ratio.nan_to_num(torch.inf, torch.inf, torch.inf).max().item()
