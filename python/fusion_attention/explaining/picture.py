"""Panels as pictures: the figures of reports and of docs/masks.md alike.

Needs matplotlib, which is imported when something is drawn. Knows panels, not masks.
"""

import io
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch

from fusion_attention import _optional
from fusion_attention.explaining.panels import (
    EMPTY,
    FULL,
    OUTSIDE,
    PARTIAL,
    Frame,
    Panel,
    panels_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusion_attention.explaining.report import Report

# Okabe and Ito's palette: its colours stay apart for every kind of colour blindness.
_COLOURS = {OUTSIDE: "#FFFFFF", EMPTY: "#DADADA", PARTIAL: "#F0B54A", FULL: "#0072B2"}
ORIGIN, LINE, INK = "#D55E00", "#007F5F", "#222222"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
    "figure.dpi": 100,
    "svg.fonttype": "none",  # text stays text
}
_INCHES = {8: 0.27, 16: 0.2, 24: 0.15}  # the side of a cell, by how many there are along an edge
_SMALLEST = 0.11
_CHARACTER = 0.09  # the width of a character of a heading


def figure_of(
    panels: list[Panel], heading: str = "", columns: int = 0, unit: str = "cell"
) -> "Figure":
    """Draws panels side by side, with one legend.

    Args:
        panels: What is drawn.
        heading: The line above all.
        columns: How many panels are in a row; 0: all of them.
        unit: What a cell of several tokens is called.
    """
    matplotlib = _optional.load("matplotlib")
    figure_module = _optional.load("matplotlib.figure")
    columns = min(columns or len(panels), len(panels))
    grid = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    sizes = [[_inches(panel, unit) for panel in row] for row in grid]
    widths = [max(row[i][0] for row in sizes if i < len(row)) for i in range(columns)]
    heights = [max(height for _, height in row) for row in sizes]
    width = max(sum(widths), 4.5 if heading else 0)
    heading = fill(heading, int(width / _CHARACTER))
    lines = heading.count("\n") + bool(heading)
    handles = _legend(panels, unit)
    columns_of_legend = 5 if width > 6 else 3
    legend_rows = -(-len(handles) // columns_of_legend)
    with matplotlib.rc_context(STYLE):
        figure = figure_module.Figure(
            figsize=(width, sum(heights) + 0.2 + 0.22 * legend_rows + 0.25 * lines),
            layout="constrained",
        )
        axes = figure.subplots(
            len(grid), columns, squeeze=False, width_ratios=widths, height_ratios=heights
        )
        for places, row in zip(axes, grid, strict=True):
            for place, panel in zip(places, row, strict=False):
                _draw(place, panel, unit)
            for place in places[len(row) :]:
                place.set_axis_off()
        if heading:
            figure.suptitle(heading, fontweight="bold", x=0.01, ha="left", fontsize=11)
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns_of_legend,
            frameon=False,
            fontsize=9,
        )
    return figure


def _inches(panel: Panel, unit: str) -> tuple[float, float]:
    """Width and height of a panel with its titles and ticks."""
    rows, keys = panel.cells.shape
    side = next((inch for most, inch in _INCHES.items() if max(rows, keys) <= most), _SMALLEST)
    title = _title(panel, unit).split("\n")
    width = max(keys * side + 0.75, max(map(len, title)) * _CHARACTER + 0.2)
    return width, max(rows * side, 0.4) + 0.95 + 0.2 * len(title)


def _draw(axes: "Axes", panel: Panel, unit: str) -> None:
    """Paints the cells, with the tokens' numbers along the left and the top."""
    rows, keys = panel.cells.shape
    colours = _optional.load("matplotlib.colors").ListedColormap(list(_COLOURS.values()))
    line = 1.2 if max(rows, keys) <= 24 else 0.4
    axes.pcolormesh(
        panel.cells.numpy(), cmap=colours, vmin=0, vmax=3, edgecolors="white", linewidth=line
    )
    for frame in panel.frames:
        _draw_frame(axes, panel, frame)
    if panel.dots is not None:
        row, key = panel.dots.nonzero(as_tuple=True)
        place = [(x + 0.5) / panel.size for x in (key, row)]
        axes.scatter(*(x.numpy() for x in place), s=4, color=INK, linewidths=0)
    if panel.cut:
        axes.axhline(panel.cut, color=LINE, linewidth=2)
        axes.text(keys, panel.cut - 0.15, "card 1", color=LINE, ha="right", va="bottom")
        axes.text(keys, panel.cut + 0.15, "card 2", color=LINE, ha="right", va="top")
    axes.set_xlim(-0.1, keys + 0.1)
    axes.set_ylim(rows + 0.1, -0.1)
    axes.set_aspect("equal")
    _ticks(axes.set_xticks, keys, panel.key, panel.size)
    _ticks(axes.set_yticks, rows, panel.row, panel.size)
    axes.tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.set_xlabel("key j")
    axes.xaxis.set_label_position("bottom")
    axes.set_ylabel("query row i")
    axes.set_title(_title(panel, unit))


