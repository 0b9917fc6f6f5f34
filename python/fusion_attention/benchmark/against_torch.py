"""Times our operator and torch's scaled_dot_product_attention on this machine, taking turns.

Results are checked before they are timed. Knows no terminal and no files.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion_attention import __version__, _library, _machine
from fusion_attention.benchmark.cases import DTYPE_NAMES, DTYPES, Case, Direction
from fusion_attention.benchmark.clock import take_turns
from fusion_attention.benchmark.contestants import Inputs, Ours, Torch
from fusion_attention.benchmark.masks import CAUSAL, FULL
from fusion_attention.benchmark.verify import verify

DIRECTIONS: tuple[Direction, ...] = ("forward", "training")
#: What a reader calls them.
DIRECTION_NAMES = {"forward": "forward", "training": "forward + backward"}
# The definition takes memory of S x S in double, so it is compared at the shortest length alone.
_CHECKED_LENGTH = 256


@dataclass(frozen=True)
class Row:
    """One problem and one direction: the median seconds of a slice of each.

    Attributes:
        length: S, of query and of key.
        dtype: "fp32", "bf16" or "fp16".
        causal: Whether a token sees only those before it.
        direction: "forward" or "training".
        ours: Median seconds of ours.
        torch: Median seconds of torch's.
        flops: Multiplications and additions of visible pairs.
        rounds: How many slices of each were timed.
    """

    length: int
    dtype: str
    causal: bool
    direction: str
    ours: float
    torch: float
    flops: int
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times as long torch takes."""
        return self.torch / self.ours

    @property
    def mask(self) -> str:
        """The name of the mask."""
        return "causal" if self.causal else "full"


def cases(lengths: Sequence[int], dtypes: Sequence[str], heads: int, head_dim: int) -> list[Case]:
    """Returns the problems: every dtype and length, without a mask and causal."""
    return [
        Case(
            head_dim=head_dim,
            mask=CAUSAL if causal else FULL,
            dtype=DTYPES[dtype],
            q_heads=heads,
            kv_heads=heads,
            q_len=length,
            kv_len=length,
        )
        for dtype in dtypes
        for causal in (False, True)
        for length in lengths
    ]


def check(problems: Sequence[Case]) -> None:
    """Raises unless our results are right for every kind of problem, at a short length.

    Raises:
        FeatureError: They are not.
    """
    kinds = {(case.dtype, case.mask): case for case in problems}
    for case in kinds.values():
        short = case.shortened(_CHECKED_LENGTH)
        inputs = Inputs(short)
        verify(short, inputs, Ours(short, inputs))


def measure(problems: Sequence[Case], seconds: float) -> Iterator[Row]:
    """Times every problem in both directions, for so many seconds each."""
    for case in problems:
        inputs = Inputs(case)
        contestants = Ours(case, inputs), Torch(case, inputs)
        for direction in DIRECTIONS:
            ours, theirs = take_turns(
                [functools.partial(contestant.run, direction) for contestant in contestants],
                seconds,
            )
            yield Row(
                length=case.q_len,
                dtype=DTYPE_NAMES[case.dtype],
                causal=case.mask == CAUSAL,
                direction=direction,
                ours=statistics.median(ours),
                torch=statistics.median(theirs),
                flops=case.flops(direction),
                rounds=len(ours),
            )


def machine() -> dict[str, Any]:
    """Returns what one must know to compare the times of two machines."""
    return {
        "cpu": _machine.cpu_name(),
        "target": _library.target(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fusion_attention": __version__,
    }
