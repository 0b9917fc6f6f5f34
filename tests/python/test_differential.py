"""The library against the dense float64 oracle on thousands of random calls, on every SIMD target.

FUSION_ATTENTION_CASES=50000 runs more of them. A case is its seed, so each can be repeated.
"""

import collections
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import differential
import pytest
import torch
from cases import draw, features
from simd import simd_targets

CASES = int(os.environ.get("FUSION_ATTENTION_CASES", "3000"))
CHUNK = 50
# Other seeds than those above, so that targets add cases too.
TARGET_SEED = 10_000_000
TARGET_CASES = max(300, CASES // 10)

_PACKED_ONLY = {
    "mode": {"7", "8"},
    "zero_lengths": {"leading", "middle", "trailing", "spare"},
    "statistics": {"TND"},
    "layout": {"TND"},
    "ropes": {"yes"},
}
_DENSE_ONLY = {
    "mode": {"5"},
    "pse": {"BNSS", "1NSS", "BN1S", "1N1S"},
    "mask": {"11SS", "B1SS", "BNSS"},
    "layout": {"BSH", "SBH", "BNSD", "BSND"},
}
_MASKS_OF_MODE = {
    "none": {"none"},
    **{mode: {"SS", "11SS", "B1SS", "BNSS"} for mode in "01"},
    "5": {"B1SS", "BNSS"},
    **{mode: {"compressed"} for mode in "234678"},
}
_SLOPES = {"slopes N", "slopes BN"}
_BIASES = {"BNSS", "1NSS", "BN1S", "1N1S", "compressed"}
_BIASED = {("pse_type", "0"), ("pse_type", "1"), *(("pse", shape) for shape in _BIASES)}
_PSE_OF_TYPE = {"none": {"none"}, "0": _BIASES, "1": _BIASES, "2": _SLOPES, "3": _SLOPES}


def _legal(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether some legal call has both of these features."""
    for (name, value), (other, other_value) in ((first, second), (second, first)):
        if value in _PACKED_ONLY.get(name, ()) and other_value in _DENSE_ONLY.get(other, ()):
            return False
        if name == "mode":
            if other == "mask" and other_value not in _MASKS_OF_MODE[value]:
                return False
            if value in "78" and (other, other_value) in _BIASED:
                return False
            if value == "7" and other in ("pse", "pse_type") and other_value != "none":
                return False
            if (value, other, other_value) == ("7", "lengths", "more queries"):
                return False
        if name == "pse_type":
            if other == "pse" and other_value not in _PSE_OF_TYPE[value]:
                return False
            empties = other == "zero_lengths" and other_value not in ("none", "spare")
            if value in ("0", "1") and empties:
                return False
        if (name, value) == ("ropes", "yes"):
            if other in ("pse", "pse_type", "dropout") and other_value != "none":
                return False
            if other == "mode" and other_value in ("none", "6"):
                return False
            if other == "mask" and other_value == "none":
                return False
        if (name, value) == ("pse", "compressed"):
            if other == "mode" and other_value not in "0234":
                return False
            if other == "mask" and other_value == "none":
                return False
            if other == "lengths" and other_value != "equal":
                return False
            if other == "zero_lengths" and other_value not in ("none", "spare"):
                return False
    return True


def test_cases_cover_every_legal_pair_of_features() -> None:
    seen: collections.Counter = collections.Counter()
    values: dict[str, set[str]] = collections.defaultdict(set)
    for seed in range(3000):
        chosen = sorted(features(draw(seed)).items())
        for name, value in chosen:
            values[name].add(value)
        seen.update(itertools.combinations(chosen, 2))
    singles = sorted((name, value) for name, found in values.items() for value in found)
    pairs = [(a, b) for a, b in itertools.combinations(singles, 2) if a[0] != b[0]]
    assert len(values) == 17
    assert len(singles) == 74
    missing = [pair for pair in pairs if _legal(*pair) and not seen[pair]]
    impossible = [pair for pair in seen if not _legal(*pair)]
    assert not missing
    assert not impossible


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Small cases gain nothing by threads, and the tests already run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
@pytest.mark.usefixtures("_one_thread")
def test_random_cases(first: int) -> None:
    found = [text for seed in range(first, first + CHUNK) for text in differential.failures(seed)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("target", simd_targets())
def test_random_cases_on_every_target(target: str) -> None:
    """The target is chosen once per process, so each has a process of its own."""
    script = pathlib.Path(differential.__file__)
    completed = subprocess.run(
        [sys.executable, str(script), str(TARGET_SEED), str(TARGET_CASES)],
        env=os.environ | {"FUSION_ATTENTION_TARGET": target},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert f"{TARGET_CASES} cases, 0 wrong" in completed.stdout