def _ticks(set_ticks: Any, count: int, first: int, size: int) -> None:
    """Numbers tokens in the middle of their cells, those of larger cells at the edges."""
    step = next(step for step in (1, 2, 4, 8, 16, 32) if count / step <= 12 or step == 32)
    if size > 1:
        step = max(step, 2)
        places = range(0, count + 1, step)
        labels = [f"{place * size}" for place in places]
        set_ticks(list(places), labels, fontsize=7 if count * size > 999 else 8)
    else:
        step = max(step, 2) if first > 99 else step
        places = range(0, count, step)
        labels = [f"{first + place}" for place in places]
        set_ticks([place + 0.5 for place in places], labels, fontsize=8)


def _title(panel: Panel, unit: str) -> str:
    """The panel's own title; cells of several tokens are counted below it."""
    if panel.size == 1:
        return panel.title
    kinds = ((EMPTY, "empty"), (PARTIAL, "partial"), (FULL, "full"))
    counts = [f"{int((panel.cells == kind).sum())} {name}" for kind, name in kinds]
    return f"{panel.title}\n{unit}s of {panel.size} x {panel.size} tokens\n{', '.join(counts)}"


def _draw_frame(axes: "Axes", panel: Panel, frame: Frame) -> None:
    """A sequence's border, the corner that its offsets count from, and its prefix."""
    size = panel.size
    row, key, q_len, kv_len = (x / size for x in (frame.row, frame.key, frame.q_len, frame.kv_len))
    if len(panel.frames) > 1:
        rectangle = _optional.load("matplotlib.patches").Rectangle
        border = rectangle((key, row), kv_len, q_len, fill=False, edgecolor=INK, linewidth=1)
        axes.add_patch(border)
    if frame.prefix:
        axes.axvline(key + frame.prefix / size, color=LINE, linewidth=2)
    if not frame.origin:
        return
    reach = min(q_len, kv_len)
    down = frame.origin == "top left"
    corner = (key, row) if down else (key + kv_len, row + q_len)
    end = tuple(place + (reach if down else -reach) for place in corner)
    style = {"color": ORIGIN, "linewidth": 1.4, "linestyle": (0, (4, 2))}
    axes.plot(*zip(corner, end, strict=True), **style)
    rows, keys = panel.cells.shape
    if 0 <= corner[0] <= keys and 0 <= corner[1] <= rows:
        axes.plot(*corner, "o", color=ORIGIN, markersize=7, clip_on=False, zorder=5)


def _legend(panels: list[Panel], unit: str) -> list[Any]:
    """What the colours mean that these panels have."""
    line = _optional.load("matplotlib.lines").Line2D
    patch = _optional.load("matplotlib.patches").Patch
    large = any(panel.size > 1 for panel in panels)
    present = torch.cat([panel.cells.flatten() for panel in panels]).unique().tolist()
    names = (
        {FULL: f"full {unit}", PARTIAL: f"partial {unit}", EMPTY: f"empty {unit}"}
        if large
        else {FULL: "kept", EMPTY: "masked"}
    )
    handles = [
        patch(color=_COLOURS[kind], label=name)
        for kind, name in names.items()
        if kind in present or not large
    ]
    if any(frame.origin for panel in panels for frame in panel.frames):
        label = "origin and its diagonal"
        handles.append(line([], [], color=ORIGIN, marker="o", linestyle="--", label=label))
    if any(frame.prefix for panel in panels for frame in panel.frames):
        handles.append(line([], [], color=LINE, linewidth=2, label="prefix"))
    if any(panel.dots is not None for panel in panels):
        dot = {"marker": ".", "markersize": 4, "linestyle": ""}
        handles.append(line([], [], color=INK, label="visible pair", **dot))
    return handles


def figure_of_report(report: "Report") -> "Figure":
    """The mask of a call under its verdict."""
    heading = f"{report.reading.call.function}: {report.verdict}"
    panels: list[Panel] = []
    if report.facts is not None and report.visible is not None:
        panels = panels_of(report.facts, report.visible, 4, 32)
    if not panels:
        nothing = torch.zeros(1, 1, dtype=torch.uint8)
        panels = [Panel("no mask can be shown", nothing, 1)]
    return figure_of(panels, heading, 2 if len(panels) == 4 else 3)


def save(report: "Report", path: Path) -> None:
    """Writes the picture of a report; the path's ending says the format."""
    if path.suffix == ".svg":
        path.write_text(svg_of(report), encoding="utf-8")
    else:
        figure_of_report(report).savefig(path, dpi=150)


def svg_of(report: "Report") -> str:
    """The picture of a report as SVG, the same bytes for the same report."""
    text = io.StringIO()
    figure = figure_of_report(report)
    with _optional.load("matplotlib").rc_context(STYLE | {"svg.hashsalt": "fusion_attention"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
