"""Compares two files that attention.py wrote: what became faster, what slower.

Compared is our fraction of the FMA peak, which a busier or hotter machine changes least.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attention import Result

# Two runs of the same build on a quiet machine differ by less.
NOISE = 0.03


def load(path: Path) -> tuple[dict[str, Any], dict[str, Result]]:
    """The facts about the machine, and the results by key."""
    content = json.loads(path.read_text())
    results = [Result(**row) for row in content["results"]]
    return content["machine"], {result.key: result for result in results}


def main() -> None:
    """Prints one row for each result that both files have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    (old_machine, old), (new_machine, new) = load(arguments.old), load(arguments.new)
    console = Console()
    for fact in ("cpu", "target", "torch"):
        if old_machine[fact] != new_machine[fact]:
            console.print(f"[yellow]{fact} differs: {old_machine[fact]} / {new_machine[fact]}[/]")
    table = Table(title=f"{old_machine['commit']} -> {new_machine['commit']}")
    for column in ("problem", "of peak, old", "of peak, new", "new / old"):
        table.add_column(column)
    for key in [key for key in old if key in new]:
        ratio = new[key].of_peak / old[key].of_peak
        color = "green" if ratio > 1 + NOISE else "red" if ratio < 1 - NOISE else "default"
        before, after = (f"{100 * x[key].of_peak:.1f} %" for x in (old, new))
        table.add_row(key, before, after, f"[{color}]{ratio:.3f}[/]")
    console.print(table)
    for title, some, other in (("old", old, new), ("new", new, old)):
        if only := [key for key in some if key not in other]:
            console.print(f"only in {title}: {len(only)} rows")


if __name__ == "__main__":
    main()
