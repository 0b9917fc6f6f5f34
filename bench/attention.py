"""Measures the operator against this machine's FMA peak and against torch's attention.

Slices of our work, of torch's work and of pure multiply-adds take turns in one process, so a slow
moment of the machine hits all of them. README.md in this folder says how to read the numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from fma_peak import FmaPeak
from fusion_attention._errors import FeatureError
from fusion_attention._machine import cores, cpu_name
from fusion_attention.benchmark.cases import DTYPE_NAMES, Case, Direction
from fusion_attention.benchmark.clock import take_turns
from fusion_attention.benchmark.contestants import Inputs, Ours, Torch
from fusion_attention.benchmark.verify import verify
from problems import DIRECTIONS, MORE, PROMISED


@dataclass(frozen=True)
class Result:
    """One row: what was measured, and the seconds and speeds seen."""

    name: str
    dtype: str
    direction: Direction
    threads: int
    flops: int
    ours_best: float
    ours_median: float
    torch_best: float
    torch_median: float
    peak: float  # flop/s of the best peak slice on the same number of threads
    rounds: int

    @property
    def key(self) -> str:
        """What must agree for two results to be compared."""
        return f"{self.name}, {self.direction}, threads={self.threads}"

    @property
    def of_peak(self) -> float:
        """Our best slice as a fraction of the FMA peak."""
        return self.flops / self.ours_best / self.peak


def measure(
    contestants: tuple[Ours, Torch], direction: Direction, peak: FmaPeak, seconds: float
) -> Result:
    """Lets the slices take turns for `seconds`."""
    torch.set_num_threads(peak.threads)
    peaks: list[float] = []
    ours, torchs = take_turns(
        [functools.partial(contestant.run, direction) for contestant in contestants],
        seconds,
        between=lambda: peaks.append(peak.slice()),
    )
    case = contestants[0].case
    return Result(
        name=case.name,
        dtype=DTYPE_NAMES[case.dtype],
        direction=direction,
        threads=peak.threads,
        flops=case.flops(direction),
        ours_best=min(ours),
        ours_median=statistics.median(ours),
        torch_best=min(torchs),
        torch_median=statistics.median(torchs),
        peak=max(peaks),
        rounds=len(ours),
    )


def colored(value: float, least: float, text: str) -> str:
    """Green if the promise holds, red if not."""
    return f"[{'green' if value >= least else 'red'}]{text}[/]"


def add_row(table: Table, result: Result, fp32: Result | None) -> None:
    """Appends one result; `fp32` is the same work in fp32, if measured and another row."""
    best = result.torch_best / result.ours_best
    median = result.torch_median / result.ours_median
    to_fp32 = fp32.ours_best / result.ours_best if fp32 else None
    table.add_row(
        result.name,
        result.direction,
        str(result.threads),
        f"{result.ours_best * 1e3:.2f}",
        f"{result.flops / result.ours_best * 1e-9:.0f}",
        f"{100 * result.of_peak:.1f} %",
        f"{result.torch_best * 1e3:.2f}",
        colored(best, 1, f"{best:.2f}"),
        colored(median, 1, f"{median:.2f}"),
        colored(to_fp32, 0.9, f"{to_fp32:.2f}") if to_fp32 else "",
    )


def new_table(title: str) -> Table:
    """The table without rows."""
    table = Table(title=title)
    table.add_column("problem", no_wrap=True)
    table.add_column("direction")
    for column in (
        "threads",
        "ours, ms",
        "Gflop/s",
        "of FMA peak",
        "torch, ms",
        "torch / ours\nbest",
        "torch / ours\nmedian",
        "our fp32 /\nours",
    ):
        table.add_column(column, justify="right")
    return table


def machine() -> dict[str, str]:
    """What one must know to compare two files of results."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "commit": git.stdout.strip() or "unknown",
        "cpu": cpu_name(),
        "target": os.environ.get("FUSION_ATTENTION_TARGET", "best"),
        "torch": torch.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def summary(rows: list[tuple[Result, Result | None]]) -> str:
    """Counts the rows that keep each promise and names the others; rows are (result, its fp32)."""
    promises = (
        (
            "fp32 at least as fast as torch",
            {r.key: r.torch_best / r.ours_best >= 1 for r, _ in rows if r.dtype == "fp32"},
        ),
        (
            "16-bit at least 0.9 times as fast as fp32",
            {r.key: fp32.ours_best / r.ours_best >= 0.9 for r, fp32 in rows if fp32},
        ),
    )
    lines = []
    for promise, kept in promises:
        if kept:
            lines.append(f"{promise}: {sum(kept.values())} of {len(kept)} rows")
            lines += [f"  not so: {key}" for key, so in kept.items() if not so]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more shapes, layouts, GQA, dropout")
    parser.add_argument("--filter", default="", help="only problems whose name contains this text")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores (<= 2)")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each row")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser.parse_args()


def main() -> None:
    """Runs the chosen cases, shows the table as it grows, and writes the file."""
    arguments = parse_arguments()
    threads = arguments.threads or sorted({1, min(2, cores())})
    cases = [c for c in PROMISED + (MORE if arguments.full else ()) if arguments.filter in c.name]
    if not cases:
        raise SystemExit(f"no problem's name contains '{arguments.filter}'")
    facts = machine()
    peaks = [FmaPeak(count) for count in threads]
    title = f"{facts['cpu']}, target {facts['target']}, torch {facts['torch']}, {facts['commit']}"
    table = new_table(title)
    results: dict[tuple[Case, Direction, int], Result] = {}
    rows: list[tuple[Result, Result | None]] = []
    total = len(cases) * len(DIRECTIONS) * len(peaks)
    # Without a terminal, rich assumes 80 columns and would cut the table.
    console = Console(width=None if os.isatty(1) else 150)
    with Live(table, console=console, refresh_per_second=4) as live:
        for case in cases:
            live.update(Group(table, Spinner("dots", f"checking {case.name}")))
            inputs = Inputs(case)
            contestants = (Ours(case, inputs), Torch(case, inputs))
            try:
                verify(case, inputs, contestants[0])
            except FeatureError as error:
                raise SystemExit(str(error)) from None
            for direction in DIRECTIONS:
                for peak in peaks:
                    progress = f"{len(results) + 1}/{total} {case.name}, {direction}"
                    live.update(Group(table, Spinner("dots", progress)))
                    result = measure(contestants, direction, peak, arguments.seconds)
                    results[case, direction, peak.threads] = result
                    fp32 = results.get((case.in_fp32(), direction, peak.threads))
                    rows.append((result, None if fp32 is result else fp32))
                    add_row(table, *rows[-1])
        live.update(table)
    console.print(f"\n{summary(rows)}")
    if arguments.json:
        content = {"machine": facts, "results": [asdict(result) for result, _ in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
