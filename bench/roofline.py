"""The roofline of attention, and where our kernels and torch stand under it, over S and over D.

Attention is bound by arithmetic, so its roof is what the multipliers can do besides the products.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from fma_peak import FmaPeak
from fusion_attention import _library
from fusion_attention.benchmark.cases import Case, Direction
from fusion_attention.benchmark.clock import take_turns
from fusion_attention.benchmark.contestants import Inputs, Ours, Torch
from fusion_attention.benchmark.masks import CAUSAL, FULL
from fusion_attention.benchmark.verify import verify
from results import Measurement
from targets import FORWARD_BACKWARD, Yardstick, is_native

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
HEAD_DIMS = (16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
# Instructions of the multiply pipes for a vector of scores, besides the products: max, exp with
# range reduction, sum; backward exp and dS = P (dP - delta). Where additions, comparisons and
# rounding have pipes of their own (column Zen 4) only multiplications count: score * scale - max,
# x log2(e), 3 of the polynomial, scalef; backward the row's normaliser and dS besides.
_OTHER_WORK = {
    "Ice Lake": {"forward": 10.5, "backward": 9.6},
    "Zen 4": {"forward": 6.0, "backward": 8.0},
}


def roof(head_dim: int, direction: Direction, column: str, native: bool = False) -> float:
    """The share of the fp32 multiply-add peak that nothing can exceed.

    A vector of scores takes 2 D multiply-adds forward and 5 D backward, half as many instructions
    where one does two bf16 products; what softmax asks of the same pipes is no flop.

    Example:
        >>> round(roof(64, "forward", "Ice Lake"), 3), round(roof(128, "backward", "Ice Lake"), 3)
        (0.924, 0.985)
    """
    products = (2 if direction == "forward" else 5) * head_dim
    instructions = products / 2 if native else products
    return products / (instructions + _OTHER_WORK[column][direction])


@dataclass(frozen=True)
class Point:
    """Two marks of the plot: ours and torch's. `axis` is what is varied: "S" or "D"."""

    axis: str
    tokens: int
    head_dim: int
    mask: str
    dtype: str
    direction: Direction
    measurement: Measurement

    @property
    def ours(self) -> float:
        """Our share of the peak."""
        return self.measurement.of_peak

    @property
    def torch(self) -> float:
        """Torch's share of the peak."""
        return self.ours * self.measurement.value(Yardstick.TIME)

    def best_of(self, later: Point) -> Point:
        """This point with the best slices of it and of a later measurement."""
        return replace(self, measurement=self.measurement.best_of(later.measurement))


def problems(quick: bool) -> list[tuple[str, Case]]:
    """What is varied, and the problem. Heads times tokens stay about the same."""
    dtypes = [torch.float32]
    if is_native(_library.target()):
        dtypes.append(torch.bfloat16)
    lengths = LENGTHS[1:-2:2] if quick else LENGTHS
    head_dims = HEAD_DIMS[1::3] if quick else HEAD_DIMS
    over_s = [
        ("S", Case(head_dim, mask, dtype).with_tokens(length).with_heads(max(1, 4096 // length)))
        for dtype in dtypes
        for head_dim in (64, 128)
        for mask in (FULL, CAUSAL)
        for length in lengths
    ]
    over_d = [
        ("D", Case(head_dim, FULL, dtype).with_heads(1))
        for dtype in dtypes
        for head_dim in head_dims
    ]
    return over_s + over_d


def measure(axis: str, case: Case, seconds: float) -> list[Point]:
    """Measures both directions of a problem on one thread.

    Raises:
        FeatureError: Our results are wrong.
    """
    torch.set_num_threads(1)
    small = case.shortened(192)
    inputs = Inputs(small)
    verify(small, inputs, Ours(small, inputs))
    inputs, peak, points = Inputs(case), _peak(), []
    contestants = Ours(case, inputs), Torch(case, inputs)
    for direction in FORWARD_BACKWARD:
        runs = [functools.partial(contestant.run, direction) for contestant in contestants]
        peak_turn, peaks = peak.turn_as_long_as(runs[0])
        *slices, _ = take_turns([*runs, peak_turn], seconds)
        measured = Measurement.of(1, [case.flops(direction)] * 2, slices, peaks)
        kind = case.mask.kind, case.dtype_name, direction
        points.append(Point(axis, case.q_len, case.head_dim, *kind, measured))
    return points


@functools.cache
def _peak() -> FmaPeak:
    return FmaPeak(1, _library.target())
