"""Draws the times of against_torch.py: a panel for each mask and direction, time by length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusion_attention import _optional
from fusion_attention._errors import FeatureError
from fusion_attention.benchmark.against_torch import DIRECTION_NAMES, Row

_COLORS = {"fp32": "tab:blue", "bf16": "tab:orange", "fp16": "tab:green"}
_MASKS = ("full", "causal")


def require(path: Path) -> None:
    """Raises unless a picture of this name can be drawn: better now than after the measurement.

    Raises:
        FeatureError: matplotlib is missing, or the file's name has an ending that it cannot write.
    """
    figure = _optional.load("matplotlib.figure").Figure()
    endings = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in endings:
        raise FeatureError(f"cannot draw {path}: its ending must be one of {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise FeatureError(f"cannot draw {path}: there is no folder {path.absolute().parent}")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Writes the picture."""
    figure = _optional.load("matplotlib.figure").Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(len(DIRECTION_NAMES), len(_MASKS), sharex=True, sharey="row")
    figure.suptitle(f"time of attention, ours and torch's\n{title}")
    for line, (direction, name) in zip(panels, DIRECTION_NAMES.items(), strict=True):
        for panel, mask in zip(line, _MASKS, strict=True):
            chosen = [row for row in rows if (row.direction, row.mask) == (direction, mask)]
            for dtype in dict.fromkeys(row.dtype for row in chosen):
                points = sorted((r for r in chosen if r.dtype == dtype), key=lambda r: r.length)
                lengths, color = [row.length for row in points], _COLORS[dtype]
                ours = [row.ours * 1e3 for row in points]
                theirs = [row.torch * 1e3 for row in points]
                panel.plot(lengths, ours, "o-", color=color, label=f"{dtype}, ours")
                panel.plot(lengths, theirs, "s--", color=color, label=f"{dtype}, torch")
            panel.set_title(f"{name}, {mask}")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sorted({row.length for row in rows}))
            panel.xaxis.set_major_formatter("{x:.0f}")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.grid(alpha=0.3)
        line[0].set_ylabel("ms")
    for panel in panels[-1]:
        panel.set_xlabel("tokens")
    panels[0][0].legend()
    figure.savefig(path, dpi=120)
