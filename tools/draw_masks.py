"""Draws the pictures of docs/masks.md into docs/images.

    python tools/draw_masks.py

Every picture is what `fusion_attention.explain` says about the calls of its Cases, so the pages
show what the core has. tests/python/test_masks_pictures.py makes the same calls and compares what
the operator really sees.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import fusion_attention
from fusion_attention.explaining import Report
from fusion_attention.explaining.panels import Panel, packed_panel, panel_of
from fusion_attention.explaining.picture import INK, STYLE, figure_of

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
UNBOUNDED = 2**31 - 1  # the default of pre_tockens and next_tockens
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
RECTANGLE = (torch.arange(2048) >= 1024).expand(1024, 2048)
GREY = "#DADADA"


@dataclass(frozen=True)
class Case:
    """The mask arguments of one call.

    Attributes:
        title: what the picture says above the matrix.
        sparse_mode: 0 to 8.
        q_lens, kv_lens: one length a sequence; a dense layout has equal ones.
        pre_tockens, next_tockens: as in the call.
        prefix: modes 5 and 6, one number a sequence.
        packed: layout TND instead of a dense one.
        cut: the query token at which the rows are shared out to two cards; 0: not cut.
    """

    title: str
    sparse_mode: int
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    pre_tockens: int = UNBOUNDED
    next_tockens: int = UNBOUNDED
    prefix: tuple[int, ...] = ()
    packed: bool = False
    cut: int = 0


SQUARE, WIDE, TALL = ((8,), (8,)), ((6,), (9,)), ((9,), (6,))
MODE_7_WHOLE = Case("before: sparse_mode 3", 3, (3, 4, 5, 4), (3, 6, 5, 4), packed=True, cut=5)
MODE_7_CARD_1 = Case("card 1: sparse_mode 7\npre 6, next -2", 7, (3, 2), (3, 6), 6, -2, packed=True)
MODE_7_CARD_2 = Case("card 2: sparse_mode 3", 3, (2, 5, 4), (6, 5, 4), packed=True)
MODE_8_WHOLE = Case("before: sparse_mode 2", 2, (3, 5, 5, 4), (3, 4, 5, 4), packed=True, cut=5)
MODE_8_CARD_1 = Case("card 1: sparse_mode 2", 2, (3, 2), (3, 4), packed=True)
MODE_8_CARD_2 = Case(
    "card 2: sparse_mode 8\npre 4, next 1", 8, (3, 5, 4), (4, 5, 4), 4, 1, packed=True
)
PICTURES: dict[str, list[Case]] = {
    "mode_0": [
        Case("causal: pre 10, next 0", 0, (10,), (10,), 10, 0),
        Case("band: pre 3, next 2", 0, (10,), (10,), 3, 2),
        Case("pre 9, next -3", 0, (10,), (10,), 9, -3),
        Case("pre -3, next 7", 0, (10,), (10,), -3, 7),
    ],
    "mode_1": [Case("window of 3 and every 4th key", 1, (10,), (12,))],
    "mode_2": [
        Case("Sq = Skv", 2, *SQUARE),
        Case("Sq < Skv: last keys unseen", 2, *WIDE),
        Case("Sq > Skv: last rows see all", 2, *TALL),
    ],
    "mode_3": [
        Case("Sq = Skv", 3, *SQUARE),
        Case("Sq < Skv: last row sees all", 3, *WIDE),
        Case("Sq > Skv: first rows see none", 3, *TALL),
    ],
    "mode_4": [
        Case("Sq = Skv, pre 3, next 1", 4, *SQUARE, 3, 1),
        Case("Sq < Skv, pre 3, next 1", 4, *WIDE, 3, 1),
        Case("Sq > Skv, pre 3, next 2", 4, *TALL, 3, 2),
    ],
    "mode_5": [Case("prefix (4, 5)", 5, (8, 8), (8, 8), prefix=(4, 5))],
    "mode_6": [Case("prefix (5, 7)", 6, (6, 6), (9, 9), prefix=(5, 7))],
    "mode_7": [MODE_7_WHOLE, MODE_7_CARD_1, MODE_7_CARD_2],
    "mode_8": [MODE_8_WHOLE, MODE_8_CARD_1, MODE_8_CARD_2],
}
TILED = [
    Case("mode 3, causal", 3, (24,), (32,)),
    Case("mode 4, pre 9, next 3", 4, (24,), (32,), 9, 3),
    Case("mode 6, prefix 14", 6, (24,), (32,), prefix=(14,)),
]
TILE = 4


def atten_mask(case: Case) -> torch.Tensor:
    """The mask that docs/masks.md says the mode takes.

    In modes 0 and 5 it masks nothing, so that what is seen is the doing of the other arguments.
    Mode 1 gets one that no other mode can say: a sliding window plus every fourth key.
    """
    if case.sparse_mode == 1:
        row, key = torch.arange(case.q_lens[0])[:, None], torch.arange(case.kv_lens[0])
        return ((row - key).abs() > 1) & (key % 4 != 0)
    if case.sparse_mode in (0, 5):
        return torch.zeros(len(case.q_lens), 1, case.q_lens[0], case.kv_lens[0], dtype=torch.bool)
    return torch.cat([CAUSAL, RECTANGLE]) if case.sparse_mode == 6 else CAUSAL


def arguments(case: Case, head_dim: int = 1, device: str = "meta") -> dict[str, Any]:
    """The call of a case, query and key being zero."""
    call: dict[str, Any] = {
        "head_num": 1,
        "input_layout": "TND" if case.packed else "BNSD",
        "atten_mask": atten_mask(case),
        "sparse_mode": case.sparse_mode,
        "pre_tockens": case.pre_tockens,
        "next_tockens": case.next_tockens,
        "prefix": list(case.prefix) or None,
    }
    sizes = {"query": case.q_lens, "key": case.kv_lens, "value": case.kv_lens}
    for name, lens in sizes.items():
        shape = (sum(lens), 1, head_dim) if case.packed else (len(lens), 1, lens[0], head_dim)
        call[name] = torch.zeros(shape, device=device)
    if case.packed:
        call["actual_seq_qlen"] = list(accumulate(case.q_lens))
        call["actual_seq_kvlen"] = list(accumulate(case.kv_lens))
    return call


def explained(case: Case) -> Report:
    """What explain says about the call of a case."""
    report = fusion_attention.explain(**arguments(case))
    if report.error is not None:
        raise ValueError(f"{case}: {report.error}")
    return report


def panels(case: Case, size: int = 1) -> list[Panel]:
    """A panel for a packed case, one for each differing batch of a dense one."""
    report = explained(case)
    if case.packed:
        return [replace(packed_panel(report.facts, report.visible, case.title), cut=case.cut)]
    return [
        panel_of(
            report.facts,
            matrix,
            f"batch {matrix.sequence}: N = {matrix.span.prefix}"
            if len(case.prefix) > 1
            else case.title,
            size,
        )
        for matrix in report.visible.matrices[: len(case.prefix) or 1]
    ]


def draw_compressed() -> Figure:
    """The two masks that modes 2-4, 6, 7 and 8 are called with."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 4.6), layout="constrained")
        axes = figure.subplots(1, 2)
        for place, rows, title in (
            (axes[0], 2048, "2048 x 2048\nmodes 2, 3, 4, 7, 8"),
            (axes[1], 3072, "3072 x 2048\nmode 6"),
        ):
            place.add_patch(Rectangle((0, 0), 2048, rows, facecolor="white", edgecolor="none"))
            triangle = [(0, 0), (2048, 0), (2048, 2048)]
            place.add_patch(Polygon(triangle, facecolor=GREY, edgecolor="none"))
            place.text(1400, 620, "1", fontsize=20, ha="center", va="center")
            place.text(620, 1400, "0", fontsize=20, ha="center", va="center")
            if rows == 3072:
                below = Rectangle((1024, 2048), 1024, 1024, facecolor=GREY, edgecolor="none")
                place.add_patch(below)
                place.text(1536, 2560, "1", fontsize=20, ha="center", va="center")
                place.text(512, 2560, "0", fontsize=20, ha="center", va="center")
                place.plot([0, 2048], [2048, 2048], color=INK, linewidth=0.8)
            place.add_patch(Rectangle((0, 0), 2048, rows, fill=False, edgecolor=INK))
            place.set_xlim(-20, 2068)
            place.set_ylim(rows + 20, -20)
            place.set_aspect("equal")
            place.set_xticks([0, 1024, 2048])
            place.set_yticks(range(0, rows + 1, 1024))
            place.xaxis.tick_top()
            place.set_title(title)
    return figure


def digest(cases: list[Case]) -> str:
    """Names the contents of a picture; the PNG carries it, so that a stale picture is noticed."""
    summary = hashlib.sha256()
    for case in cases:
        summary.update(repr(case).encode())
        for matrix in explained(case).visible.matrices:
            summary.update(matrix.cells().numpy().tobytes())
    return summary.hexdigest()


def save(figure: Figure, path: Path, cases: list[Case]) -> None:
    """Writes a PNG of few colours and few bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    text = PngInfo()
    text.add_text("masks", digest(cases))
    few = image.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True, pnginfo=text)


def main() -> None:
    """Draws everything."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, cases in PICTURES.items():
        shown = [panel for case in cases for panel in panels(case)]
        save(figure_of(shown), IMAGES / f"{name}.png", cases)
    save(draw_compressed(), IMAGES / "compressed.png", [])
    tiled = [panel for case in TILED for panel in panels(case, TILE)]
    save(figure_of(tiled, unit="tile"), IMAGES / "tiles.png", TILED)
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.name:16} {path.stat().st_size / 1000:5.1f} kB")


if __name__ == "__main__":
    main()
