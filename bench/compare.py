"""Compares two files that attention.py wrote: what became faster, what slower.

Compared is our fraction of the FMA peak, which a busier or hotter machine changes least; the number
of the target itself stands beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from report import WIDTH
from results import Result, load

# Two runs of the same build on a quiet machine differ by less.
NOISE = 0.03


def compared(old: Result, new: Result) -> tuple[str, ...]:
    """One row: the share of the peak before and after, and the target's number."""
    before, after = old.measurement.of_peak, new.measurement.of_peak
    ratio = after / before
    color = "green" if ratio > 1 + NOISE else "red" if ratio < 1 - NOISE else "default"
    return (
        new.name,
        f"{100 * before:.1f} %",
        f"{100 * after:.1f} %",
        f"[{color}]{ratio:.3f}[/]",
        old.show(old.value),
        new.show(new.value),
        new.show(new.must),
    )


def main() -> None:
    """Prints one row for each result that both files have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    (old_machine, olds), (new_machine, news) = load(arguments.old), load(arguments.new)
    old, new = (
        {x.name + x.problem: x for x in results if x.measurement} for results in (olds, news)
    )
    console = Console(highlight=False)
    if not console.is_terminal:  # rich assumes 80 columns then, and would cut the table
        console.width = WIDTH
    for fact in ("cpu", "target", "torch"):
        if old_machine[fact] != new_machine[fact]:
            console.print(f"[yellow]{fact} differs: {old_machine[fact]} / {new_machine[fact]}[/]")
    table = Table(title=f"{old_machine['commit']} -> {new_machine['commit']}")
    table.add_column("row")
    for column in ("of peak, old", "of peak, new", "new / old", "old", "new", "must"):
        table.add_column(column, justify="right", no_wrap=True)
    for key in [key for key in old if key in new]:
        table.add_row(*compared(old[key], new[key]))
    console.print(table)
    for title, some, other in (("old", old, new), ("new", new, old)):
        if only := [key for key in some if key not in other]:
            console.print(f"only in {title}: {len(only)} rows")


if __name__ == "__main__":
    main()
