"""Decides what of a call is compared with what and how closely, and names likely causes.

A call that a CPU made must give the same bits again; a device's results are held to a tolerance;
records without tensors are compared by digests and statistics.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fusion_attention import __version__, _library
from fusion_attention._errors import FeatureError
from fusion_attention.recording import compare
from fusion_attention.recording.compare import Difference
from fusion_attention.recording.dumps import Other
from fusion_attention.recording.rerun import Rerun, rerun
from fusion_attention.recording.saved import SavedCall
from fusion_attention.recording.tensors import Description

# How far a device may be off, by the dtype of the query. Devices round P and dS to the inputs' type
# and sum in other orders; 5e-3 and 2.5e-2 are what MindSpeed's own tests of ring attention allow.
_TOLERANCES = {"float64": 1e-9, "float32": 2.0**-13, "float16": 5e-3, "bfloat16": 2.5e-2}


@dataclass(frozen=True)
class Comparison:
    """One result held against what is expected of it.

    Attributes:
        name: The result, such as "out" or "backward 1: dq".
        how: "bits", "tolerance 0.005", "value", "digest" or "statistics".
        parts: None if they agree; else where and how far they do not.
    """

    name: str
    how: str
    parts: Difference | str | None = None


Verdict = tuple[list[Comparison], list[str]]


def judge(call: SavedCall, other: Other | None, tolerance: float | None) -> Verdict:
    """Compares a call with its own record, or with `other`; returns comparisons and notes."""
    if other is not None and other.call is not None:
        return _against_record(call, other.call, tolerance)
    if call.kept != "all":
        note = (
            f"recorded with tensors='{call.kept}': it cannot be made again, only compared with "
            "another record (against)"
        )
        return [], [note]
    if other is not None:
        return _against_dump(call, other, tolerance)
    return _against_itself(call, tolerance)


def title(call: SavedCall) -> str:
    """Returns what a reader recognises the call by."""
    layout = call.arguments.get("input_layout")
    return " ".join(filter(None, [call.function, layout, str(_first_tensor(call))]))


def _against_itself(call: SavedCall, tolerance: float | None) -> Verdict:
    notes = []
    if tolerance is None and (device := _first_tensor(call).device) != "cpu":
        tolerance = _tolerance(call)
        notes.append(f"recorded on {device}: compared within a tolerance")
    again = rerun(call)
    comparisons = list(_results(call, again, again.recorded_results, call.results, tolerance))
    passes = zip(again.backward, again.recorded_backward, strict=True)
    for number, (found, recorded) in enumerate(passes, 1):
        comparisons += _gradients(call, number, found, recorded, tolerance)
    if any(x.parts is not None for x in comparisons):
        notes += _causes(call)
    return comparisons, notes


def _against_dump(call: SavedCall, other: Other, tolerance: float | None) -> Verdict:
    tolerance = _tolerance(call) if tolerance is None else tolerance
    dump = other.dump or {}
    again = rerun(call)
    found = {n: x for n, x in again.results.items() if isinstance(x, Tensor)}
    found |= again.backward[0] if again.backward else {}
    shared = [name for name in found if name in dump]
    if not shared:
        raise FeatureError(
            f"{other.source} has {', '.join(dump) or 'no tensors'}, and nothing of this call: "
            f"{', '.join(found)}"
        )
    comparisons = [_tensors(call, "", n, found[n], dump[n], tolerance) for n in shared]
    notes = [f"compared with {other.source}"]
    if ignored := [name for name in dump if name not in found]:
        notes.append(f"not compared, because the call gave no such result: {', '.join(ignored)}")
    return comparisons, notes


def _against_record(call: SavedCall, other: SavedCall, tolerance: float | None) -> Verdict:
    notes = [f"compared with {other.folder}"]
    if call.function != other.function:
        raise FeatureError(
            f"{call.folder} and {other.folder} are calls of different functions: the programs did "
            "not do the same"
        )
    comparisons = list(_arguments(call, other))
    if apart := [x.name for x in comparisons if x.parts is not None]:
        notes.append(f"the programs gave the calls different arguments already: {', '.join(apart)}")
    if len(call.backward) != len(other.backward):
        counts = f"{len(call.backward)} here, {len(other.backward)} there"
        comparisons.append(Comparison("backward passes", "value", counts))
    if call.kept == other.kept == "all":
        tolerance = _tolerance(call) if tolerance is None else tolerance
        again = rerun(call)
        comparisons += _results(call, again, other.tensors()[1], other.results, tolerance)
        for backward, found in zip(other.backward, again.backward, strict=False):
            _, theirs = other.backward_tensors(backward)
            comparisons += _gradients(call, backward.number, found, theirs, tolerance)
        return comparisons, notes
    if "none" in (call.kept, other.kept):
        notes.append("recorded with tensors='none': results cannot be compared")
        return comparisons, notes
    tolerance = _tolerance(call) if tolerance is None else tolerance
    comparisons += _described("", call.results, other.results, tolerance)
    for mine, theirs in zip(call.backward, other.backward, strict=False):
        prefix = f"backward {mine.number}: "
        comparisons += _described(prefix, mine.values, theirs.values, tolerance)
    return comparisons, notes


def _results(
    call: SavedCall,
    again: Rerun,
    elements: dict[str, Tensor],
    values: dict[str, Any],
    tolerance: float | None,
) -> Iterator[Comparison]:
    for name, expected in values.items():
        ours = again.results[name]
        if isinstance(expected, Description):
            if name != "reserved":  # always empty
                yield _tensors(call, "", name, ours, elements[name], tolerance)
        else:
            parts = None if ours == expected else f"{ours} here, {expected} there"
            yield Comparison(name, "value", parts)


def _gradients(
    call: SavedCall,
    number: int,
    found: dict[str, Tensor],
    theirs: dict[str, Tensor],
    tolerance: float | None,
) -> Iterator[Comparison]:
    prefix = f"backward {number}: "
    for name, expected in theirs.items():
        if name in found:
            yield _tensors(call, prefix, name, found[name], expected, tolerance)
        else:
            yield Comparison(prefix + name, "value", "not computed here")


def _tensors(
    call: SavedCall,
    prefix: str,
    name: str,
    ours: Tensor,
    theirs: Tensor,
    tolerance: float | None,
) -> Comparison:
    how = "bits" if tolerance is None else f"tolerance {tolerance:.3g}"
    if ours.shape != theirs.shape:
        shapes = f"its shape is {list(ours.shape)} here and {list(theirs.shape)} there"
        return Comparison(prefix + name, how, shapes)
    apart = compare.parting(ours, theirs, tolerance)
    if not apart.any():
        return Comparison(prefix + name, how)
    picture = _picture(call, name, apart)
    return Comparison(prefix + name, how, compare.difference(ours, theirs, apart, picture))


def _picture(call: SavedCall, name: str, apart: Tensor) -> str:
    """Draws where a result parts, if it has heads and tokens."""
    arguments = call.arguments
    layout = str(arguments.get("input_layout")).upper()
    if "head_num" in arguments:
        heads = arguments["head_num"]
    elif "prev_softmax_max" in arguments:
        heads = arguments["prev_softmax_max"].shape[1]
    else:
        return ""
    if name in ("softmax_max", "softmax_sum"):
        # Packed statistics lie one sequence after the other unless softmax_layout says otherwise.
        packed = arguments.get("softmax_layout", arguments.get("input_softmax_layout"))
        if layout == "TND" and packed != "TND":
            return ""
        return compare.picture_of(apart, layout if layout == "TND" else "BNS8", heads)
    if name not in ("out", "dq", "dk", "dv", "dq_rope", "dk_rope"):
        return ""
    if name in ("dk", "dv", "dk_rope") and layout in ("BSH", "SBH"):
        head_dim = arguments["query"].shape[2] // heads
        heads = arguments["key"].shape[2] // head_dim
    return compare.picture_of(apart, layout, heads)


def _arguments(call: SavedCall, other: SavedCall) -> Iterator[Comparison]:
    """Compares what two programs passed to one call."""
    for name, mine in call.arguments.items():
        theirs = other.arguments[name]
        if isinstance(mine, Description) and isinstance(theirs, Description):
            if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
                yield Comparison(name, "value", f"{mine} here, {theirs} there")
            elif mine.sha256 and theirs.sha256:
                parts = None if mine.sha256 == theirs.sha256 else _figures(mine, theirs)
                yield Comparison(name, "digest", parts)
        elif mine != theirs:
            yield Comparison(name, "value", f"{mine} here, {theirs} there")


def _described(
    prefix: str, mine: dict[str, Any], theirs: dict[str, Any], tolerance: float
) -> Iterator[Comparison]:
    """Compares results whose elements were not kept."""
    for name, value in mine.items():
        expected = theirs.get(name)
        if not isinstance(value, Description) or not isinstance(expected, Description):
            parts = None if value == expected else f"{value} here, {expected} there"
            yield Comparison(prefix + name, "value", parts)
        elif value.sha256 == expected.sha256 and value.shape == expected.shape:
            yield Comparison(prefix + name, "digest")
        else:
            near = value.shape == expected.shape and _near(value, expected, tolerance)
            parts = None if near else _figures(value, expected)
            yield Comparison(prefix + name, "statistics", parts)


def _near(mine: Description, theirs: Description, tolerance: float) -> bool:
    a, b = mine.statistics or {}, theirs.statistics or {}
    if (a.get("nan"), a.get("infinite")) != (b.get("nan"), b.get("infinite")):
        return False
    typical = (b.get("norm") or 0.0) / math.sqrt(max(1, math.prod(theirs.stored_shape)))
    for figure in ("min", "max", "mean", "norm"):
        x, y = a.get(figure), b.get(figure)
        if (x is None) != (y is None):
            return False
        if x is not None and abs(x - y) > tolerance * (abs(y) + typical):
            return False
    return True


def _figures(mine: Description, theirs: Description) -> str:
    def text(description: Description) -> str:
        figures = (description.statistics or {}).items()
        return ", ".join(f"{n} {x:.6g}" for n, x in figures if x is not None)

    return f"{mine} of {text(mine)} here; {theirs} of {text(theirs)} there"


def _first_tensor(call: SavedCall) -> Description:
    return next(x for x in call.arguments.values() if isinstance(x, Description))


def _tolerance(call: SavedCall) -> float:
    dtype = call.autocast or _first_tensor(call).dtype
    return _TOLERANCES.get(dtype, _TOLERANCES["float32"])


def _causes(call: SavedCall) -> list[str]:
    """Returns why a call may give other bits than those that were recorded."""
    recorded, now = call.machine, _library.target()
    causes = []
    if (then := recorded.get("target")) != now:
        text = f"recorded with SIMD target {then}, made again with {now}: last bits may differ"
        if then in _library.targets():
            text += f"; FUSION_ATTENTION_TARGET={then} makes it again with the same"
        causes.append(text)
    if (then := recorded.get("fusion_attention")) != __version__:
        causes.append(f"recorded by fusion_attention {then}, made again by {__version__}")
    if not causes:
        causes.append(
            "SIMD target and version are those of the record, so bits should not differ: "
            "please report this with the call's folder"
        )
    return causes
