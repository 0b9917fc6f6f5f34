"""The targets: what is measured, against what, and how good it must be. Plain data, no measurement.

A target is one number. Lines of the table that promise several shapes or directions are several
targets with one section. README.md in this folder says how each yardstick is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

import torch

from fusion_attention.benchmark.cases import Case, Direction, Layout
from fusion_attention.benchmark.masks import CAUSAL, FULL, Mask


class Yardstick(Enum):
    """How a number is made of our best slice and that of the rival."""

    OF_PEAK = "of the FMA peak"
    PER_PAIR = "speed per visible pair"
    PER_CALL = "speed"
    ADDED_TIME = "added time"
    TIME = "time"

    @property
    def less_is_better(self) -> bool:
        """Whether `must` is the most, not the least."""
        return self in (Yardstick.ADDED_TIME, Yardstick.TIME)


#: Whom a target is measured against: another problem of ours, torch on the same problem (in one
#: call, or in one for each packed sequence), ourselves on one thread; None: the FMA peak alone.
Rival = Case | Literal["torch", "torch, a call each", "one thread"] | None

#: Which SIMD target a row runs on: the selected one; the best one without 16-bit products; or one
#: by its name.
Simd = Literal["selected", "exact", "native bf16", "avx2"]


@dataclass(frozen=True)
class Must:
    """The limit for each kind of CPU: they differ in what runs beside the multipliers."""

    ice_lake: float
    zen_4: float

    @staticmethod
    def both(limit: float) -> Must:
        """The same limit for all."""
        return Must(limit, limit)


def must_column(amd_family: int) -> Literal["Zen 4", "Ice Lake"]:
    """The column of musts that applies to a CPU of this family of AMD's, 0 for all other CPUs.

    The stricter one to those that add on other ports than they multiply on: AMD's from family 25 on
    (Zen 3, Zen 4, Zen 5).
    """
    return "Zen 4" if amd_family >= 25 else "Ice Lake"


@dataclass(frozen=True)
class Target:
    """One number and its promise.

    Attributes:
        must: None where a number is told and nothing promised.
        quick_heads: How many heads --quick leaves of 4; None where they matter.
    """

    section: str
    case: Case
    direction: Direction
    yardstick: Yardstick
    rival: Rival
    must: Must | None
    aim: float | None
    simd: Simd = "selected"
    threads: int = 1
    quick_heads: int | None = 1

    @property
    def name(self) -> str:
        """A text that tells this target from every other one."""
        return f"{self.section}: {self.short_name}"

    @property
    def short_name(self) -> str:
        """What is run."""
        return f"{self.case.name}, {self.direction}"

    def limit(self, column: str) -> float | None:
        """The must that applies."""
        if self.must is None:
            return None
        return self.must.zen_4 if column == "Zen 4" else self.must.ice_lake

    def quick(self) -> Target:
        """The same with `quick_heads`, where heads only repeat the work."""

        def fewer(case: Case) -> Case:
            plain = case.batch == 1 and case.q_heads == case.kv_heads == 4
            return case.with_heads(self.quick_heads) if plain and self.quick_heads else case

        rival = fewer(self.rival) if isinstance(self.rival, Case) else self.rival
        return replace(self, case=fewer(self.case), rival=rival)


FORWARD_BACKWARD: tuple[Direction, ...] = ("forward", "backward")
_HALVES = (torch.bfloat16, torch.float16)
_DIMS = (64, 128)


def _fp32() -> Iterable[Target]:
    """Fractions of the peak in fp32."""
    rows = (
        ("forward", FULL, 64, Must(0.80, 0.86), 0.94),
        ("forward", FULL, 128, Must(0.82, 0.87), 0.95),
        ("forward", CAUSAL, 64, Must(0.72, 0.82), 0.90),
        ("forward", CAUSAL, 128, Must(0.74, 0.84), 0.92),
        ("backward", FULL, 64, Must(0.80, 0.88), 0.95),
        ("backward", FULL, 128, Must(0.82, 0.87), 0.96),
        ("backward", CAUSAL, 64, Must(0.75, 0.84), 0.91),
        ("backward", CAUSAL, 128, Must(0.75, 0.84), 0.91),
    )
    for direction, mask, head_dim, must, aim in rows:
        case = Case(head_dim, mask)
        yield Target("fp32, of the peak", case, direction, Yardstick.OF_PEAK, None, must, aim)


def _other_dims() -> Iterable[Target]:
    """Head dimensions that are no power of two, small, large, and Dv != D."""
    dims = [(d, None) for d in (32, 72, 80, 96, 192, 256, 512)] + [(192, 128)]
    for head_dim, value_dim in dims:
        case = Case(head_dim, value_dim=value_dim)
        for direction in FORWARD_BACKWARD:
            must, aim = Must.both(0.65), 0.80
            yield Target(
                "fp32, other D, of the peak", case, direction, Yardstick.OF_PEAK, None, must, aim
            )


def _halves() -> Iterable[Target]:
    """16-bit types without native products, which convert while they pack; then native bf16."""
    exact = "16-bit without native products, against fp32"
    for dtype in _HALVES:
        for mask in (FULL, CAUSAL):
            for head_dim in _DIMS:
                fp32 = Case(head_dim, mask)
                case = replace(fp32, dtype=dtype)
                for direction in FORWARD_BACKWARD:
                    yield Target(
                        exact, case, direction, Yardstick.PER_PAIR, fp32,
                        Must.both(0.92), 0.97, simd="exact",
                    )  # fmt: skip
    native = (
        ("forward", FULL, 64, 1.50, 1.70),
        ("forward", FULL, 128, 1.60, 1.80),
        ("forward", CAUSAL, 64, 1.42, 1.65),
        ("forward", CAUSAL, 128, 1.42, 1.65),
        ("backward", FULL, 64, 1.45, 1.70),
        ("backward", FULL, 128, 1.45, 1.70),
        ("backward", CAUSAL, 64, 1.40, 1.62),
        ("backward", CAUSAL, 128, 1.40, 1.62),
    )
    for direction, mask, head_dim, must, aim in native:
        case = Case(head_dim, mask, torch.bfloat16)
        yield Target(
            "native bf16, of the fp32 peak", case, direction, Yardstick.OF_PEAK, None,
            Must.both(must), aim, simd="native bf16",
        )  # fmt: skip


def _avx2() -> Iterable[Target]:
    """The AVX2 kernels, against the peak of 256-bit multiply-adds."""
    for head_dim in _DIMS:
        for direction in FORWARD_BACKWARD:
            yield Target(
                "AVX2 kernels, of AVX2's peak", Case(head_dim), direction, Yardstick.OF_PEAK, None,
                Must.both(0.76), 0.88, simd="avx2",
            )  # fmt: skip


def _layouts() -> Iterable[Target]:
    """Layouts, and rows that lie 4 and 16 KiB apart, against BNSD."""
    layouts: tuple[Layout, ...] = ("BSH", "SBH", "BSND", "TND")
    pairs = [(Case(64, layout=x), Case(64)) for x in layouts]
    # Real shapes with such rows: 16 heads of 64 and 32 heads of 128 fp32 channels, in layout BSH.
    for head_dim, heads in ((64, 16), (128, 32)):
        plain = Case(head_dim, q_len=1024, kv_len=1024).with_heads(heads)
        pairs.append((replace(plain, layout="BSH"), plain))
    for case, plain in pairs:
        if case.layout == "TND":
            case = replace(case, lengths=(case.q_len,))
        row = case.q_heads * case.head_dim * 4
        section = f"layout, rows of {row // 1024} KiB, against BNSD"
        for direction in FORWARD_BACKWARD:
            yield Target(
                section, case, direction, Yardstick.PER_PAIR, plain, Must.both(0.94), 0.98,
                quick_heads=None,
            )  # fmt: skip


_DOCUMENTS = (1203, 311, 100, 1840, 640, 425, 1365, 2000, 565, 180)  # tokens, 8629 in all


def _packed(head_dim: int, mask: Mask, lengths: tuple[int, ...] = _DOCUMENTS) -> Case:
    case = Case(head_dim, mask, layout="TND", lengths=lengths)
    return case.with_tokens(sum(lengths))


def _sparse() -> Iterable[Target]:
    """Structured masks: the speed of a visible pair, against causal or full of the same D."""
    for head_dim in _DIMS:
        band = Case(head_dim, Mask("band", 512))
        cases = (
            (band.with_tokens(8192), CAUSAL),
            (band.with_tokens(32768).with_heads(1), CAUSAL),
            (Case(head_dim, Mask("prefix", 512)), CAUSAL),
            (_packed(head_dim, CAUSAL), CAUSAL),
            (_packed(head_dim, FULL), FULL),
        )
        for case, mask in cases:
            for direction in FORWARD_BACKWARD:
                yield Target(
                    "band, prefix, packed, against causal or full", case, direction,
                    Yardstick.PER_PAIR, Case(head_dim, mask), Must.both(0.85), 0.95,
                )  # fmt: skip


def _dense() -> Iterable[Target]:
    """Dense masks and biases, against none."""
    for head_dim in _DIMS:
        plain = Case(head_dim)
        # Half of a random mask is hidden, but in no tile all: the work is that of no mask. Of
        # blocks, whole tiles are hidden.
        rows = (
            (replace(plain, mask=Mask("random")), Yardstick.PER_CALL, 0.80, 0.92),
            (replace(plain, mask=Mask("blocks", 256)), Yardstick.PER_PAIR, 0.80, 0.92),
            (replace(plain, bias="constant"), Yardstick.PER_CALL, 0.80, 0.92),
            (replace(plain, bias="learned"), Yardstick.PER_CALL, 0.70, 0.85),
        )
        for case, yardstick, must, aim in rows:
            for direction in FORWARD_BACKWARD:
                if case.bias == "learned" and direction == "forward":
                    continue  # the same as without a gradient
                section = "dense mask or pse, against none"
                yield Target(section, case, direction, yardstick, plain, Must.both(must), aim)


def _dropout() -> Iterable[Target]:
    """Dropout, the time it adds."""
    musts = (
        ("forward", 64, 0.35, 0.22),
        ("forward", 128, 0.20, 0.12),
        ("backward", 64, 0.12, 0.08),
        ("backward", 128, 0.12, 0.08),
    )
    for dtype in (torch.float32, *_HALVES):
        for direction, head_dim, must, aim in musts:
            plain = Case(head_dim, dtype=dtype)
            case = replace(plain, keep_prob=0.9)
            yield Target(
                "dropout, added time", case, direction, Yardstick.ADDED_TIME, plain,
                Must.both(must), aim,
            )  # fmt: skip


def _threads() -> Iterable[Target]:
    """Two threads, against one."""
    cases = (
        Case(64).with_heads(1),
        Case(64),
        Case(64, CAUSAL),
        Case(64, CAUSAL).with_heads(1),
        _packed(64, CAUSAL, (4096, 130, 250, 90, 300, 180)),
    )
    for case in cases:
        for direction in FORWARD_BACKWARD:
            yield Target(
                "two threads, against one", case, direction, Yardstick.PER_CALL, "one thread",
                Must.both(1.88), 1.97, threads=2, quick_heads=None,
            )  # fmt: skip


def _against_torch() -> Iterable[Target]:
    """Small calls, what torch fuses, and what it does not."""
    small = Case(16, q_len=8, kv_len=8).with_heads(2)
    calls: tuple[tuple[Direction, float, float], ...] = (
        ("forward", 1.0, 0.6),
        ("training", 1.5, 1.0),
    )
    for direction, must, aim in calls:
        section = "small calls, of torch's time"
        yield Target(section, small, direction, Yardstick.TIME, "torch", Must.both(must), aim)

    fused = (
        ("forward", FULL, 1.25, 1.5),
        ("forward", CAUSAL, 1.6, 2.0),
        ("backward", FULL, 1.35, 1.6),
        ("backward", CAUSAL, 1.7, 2.0),
    )
    for direction, mask, must, aim in fused:
        for head_dim in _DIMS:
            yield Target(
                "fp32, against torch", Case(head_dim, mask), direction, Yardstick.PER_CALL,
                "torch", Must.both(must), aim,
            )  # fmt: skip
    native: tuple[tuple[Direction, float, float], ...] = (
        ("forward", 2.0, 2.5),
        ("backward", 1.6, 2.0),
    )
    for direction, must, aim in native:
        for head_dim in _DIMS:
            yield Target(
                "native bf16, against torch", Case(head_dim, dtype=torch.bfloat16), direction,
                Yardstick.PER_CALL, "torch", Must.both(must), aim, simd="native bf16",
            )  # fmt: skip

    # Dropout and a bias that is learned matter in training only. There torch keeps S x S weights
    # for backward, which quick's one head would let it keep in the cache.
    section = "against torch where it is not fused"
    unfused: tuple[tuple[Case, tuple[Direction, ...], int | None], ...] = (
        (Case(64, keep_prob=0.9), ("training",), None),
        (Case(64, bias="learned"), ("training",), None),
        (Case(64, Mask("band", 512)).with_tokens(8192), ("forward", "training"), 1),
        (_packed(64, CAUSAL), ("forward", "training"), 1),
        (Case(64, q_heads=8, kv_heads=1), ("forward", "training"), None),
        # What people train in.
        (Case(64, keep_prob=0.9, dtype=torch.bfloat16), ("training",), None),
        (Case(64, bias="learned", dtype=torch.bfloat16), ("training",), None),
        (Case(64, q_heads=8, kv_heads=1, dtype=torch.bfloat16), ("forward", "training"), None),
    )
    for case, directions, heads in unfused:
        for direction in directions:
            yield Target(
                section, case, direction, Yardstick.PER_CALL, "torch", Must.both(4.0), 10.0,
                quick_heads=heads,
            )  # fmt: skip
    for direction in ("forward", "training"):
        yield Target(
            "packed sequences against torch in a loop: told, no target", _packed(64, CAUSAL),
            direction, Yardstick.PER_CALL, "torch, a call each", None, None,
        )  # fmt: skip


TARGETS: tuple[Target, ...] = (
    *_fp32(),
    *_other_dims(),
    *_halves(),
    *_avx2(),
    *_layouts(),
    *_sparse(),
    *_dense(),
    *_dropout(),
    *_threads(),
    *_against_torch(),
)


def is_native(simd: str) -> bool:
    """Whether a SIMD target multiplies bf16 numbers without converting them to fp32."""
    return simd.endswith("bf16")
