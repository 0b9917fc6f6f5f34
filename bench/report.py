"""How results look: a table for each section in a terminal, a summary, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from results import Result

_COLORS = {"aim": "bold green", "holds": "green", "SHORT": "red"}
# Fixed widths, so that the tables of all sections stand under each other.
_COLUMNS = (
    ("problem", 41),
    ("direction", 9),
    ("ours, ms", 8),
    ("of peak", 8),
    ("against", 22),
    ("its ms", 8),
    ("measured", 8),
    ("must", 7),
    ("aim", 7),
    ("", 5),
)
_LEFT = ("problem", "direction", "against", "")
# A narrow terminal shows as many of these, in this order, as it has room for.
_WANTED = ("problem", "measured", "must", "", "direction", "of peak", "against", "ours, ms")
_WANTED += ("its ms", "aim")
WIDTH = sum(width for _, width in _COLUMNS) + 2 * len(_COLUMNS) + 1


def _fitting(width: int) -> list[str]:
    """The names of the columns that fit, in the table's order."""
    widths, left, chosen = dict(_COLUMNS), width - 1, []
    for name in _WANTED:
        left -= widths[name] + 2
        if left < 0:
            break
        chosen.append(name)
    return [name for name, _ in _COLUMNS if name in chosen]


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.4g}"


def _against(result: Result) -> str:
    """The peak, torch, or the words in which our other problem differs."""
    if not result.rival:
        return f"peak {result.measurement.peak * 1e-9:.0f} Gflop/s"
    if result.rival in ("torch", "torch, a call each", "one thread"):
        return result.rival
    words = [word for word in result.rival.split() if word not in result.problem.split()]
    return " ".join(words) or "the same without"


def cells(result: Result) -> tuple[str, ...]:
    """One row of the table."""
    measured = result.measurement
    if measured is None:
        limits = result.show(result.must), result.show(result.aim)
        return (result.problem, result.direction, "", "", "not measured", "", "", *limits, "-")
    return (
        result.problem,
        result.direction,
        _milliseconds(measured.ours),
        f"{100 * measured.of_peak:.1f} %",
        _against(result),
        _milliseconds(measured.rival),
        result.show(result.value),
        result.show(result.must),
        result.show(result.aim),
        result.verdict,
    )


def section_table(results: Sequence[Result], width: int) -> Table:
    """The rows of one section, no wider than so many letters."""
    first = results[0]
    simd = ", ".join(dict.fromkeys(x.simd for x in results if x.simd))
    threads = {x.measurement.threads for x in results if x.measurement}
    title = f"{first.section} ({simd or 'not here'}"
    title += f", {max(threads)} threads)" if threads and max(threads) > 1 else ")"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names, widths = _fitting(width), dict(_COLUMNS)
    for name in names:
        justify = "left" if name in _LEFT else "right"
        table.add_column(name, width=widths[name], justify=justify, no_wrap=True)
    for result in results:
        row = dict(zip(widths, cells(result), strict=True))
        if color := _COLORS.get(result.verdict):
            row |= {name: f"[{color}]{row[name]}[/]" for name in ("measured", "")}
        table.add_row(*(row[name] for name in names))
    return table


def summary(results: Sequence[Result], column: str) -> str:
    """Which musts fall short, how many hold, and what was not measured and why."""
    promised = [x for x in results if x.must is not None]
    measured = [x for x in promised if x.measurement]
    short = [x for x in measured if x.verdict == "SHORT"]
    aims = sum(x.verdict == "aim" for x in measured)
    lines = [f"falls short: {x.name}: {x.show(x.value)}, must {x.show(x.must)}" for x in short]
    lines.append(
        f"{len(measured) - len(short)} of {len(measured)} musts hold (column {column}), "
        f"{aims} of them reach the aim"
    )
    reasons: dict[str, int] = {}
    for result in promised:
        if result.why_not:
            reasons[result.why_not] = reasons.get(result.why_not, 0) + 1
    lines += [f"not measured: {count} rows: {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)


def title(machine: dict[str, str], column: str) -> str:
    """What was measured where."""
    return (
        f"{machine['cpu']}, SIMD target {machine['target']}, torch {machine['torch']}, "
        f"commit {machine['commit']}; musts of column {column}"
    )


def markdown(results: Sequence[Result], machine: dict[str, str], column: str) -> str:
    """All rows as one Markdown table, with title and summary."""
    shown = ("ours, ms", "of peak", "its ms", "measured", "must", "aim")
    lines = [
        title(machine, column) + f"; {machine['time']}.",
        "",
        "| target | problem | against | " + " | ".join(shown) + " | |",
        "|---|---|---|" + "---:|" * len(shown) + "---|",
    ]
    section = None
    for result in results:
        row = dict(zip((name for name, _ in _COLUMNS), cells(result), strict=True))
        name = "" if result.section == section else result.section
        section = result.section
        numbers = " | ".join(row[x] for x in shown)
        problem = f"{row['problem']}, {row['direction']}"
        lines.append(f"| {name} | {problem} | {row['against']} | {numbers} | {row['']} |")
    return "\n".join([*lines, "", "```text", summary(results, column), "```"])
