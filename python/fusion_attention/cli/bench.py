"""`bench`: how fast our operator and torch's attention are on this machine, as a table and a plot.

The table is rich's if that is installed and plain text otherwise; progress goes to stderr.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fusion_attention import _machine, _optional
from fusion_attention._errors import FeatureError
from fusion_attention.benchmark import against_torch, plot
from fusion_attention.benchmark.against_torch import DIRECTION_NAMES, Row
from fusion_attention.benchmark.cases import DTYPES

HELP = "time our operator and torch's attention on this machine: a table, a plot"

_LENGTHS, _QUICK_LENGTHS = (256, 1024, 4096), (256, 1024)
_SECONDS, _QUICK_SECONDS = 1.5, 0.4
_COLUMNS = ("direction", "dtype", "mask", "tokens", "ours, ms", "torch, ms", "torch / ours")
_COLUMNS += ("ours, Gflop/s",)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive integer"  # argparse puts it into its messages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--quick", action="store_true", help="shorter, under half a minute")
    lengths = " ".join(map(str, _LENGTHS))
    parser.add_argument(
        "--lengths", type=_positive, nargs="+", metavar="S", help=f"tokens; default: {lengths}"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"], help="default: fp32 bf16"
    )
    parser.add_argument("--heads", type=_positive, default=4, metavar="N", help="default: 4")
    parser.add_argument("--head-dim", type=_positive, default=64, metavar="D", help="default: 64")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help=f"default: torch's, {_machine.cores()} cores"
    )
    parser.add_argument("--seconds", type=float, metavar="X", help="for each row")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the times: out.png, out.svg"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(options: argparse.Namespace) -> int:
    """Measures, then prints the table."""
    if options.plot:
        plot.require(options.plot)
    if options.threads:
        torch.set_num_threads(options.threads)
    lengths = options.lengths or (_QUICK_LENGTHS if options.quick else _LENGTHS)
    usual = _QUICK_SECONDS if options.quick else _SECONDS
    seconds = usual if options.seconds is None else options.seconds
    problems = against_torch.cases(lengths, options.dtypes, options.heads, options.head_dim)
    machine = against_torch.machine()
    _show_progress("checking results")
    try:
        against_torch.check(problems)
    except RuntimeError as error:  # such as a head_dim that the operator does not take
        raise FeatureError(str(error)) from None
    rows = []
    total = len(problems) * len(DIRECTION_NAMES)
    _show_progress(f"0 of {total} rows")
    for row in against_torch.measure(problems, seconds):
        rows.append(row)
        _show_progress(f"{len(rows)} of {total} rows")
    _show_progress("")
    rows.sort(key=lambda row: row.direction)  # the table has a block for each direction
    title = (
        f"{machine['cpu']}, {machine['threads']} threads, SIMD target {machine['target']}, "
        f"torch {machine['torch']}, {options.heads} heads of {options.head_dim} channels"
    )
    if options.json:
        content = {
            "machine": machine,
            "heads": options.heads,
            "head_dim": options.head_dim,
            "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        }
        print(json.dumps(content, indent=1))
    else:
        _print_table(rows, title)
    if options.plot:
        plot.draw(rows, title, options.plot)
        print(f"drawn: {options.plot}", file=sys.stderr)
    return 0


def _show_progress(text: str) -> None:
    """Replaces the last line of a terminal; says nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _milliseconds(seconds: float) -> str:
    """Three digits, all of them before an exponent would come."""
    time = seconds * 1e3
    return f"{time:.3g}" if time < 999.5 else f"{time:.0f}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        DIRECTION_NAMES[row.direction],
        row.dtype,
        row.mask,
        str(row.length),
        _milliseconds(row.ours),
        _milliseconds(row.torch),
        f"{row.ratio:.2f}",
        f"{row.flops / row.ours * 1e-9:.0f}",
    )


def _print_table(rows: list[Row], title: str) -> None:
    note = "Median times, taken in turns. torch / ours: how many times as long torch takes."
    if _optional.is_installed("rich"):
        _print_rich(rows, title, note)
        return
    table = [_COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(title)
    for line in table:
        print("  ".join(f"{x:>{width}}" for x, width in zip(line, widths, strict=True)))
    print(note)


def _print_rich(rows: list[Row], title: str, note: str) -> None:
    table: Any = _optional.load("rich.table").Table(title=title, caption=note)
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index < 3 else "right", no_wrap=True)
    before = None
    for row in rows:
        if before is not None and before != (row.direction, row.dtype, row.mask):
            table.add_section()
        before = row.direction, row.dtype, row.mask
        cells = list(_cells(row))
        cells[6] = f"[{'green' if row.ratio >= 1 else 'red'}]{cells[6]}[/]"
        table.add_row(*cells)
    console = _optional.load("rich.console").Console()
    if not console.is_terminal:  # rich assumes 80 columns then, and would cut the table
        console.width = 120
    console.print(table)
