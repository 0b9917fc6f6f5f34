"""Draws the points of roofline.py under their roofs: over S for two D, and over D."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_attention import _optional
from roofline import Point, roof
from targets import FORWARD_BACKWARD

_COLORS = {"fp32": "tab:blue", "bf16": "tab:orange"}
_WHITE = "white"


def draw(points: Sequence[Point], title: str, column: str, path: Path) -> None:
    """Writes the picture."""
    figure = _optional.load("matplotlib.figure").Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(len(FORWARD_BACKWARD), 3, sharey="row")
    figure.suptitle(f"share of the fp32 multiply-add peak, one thread\n{title}")
    for line, direction in zip(panels, FORWARD_BACKWARD, strict=True):
        chosen = [x for x in points if x.direction == direction]
        for panel, head_dim in zip(line, (64, 128), strict=False):
            _over_tokens(panel, [x for x in chosen if (x.axis, x.head_dim) == ("S", head_dim)])
            for dtype in dict.fromkeys(x.dtype for x in chosen):
                height = roof(head_dim, direction, column, native=dtype == "bf16")
                panel.axhline(100 * height, color=_COLORS[dtype], linestyle=":", linewidth=2)
            panel.set_title(f"{direction}, D = {head_dim}")
        _over_head_dims(line[2], [x for x in chosen if x.axis == "D"], column)
        line[2].set_title(f"{direction}, S = 2048, full")
        line[0].set_ylabel("% of the fp32 multiply-add peak")
        line[0].set_ylim(bottom=0)
        for panel in line:
            panel.grid(alpha=0.3)
    panels[1][0].set_xlabel("S, tokens")
    panels[1][1].set_xlabel("S, tokens")
    panels[1][2].set_xlabel("D, channels of a head")
    marks, names = _legend(points)
    figure.legend(marks, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=110)


def _line(panel: Any, points: Sequence[Point], xs: Sequence[int], mask: str) -> None:
    color = _COLORS[points[0].dtype]
    face = color if mask == "full" else _WHITE
    ours, theirs = ([100 * getattr(x, who) for x in points] for who in ("ours", "torch"))
    panel.plot(xs, ours, "o-", color=color, markerfacecolor=face)
    panel.plot(xs, theirs, "s--", color=color, markerfacecolor=face, alpha=0.6, markersize=5)


def _ticks(panel: Any, xs: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted(set(xs)))
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.minorticks_off()


def _over_tokens(panel: Any, points: Sequence[Point]) -> None:
    for key in dict.fromkeys((x.dtype, x.mask) for x in points):
        line = sorted((x for x in points if (x.dtype, x.mask) == key), key=lambda x: x.tokens)
        _line(panel, line, [x.tokens for x in line], key[1])
    _ticks(panel, [x.tokens for x in points])


def _over_head_dims(panel: Any, points: Sequence[Point], column: str) -> None:
    for dtype in dict.fromkeys(x.dtype for x in points):
        line = sorted((x for x in points if x.dtype == dtype), key=lambda x: x.head_dim)
        dims = [x.head_dim for x in line]
        _line(panel, line, dims, "full")
        roofs = [100 * roof(d, line[0].direction, column, native=dtype == "bf16") for d in dims]
        panel.plot(dims, roofs, ":", color=_COLORS[dtype], linewidth=2)
    _ticks(panel, [x.head_dim for x in points])
    panel.tick_params(axis="x", labelrotation=45)


def _legend(points: Sequence[Point]) -> tuple[list[Any], list[str]]:
    """What colors, lines and marks mean."""
    line = _optional.load("matplotlib.lines").Line2D
    entries = {dtype: line([], [], color=_COLORS[dtype], linewidth=4) for dtype in _COLORS}
    entries = {x: mark for x, mark in entries.items() if x in {p.dtype for p in points}}
    entries |= {
        "ours": line([], [], color="black", linestyle="-", marker="o"),
        "torch": line([], [], color="black", linestyle="--", marker="s", alpha=0.6),
        "roof": line([], [], color="black", linestyle=":", linewidth=2),
        "full": line([], [], color="black", linestyle="", marker="o"),
        "causal": line([], [], color="black", linestyle="", marker="o", markerfacecolor=_WHITE),
    }
    return list(entries.values()), list(entries)
