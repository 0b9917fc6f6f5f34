"""Measures the operator against this machine's FMA peak, against torch and against its own targets.

Slices of all contestants and of pure multiply-adds take turns in one process, so a slow moment of
the machine hits all of them. README.md in this folder says how to read the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import document
import long_sequence
import report
import roofline
import roofline_plot
from fusion_attention import _library
from fusion_attention._errors import FeatureError
from fusion_attention._machine import cores, cpu_name
from fusion_attention.benchmark import plot
from measuring import Effort, column_here
from results import Result, save
from running import run
from targets import TARGETS, Target

_USUAL, _QUICK = Effort(3.0, 1024), Effort(0.3, 192)

#: How often rows that fall short are measured again: the best of more slices is nearer the truth.
_CHANCES, _QUICK_CHANCES = 4, 1


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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--long", action="store_true", help="instead: one head of 1,048,576 tokens")
    what.add_argument("--plot", type=Path, metavar="FILE", help="instead: draw the roofline")
    parser.add_argument("--quick", action="store_true", help="two minutes: one head, short slices")
    parser.add_argument("--filter", default="", help="only rows whose name contains this text")
    parser.add_argument(
        "--threads", type=int, help="only rows of so many threads; threads of --long"
    )
    parser.add_argument("--seconds", type=float, help=f"for each row; default {_USUAL.seconds:g}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, to compare")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into a page")
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


def progress_bar(console: Console) -> Progress:
    """What shows how far a measurement is; nothing where nobody watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal,
        refresh_per_second=1,  # each refresh takes a millisecond of somebody's slice
    )  # fmt: skip


def measure(targets: Sequence[Target], effort: Effort, console: Console) -> list[Result]:
    """Measures, and prints each section of the table when it is complete."""
    results: list[Result] = []
    with progress_bar(console) as progress:
        task = progress.add_task(targets[0].short_name, total=len(targets))
        for target, result in zip(targets, run(targets, effort), strict=True):
            results.append(result)
            following = next(iter(targets[len(results) :]), None)
            progress.update(task, advance=1, description=following and following.short_name)
            if not following or following.section != target.section:
                section = [x for x in results if x.section == target.section]
                console.print(report.section_table(section, console.width))
    return results


def measure_again(
    targets: Sequence[Target], results: list[Result], effort: Effort, console: Console
) -> list[Result]:
    """Gives rows that fall short another chance, when whoever disturbed them may be gone."""
    short = [i for i, result in enumerate(results) if result.verdict == "SHORT"]
    if short:
        console.print(f"[bold]{len(short)} rows fall short; they are measured again[/]")
        later = measure([targets[i] for i in short], effort, console)
        for i, result in zip(short, later, strict=True):
            results[i] = results[i].best_of(result)
    return results


def table(arguments: argparse.Namespace, facts: dict[str, str], console: Console) -> None:
    """The table of targets."""
    effort = _QUICK if arguments.quick else _USUAL
    if arguments.seconds is not None:
        effort = Effort(arguments.seconds, effort.checked_tokens)
    targets = chosen(arguments.filter, arguments.threads)
    if arguments.quick:
        targets = [x.quick() for x in targets]
    console.print(report.title(facts, column_here()))
    results = measure(targets, effort, console)
    for _ in range(_QUICK_CHANCES if arguments.quick else _CHANCES):
        results = measure_again(targets, results, effort, console)
    console.print(report.summary(results, column_here()), soft_wrap=True)
    if arguments.json:
        save(arguments.json, facts, results)
    if arguments.write:
        text = report.markdown(results, facts, column_here())
        document.replace_block(arguments.write, "table", text)


def long(arguments: argparse.Namespace, facts: dict[str, str], console: Console) -> None:
    """One head of 1,048,576 tokens."""
    threads = arguments.threads or min(2, cores())
    rows = [x for x in long_sequence.ROWS if arguments.filter in " ".join(x)]
    if not rows:
        raise FeatureError(f"no row of --long has a name that contains '{arguments.filter}'")
    title = f"{facts['cpu']}, SIMD target {facts['target']}, commit {facts['commit']}"
    title += f", {threads} threads, one head, D = 64, band {long_sequence.BAND}"
    console.print(title)
    results = list(long_sequence.run(rows, threads, console))
    console.print(long_sequence.table(results))
    short = sum(not x.holds for x in results)
    console.print(f"{len(results) - short} of {len(results)} hold")
    if arguments.json:
        content = {"machine": facts, "long": [asdict(x) for x in results]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.write:
        text = f"{title}; {facts['time']}.\n\n{long_sequence.markdown(results)}"
        document.replace_block(arguments.write, "long", text)


def draw(arguments: argparse.Namespace, facts: dict[str, str], console: Console) -> None:
    """The roofline. Every point is measured twice, minutes apart: a neighbour spoils only one."""
    seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    problems = roofline.problems(arguments.quick)
    rounds: list[list[roofline.Point]] = [[], []]
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(rounds) * len(problems))
        for points in rounds:
            for axis, case in problems:
                progress.update(task, description=case.name)
                points += roofline.measure(axis, case, seconds)
                progress.advance(task)
    points = [first.best_of(later) for first, later in zip(*rounds, strict=True)]
    title = f"{facts['cpu']}, SIMD target {facts['target']}, torch {facts['torch']}"
    roofline_plot.draw(points, title, column_here(), arguments.plot)
    console.print(f"drawn: {arguments.plot}")
    if arguments.json:
        content = {"machine": facts, "points": [asdict(x) for x in points]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Does what the command line asks for."""
    arguments = parse_arguments()
    # Without a terminal, rich assumes 80 columns and would cut the table.
    console = Console(width=None if os.isatty(1) else report.WIDTH, highlight=False)
    try:
        if arguments.write:
            document.require(arguments.write, "long" if arguments.long else "table")
        if arguments.plot:
            plot.require(arguments.plot)
        do = long if arguments.long else draw if arguments.plot else table
        do(arguments, machine(), console)
    except FeatureError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
