"""Runs targets in the process that can: in this one, or in a child with another SIMD target.

The library reads FUSION_ATTENTION_TARGET once a process, so kernels that are not the selected ones
need a process of their own. A child measures its targets one by one and prints a line for each.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from fusion_attention import _library
from fusion_attention._errors import FeatureError
from fusion_attention._machine import cpu_name
from measuring import Effort, measure
from results import Result, from_json, to_json
from targets import TARGETS, Target, is_native, must_column


def simd_of(target: Target) -> str | None:
    """The name of the SIMD target that a target runs on here; None if this machine lacks it."""
    if target.simd == "exact":
        exact = [x for x in _library.targets() if not is_native(x)]
        # Among those without native products the selected one is as good as any.
        return _library.target() if _library.target() in exact else next(iter(exact), None)
    if target.simd == "avx2":
        return "avx2" if "avx2" in _library.targets() else None
    return _library.target()


def run(targets: Sequence[Target], effort: Effort, quick: bool) -> Iterator[Result]:
    """Measures all targets, in the order given.

    Raises:
        FeatureError: Our results are wrong.
    """
    for simd, group in itertools.groupby(targets, key=simd_of):
        if simd is None:
            for target in group:
                reason = f"this CPU has no kernels of kind '{target.simd}'"
                yield Result.of(target, must_column(cpu_name()), "", None, reason)
        elif simd == _library.target():
            for target in group:
                yield measure(target.quick() if quick else target, effort)
        else:
            yield from _in_child(simd, list(group), effort, quick)


def _in_child(
    simd: str, targets: Sequence[Target], effort: Effort, quick: bool
) -> Iterator[Result]:
    """Measures targets in a process that uses a SIMD target."""
    work = {"names": [x.name for x in targets], "effort": asdict(effort), "quick": quick}
    with subprocess.Popen(
        [sys.executable, __file__, json.dumps(work)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"FUSION_ATTENTION_TARGET": simd},
    ) as child:
        for _ in targets:
            line = child.stdout.readline()
            if not line:
                raise FeatureError(f"the process that measures {simd} ended early; see above")
            content = json.loads(line)
            if "error" in content:
                raise FeatureError(f"{simd}: {content['error']}")
            yield from_json(content)


def _serve() -> None:
    """What a child does: measures the targets of its argument and prints a line for each."""
    work = json.loads(sys.argv[1])
    effort, by_name = Effort(**work["effort"]), {target.name: target for target in TARGETS}
    for name in work["names"]:
        target = by_name[name]
        try:
            content = to_json(measure(target.quick() if work["quick"] else target, effort))
        except FeatureError as error:
            content = {"error": str(error)}
        print(json.dumps(content), flush=True)


if __name__ == "__main__":
    _serve()
