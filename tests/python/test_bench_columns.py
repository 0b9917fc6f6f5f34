"""Which of the two columns of musts a CPU is held to by the developers' benchmark."""

from __future__ import annotations

import pathlib
import sys
from dataclasses import replace

import pytest

from fusion_attention import _machine

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import measuring
from targets import TARGETS, Must, must_column


def test_the_cpu_decides_which_column_of_musts_applies() -> None:
    columns = {family: must_column(family) for family in (0, 23, 25, 26)}
    assert columns == {0: "Ice Lake", 23: "Ice Lake", 25: "Zen 4", 26: "Zen 4"}


def test_the_family_of_this_cpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    zen_2 = {"vendor_id": "AuthenticAMD", "cpu family": "23"}
    other = {"vendor_id": "GenuineIntel", "cpu family": "25"}
    for info, column in (
        (zen_2, "Ice Lake"), (zen_2 | {"cpu family": "25"}, "Zen 4"), (other, "Ice Lake"),
        ({}, "Ice Lake"), (other | {"flags": "avx512_bf16"}, "Ice Lake"),
    ):  # fmt: skip
        monkeypatch.setattr(_machine, "_cpuinfo", lambda info=info: info)
        assert measuring.column_here() == column


def test_a_limit_is_that_of_the_column() -> None:
    row = replace(TARGETS[0], must=Must(ice_lake=0.1, zen_4=0.2))
    assert (row.limit("Ice Lake"), row.limit("Zen 4")) == (0.1, 0.2)
