"""Runs targets in the process that can: in this one, or in a child with another SIMD target.

The library reads FUSION_ATTENTION_TARGET once a process, so kernels that are not the selected ones
need a process of their own. Each target is measured whole in one process.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from fusion_attention import _library
from measuring import Effort, column_here, measure
from results import Result
from targets import Target, is_native


def simd_of(target: Target) -> str | None:
    """The name of the SIMD target that a target runs on here; None if this machine lacks it."""
    if target.simd == "exact":
        exact = [x for x in _library.targets() if not is_native(x)]
        # Among those without native products the selected one is as good as any.
        return _library.target() if _library.target() in exact else next(iter(exact), None)
    if target.simd == "avx2":
        return "avx2" if "avx2" in _library.targets() else None
    return _library.target()


def run(targets: Sequence[Target], effort: Effort) -> Iterator[Result]:
    """Measures all targets, in the order given.

    Raises:
        FeatureError: Our results are wrong.
    """
    for simd, group in itertools.groupby(targets, key=simd_of):
        if simd is None:
            for target in group:
                reason = f"this CPU has no kernels of kind '{target.simd}'"
                yield Result.of(target, column_here(), "", None, reason)
        elif simd == _library.target():
            for target in group:
                yield measure(target, effort)
        else:
            with child(simd) as process:
                for target in group:
                    yield process.submit(measure, target, effort).result()


def child(simd: str) -> ProcessPoolExecutor:
    """A new process whose kernels are those of a SIMD target; it does one thing at a time."""
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=fresh, initializer=_select, initargs=(simd,))


def _select(simd: str) -> None:
    os.environ["FUSION_ATTENTION_TARGET"] = simd
