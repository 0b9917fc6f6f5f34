"""Results of targets as plain values: how they are judged, and their form in files.

Knows neither clock nor terminal.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from targets import Target, Yardstick


@dataclass(frozen=True)
class Measurement:
    """The seconds of our and the rival's slices, and the FMA peak of the same moments.

    Attributes:
        ours_median: The median slice; `ours` is the best.
        rival: The rival's best slice, if the target has a rival.
        peak: flop/s of the best peak slice, on as many threads as ours ran on.
    """

    threads: int
    flops: int
    ours: float
    ours_median: float
    rival_flops: int
    rival: float | None
    rival_median: float | None
    peak: float
    rounds: int

    @staticmethod
    def of(
        threads: int,
        flops: Sequence[int],
        slices: Sequence[Sequence[float]],
        peaks: Sequence[float],
    ) -> Measurement:
        """Takes our slices and, if there is a rival, the rival's, with the flops of each."""
        rival = slices[1] if len(slices) > 1 else None
        return Measurement(
            threads=threads,
            flops=flops[0],
            ours=min(slices[0]),
            ours_median=statistics.median(slices[0]),
            rival_flops=flops[-1],
            rival=min(rival) if rival else None,
            rival_median=statistics.median(rival) if rival else None,
            peak=max(peaks),
            rounds=len(slices[0]),
        )

    def best_of(self, later: Measurement) -> Measurement:
        """The best slices of two measurements of the same, for each contestant and for the peak."""
        rivals = {}
        if self.rival is not None:
            rivals["rival"] = min(self.rival, later.rival)
            rivals["rival_median"] = min(self.rival_median, later.rival_median)
        return replace(
            self,
            ours=min(self.ours, later.ours),
            ours_median=min(self.ours_median, later.ours_median),
            peak=max(self.peak, later.peak),
            rounds=self.rounds + later.rounds,
            **rivals,
        )

    @property
    def of_peak(self) -> float:
        """Our best slice as a fraction of the FMA peak."""
        return self.flops / self.ours / self.peak

    def value(self, yardstick: Yardstick) -> float:
        """The number that the target is about."""
        match yardstick:
            case Yardstick.OF_PEAK:
                return self.of_peak
            case Yardstick.PER_PAIR:
                return self.flops / self.ours / (self.rival_flops / self.rival)
            case Yardstick.PER_CALL:
                return self.rival / self.ours
            case Yardstick.TIME:
                return self.ours / self.rival
            case Yardstick.ADDED_TIME:
                return self.ours / self.rival - 1


@dataclass(frozen=True)
class Result:
    """What became of a target: a measurement, or why there is none."""

    name: str
    section: str
    problem: str
    direction: str
    yardstick: str
    rival: str
    simd: str
    must: float | None
    aim: float | None
    measurement: Measurement | None
    why_not: str = ""

    @staticmethod
    def of(
        target: Target, column: str, simd: str, measured: Measurement | None, why_not: str = ""
    ) -> Result:
        """The result of a target on a SIMD target, held to the musts of a column."""
        rival = target.rival
        return Result(
            name=target.name,
            section=target.section,
            problem=target.case.name,
            direction=target.direction,
            yardstick=target.yardstick.value,
            rival=rival if isinstance(rival, str) else rival.name if rival else "",
            simd=simd,
            must=target.limit(column),
            aim=target.aim,
            measurement=measured,
            why_not=why_not,
        )

    def best_of(self, later: Result) -> Result:
        """This result with the best slices of it and of a later one of the same target."""
        return replace(self, measurement=self.measurement.best_of(later.measurement))

    @property
    def value(self) -> float | None:
        """The number that the target is about, if it was measured."""
        return self.measurement and self.measurement.value(Yardstick(self.yardstick))

    def reaches(self, limit: float) -> bool:
        """Whether the number is as good as a limit."""
        less_is_better = Yardstick(self.yardstick).less_is_better
        return self.value <= limit if less_is_better else self.value >= limit

    @property
    def verdict(self) -> str:
        """One word: what the number is worth."""
        if self.measurement is None:
            return "not measured"
        if self.must is None:
            return "told"
        if self.reaches(self.aim):
            return "aim"
        return "holds" if self.reaches(self.must) else "SHORT"

    def show(self, value: float | None) -> str:
        """A number of this target's kind as text."""
        if value is None:
            return ""
        match Yardstick(self.yardstick):
            case Yardstick.OF_PEAK:
                return f"{100 * value:.1f} %"
            case Yardstick.ADDED_TIME:
                return f"{100 * value:+.1f} %"
            case _:
                return f"{value:.2f} x"


def to_json(result: Result) -> dict[str, Any]:
    """One result as JSON holds it."""
    return asdict(result)


def from_json(content: dict[str, Any]) -> Result:
    """The result that `to_json` wrote."""
    measured = content["measurement"]
    return Result(**content | {"measurement": measured and Measurement(**measured)})


def save(path: Path, machine: dict[str, str], results: Sequence[Result]) -> None:
    """Writes a file that compare.py reads."""
    content = {"machine": machine, "results": [to_json(x) for x in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, str], list[Result]]:
    """Reads a file that `save` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["machine"], [from_json(x) for x in content["results"]]
