"""Measures targets in this process: checks the results, then lets all contestants take turns.

Knows no terminal; running.py decides which process measures which target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from fma_peak import FmaPeak
from fusion_attention import _library
from fusion_attention._machine import amd_family, cores
from fusion_attention.benchmark.cases import Case
from fusion_attention.benchmark.clock import take_turns
from fusion_attention.benchmark.contestants import Contestant, Inputs, Ours, Torch, TorchLoop
from fusion_attention.benchmark.verify import verify
from results import Measurement, Result
from targets import Target, Yardstick, is_native, must_column

# Calls of microseconds are repeated, or the clock would be what is measured.
_SHORTEST_SLICE = 0.5e-3


@dataclass(frozen=True)
class Effort:
    """How much time is spent on a target.

    Attributes:
        seconds: The slices of all contestants together.
        checked_tokens: Results are compared with the definition at no more tokens than these: it
            takes memory and time of S x S.
    """

    seconds: float
    checked_tokens: int


@functools.lru_cache(maxsize=3)
def _contestant(kind: type[Contestant], case: Case) -> Contestant:
    """The last few, ready to run: neighbours in the table share problems."""
    return kind(case, Inputs(case))


@functools.cache
def _checked(case: Case) -> None:
    """Raises FeatureError if our results are wrong; looks once."""
    inputs = Inputs(case)
    verify(case, inputs, Ours(case, inputs))


@functools.cache
def _peak(threads: int) -> FmaPeak:
    return FmaPeak(threads, _library.target())


def column_here() -> Literal["Zen 4", "Ice Lake"]:
    """The column of musts that applies to this machine."""
    return must_column(amd_family())


def why_not(target: Target) -> str:
    """Why this process cannot measure a target; empty if it can."""
    if target.threads > cores():
        return f"this process has only {cores()} core"
    if target.simd == "native bf16" and not is_native(_library.target()):
        return f"no native bf16 ({_library.target()})"
    return ""


def measure(target: Target, effort: Effort) -> Result:
    """Measures one target, if this process can.

    Raises:
        FeatureError: Our results are wrong.
    """
    simd = _library.target()
    if reason := why_not(target):
        return Result.of(target, column_here(), simd, None, reason)
    case, rival, direction = target.case, target.rival, target.direction
    torch.set_num_threads(target.threads)
    _checked(case.shortened(effort.checked_tokens))
    ours = _contestant(Ours, case)
    run = functools.partial(ours.run, direction)
    runs, flops = [run], [case.flops(direction)]
    if isinstance(rival, Case):
        _checked(rival.shortened(effort.checked_tokens))
        runs.append(functools.partial(_contestant(Ours, rival).run, direction))
        flops.append(rival.flops(direction))
    elif rival == "one thread":
        runs = [_on_threads(target.threads, run), _on_threads(1, run)]
    elif rival is not None:
        kind = TorchLoop if rival == "torch, a call each" else Torch
        runs.append(functools.partial(_contestant(kind, case).run, direction))
    peak_turn, peaks = _peak(target.threads).turn_as_long_as(runs[0])
    slices = take_turns(
        [*runs, peak_turn],
        effort.seconds,
        shortest=_SHORTEST_SLICE if target.yardstick == Yardstick.TIME else 0,
    )[: len(runs)]
    return Result.of(
        target, column_here(), simd, Measurement.of(target.threads, flops, slices, peaks)
    )


def _on_threads(threads: int, run: Callable[[], object]) -> Callable[[], object]:
    def set_and_run() -> object:
        torch.set_num_threads(threads)
        return run()

    return set_and_run
