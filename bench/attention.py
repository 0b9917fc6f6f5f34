"""Measures the operator against this machine's FMA peak, against torch and against its own targets.

Slices of all contestants and of pure multiply-adds take turns in one process, so a slow moment of
the machine hits all of them. README.md in this folder says how to read the numbers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import report
from fusion_attention import _library
from fusion_attention._errors import FeatureError
from fusion_attention._machine import cpu_name
from measuring import Effort
from results import Result, save
from running import run
from targets import TARGETS, Target, must_column

_USUAL, _QUICK = Effort(3.0, 1024), Effort(0.3, 192)


def machine() -> dict[str, str]:
    """What one must know to compare two files of results."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "commit": git.stdout.strip() or "unknown",
        "cpu": cpu_name(),
        "target": _library.target(),
        "torch": torch.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: one head, short slices")
    parser.add_argument("--filter", default="", help="only rows whose name contains this text")
    parser.add_argument("--threads", type=int, help="only rows that run on so many threads")
    parser.add_argument("--seconds", type=float, help=f"for each row; default {_USUAL.seconds:g}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, to compare")
    return parser.parse_args()


def chosen(text: str, threads: int | None) -> list[Target]:
    """The targets that the command line asks for.

    Raises:
        FeatureError: There are none.
    """
    targets = [x for x in TARGETS if text in x.name and threads in (None, x.threads)]
    if not targets:
        raise FeatureError(f"no row's name contains '{text}' (with these --threads)")
    return targets


def measure(
    targets: Sequence[Target], effort: Effort, quick: bool, console: Console
) -> list[Result]:
    """Measures, and prints each section of the table when it is complete."""
    results: list[Result] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal,
        refresh_per_second=1,  # each refresh takes a millisecond of somebody's slice
    ) as progress:  # fmt: skip
        task = progress.add_task(targets[0].name, total=len(targets))
        for target, result in zip(targets, run(targets, effort, quick), strict=True):
            results.append(result)
            following = targets[len(results) : len(results) + 1]
            progress.update(task, advance=1, description=following[0].name if following else "")
            if not following or following[0].section != target.section:
                section = [x for x in results if x.section == target.section]
                console.print(report.section_table(section))
    return results


def main() -> None:
    """Runs the chosen rows, shows the table as it grows, and writes the files."""
    arguments = parse_arguments()
    effort = _QUICK if arguments.quick else _USUAL
    if arguments.seconds is not None:
        effort = Effort(arguments.seconds, effort.checked_tokens)
    # Without a terminal, rich assumes 80 columns and would cut the table.
    console = Console(width=None if os.isatty(1) else report.WIDTH, highlight=False)
    facts, column = machine(), must_column(cpu_name())
    try:
        targets = chosen(arguments.filter, arguments.threads)
        console.print(report.title(facts, column))
        results = measure(targets, effort, arguments.quick, console)
    except FeatureError as error:
        sys.exit(str(error))
    console.print(report.summary(results, column))
    if arguments.json:
        save(arguments.json, facts, results)


if __name__ == "__main__":
    main()
