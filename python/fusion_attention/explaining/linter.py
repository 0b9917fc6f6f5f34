"""lint: all rules over one call. And the linter as an observer of every call, when it is asked for.

`FUSION_ATTENTION_LINT=warn|error|off` or `set_lint` switch the observer; while it is off no call
pays for it.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

from fusion_attention import _observers
from fusion_attention._call import Call, bind
from fusion_attention._errors import FeatureError
from fusion_attention.explaining import rules_calls, rules_lengths, rules_masks, rules_modes
from fusion_attention.explaining.findings import SEVERITIES, Case, Finding, Rule
from fusion_attention.explaining.reading import read

VARIABLE = "FUSION_ATTENTION_LINT"
RULES: tuple[Rule, ...] = (
    *rules_modes.RULES,
    *rules_masks.RULES,
    *rules_lengths.RULES,
    *rules_calls.RULES,
)
_PACKAGE = str(Path(__file__).resolve().parents[1])


class LintWarning(UserWarning):
    """A finding about a call, with the place of the call."""


def findings_of(case: Case) -> tuple[Finding, ...]:
    """Returns what the rules say, the gravest first."""
    found = [finding for rule in RULES for finding in rule(case)]
    return tuple(sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.id)))


def as_call(args: tuple[Any, ...], kwargs: dict[str, Any], function: str) -> Call:
    """Returns the call that is meant: a Call as it is, or the arguments of `function`."""
    if len(args) == 1 and isinstance(args[0], Call) and not kwargs:
        return args[0]
    return bind(function, *args, **kwargs)


def lint(*args: Any, function: str = "npu_fusion_attention", **kwargs: Any) -> list[Finding]:
    """Returns what is noteworthy about a call, without making it: the gravest first.

    Args:
        *args: The arguments of the call; or one `Call`, as the recorder has them.
        function: The function of the family that the arguments are for.
        **kwargs: The arguments of the call.

    Returns:
        Findings, each with its rule's id, its severity ("wrong", "risk" or "advice"), what it is,
        why it matters here and on the device, and how to mend it.

    Example:
        >>> import torch
        >>> query = torch.empty(1, 8, 1024, 64, device="meta")
        >>> [finding] = lint(query, query, query, 8, "BNSD", scale=0.125, sparse_mode=3)
        >>> print(finding.id, finding.title)
        L01 sparse_mode=3 without atten_mask has no effect: every query sees every key
    """
    return list(findings_of(Case(read(as_call(args, kwargs, function)))))


class _Linter:
    """Warns of the calls that it sees: once for each place, rule and text."""

    def __init__(self, raises: bool) -> None:
        self._raises = raises
        self._said: set[tuple[str, int, str, str]] = set()

    def before(self, call: Call) -> None:
        if not call.function.startswith("npu_fusion_attention"):
            return
        file, line = _caller()
        for finding in findings_of(Case(read(call))):
            if finding.severity == "advice":
                continue
            if finding.severity == "wrong" and self._raises:
                raise RuntimeError(f"{call.function}: {finding}")
            key = (file, line, finding.id, finding.title)
            if key not in self._said:
                self._said.add(key)
                warnings.warn_explicit(f"{call.function}: {finding}", LintWarning, file, line)

    def after(self, call: Call, result: Any) -> None:
        pass


def _caller() -> tuple[str, int]:
    """The file and line outside of this package that made the call."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


_active: _Linter | None = None


def set_lint(mode: str) -> None:
    """Lets the linter look at every later call of this process.

    Eager calls only: a compiled graph has no call to show. "wrong" and "risk" are reported, advice
    is left to `explain`.

    Args:
        mode: "off"; "warn": a LintWarning for each finding, once for each line of code that calls;
            "error": the same, and a RuntimeError for what is wrong. The environment variable
            FUSION_ATTENTION_LINT sets it from outside.

    Raises:
        FeatureError: `mode` is none of these.

    Example:
        >>> set_lint("warn")
        >>> set_lint("off")
    """
    global _active
    if mode not in ("off", "warn", "error"):
        raise FeatureError(f"lint: expected off, warn or error ({VARIABLE}), but got {mode!r}.")
    if _active is not None:
        _observers.remove(_active)
        _active = None
    if mode != "off":
        _active = _Linter(raises=mode == "error")
        _observers.add(_active)
