"""Draws the pictures of docs/masks.md into docs/images.

    python tools/draw_masks.py

Every picture comes from a Case, which holds the arguments of a real call, and from its predicate
written down once more in plain numpy. tests/python/test_masks_pictures.py makes the same calls and
compares what the operator really sees. This file must not know the operator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Polygon, Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
UNBOUNDED = 2**31 - 1  # the default of pre_tockens and next_tockens

# Okabe and Ito's palette: its colours stay apart for every kind of colour blindness.
KEPT, MASKED, OUTSIDE, ORIGIN = "#0072B2", "#DADADA", "#FFFFFF", "#D55E00"
PARTIAL, CUT = "#F0B54A", "#007F5F"
INK = "#222222"
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
}


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


def band_sequence(case: Case) -> int:
    """Modes 7 and 8: the sequence that was cut, and so reads pre_tockens and next_tockens."""
    filled = [index for index, length in enumerate(case.q_lens) if length > 0]
    return filled[-1] if case.sparse_mode == 7 else filled[0]


def visible(case: Case, sequence: int) -> np.ndarray:
    """The predicate of the mode: bool [q_len, kv_len], true where query row i sees key j."""
    q_len, kv_len = case.q_lens[sequence], case.kv_lens[sequence]
    i = np.arange(q_len)[:, None]
    j = np.arange(kv_len)[None, :]
    delta = kv_len - q_len
    pre, after = case.pre_tockens, case.next_tockens
    match case.sparse_mode:
        case 0:
            return (i - pre <= j) & (j <= i + after)
        case 1:
            return window_and_sinks(q_len, kv_len)
        case 2:
            return j <= i
        case 3:
            return j <= i + delta
        case 4:
            return (i + delta - pre <= j) & (j <= i + delta + after)
        case 5 | 6:
            return (j < case.prefix[sequence]) | (j <= i + delta)
        case 7 if sequence != band_sequence(case):
            return j <= i + delta
        case 8 if sequence != band_sequence(case):
            return j <= i
        case 7 | 8:
            return (i + delta - pre <= j) & (j <= i + delta + after)
    raise ValueError(f"no sparse_mode {case.sparse_mode}")


def interval(case: Case, sequence: int, row: int) -> tuple[int, int]:
    """The keys that a row of a structured mode sees, as a half-open range."""
    q_len, kv_len = case.q_lens[sequence], case.kv_lens[sequence]
    delta = kv_len - q_len
    origin = 0 if case.sparse_mode in (0, 2) else delta
    begin_offset, end_offset, prefix = -UNBOUNDED, origin + 1, 0
    if case.sparse_mode == 8 and sequence != band_sequence(case):
        end_offset = 1
    elif case.sparse_mode in (0, 4) or (
        case.sparse_mode in (7, 8) and sequence == band_sequence(case)
    ):
        begin_offset = origin - case.pre_tockens
        end_offset = origin + case.next_tockens + 1
    elif case.sparse_mode in (5, 6):
        prefix = case.prefix[sequence]
    begin = min(max(row + begin_offset, 0), kv_len)
    end = min(max(row + end_offset, prefix, begin), kv_len)
    return begin, end


def tile_class(case: Case, rows: range, keys: range) -> str:
    """'empty', 'partial' or 'full', from the intervals of a tile's first and last row alone.

    That is enough because neither end of the intervals ever decreases with the row.
    """
    first_begin, first_end = interval(case, 0, rows[0])
    last_begin, last_end = interval(case, 0, rows[-1])
    if last_end <= keys.start or first_begin >= keys.stop:
        return "empty"
    if first_end >= keys.stop and last_begin <= keys.start:
        return "full"
    return "partial"


def window_and_sinks(q_len: int, kv_len: int) -> np.ndarray:
    """A mask that no structured mode can say: a sliding window plus every fourth key."""
    i = np.arange(q_len)[:, None]
    j = np.arange(kv_len)[None, :]
    return (abs(i - j) <= 1) | (j % 4 == 0)


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


def block_diagonal(case: Case) -> np.ndarray:
    """All sequences of a packed case: 0 outside of them, 1 masked, 2 kept."""
    matrix = np.zeros((sum(case.q_lens), sum(case.kv_lens)), dtype=np.uint8)
    row = key = 0
    for sequence, (q_len, kv_len) in enumerate(zip(case.q_lens, case.kv_lens, strict=True)):
        matrix[row : row + q_len, key : key + kv_len] = 1 + visible(case, sequence)
        row, key = row + q_len, key + kv_len
    return matrix


def draw_matrix(axes: plt.Axes, matrix: np.ndarray, title: str) -> None:
    """Paints the cells, with numbers along the left and the top as in the text."""
    rows, keys = matrix.shape
    colours = ListedColormap([OUTSIDE, MASKED, KEPT])
    axes.pcolormesh(matrix, cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=1.2)
    axes.set_xlim(-0.1, keys + 0.1)
    axes.set_ylim(rows + 0.1, -0.1)
    axes.set_aspect("equal")
    step = 1 if max(rows, keys) <= 12 else 2
    axes.set_xticks(np.arange(0, keys, step) + 0.5, range(0, keys, step), fontsize=8)
    axes.set_yticks(np.arange(0, rows, step) + 0.5, range(0, rows, step), fontsize=8)
    axes.tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.set_xlabel("key j")
    axes.xaxis.set_label_position("bottom")
    axes.set_ylabel("query row i")
    axes.set_title(title)


def draw_origin(axes: plt.Axes, case: Case, row: int, key: int, sequence: int) -> None:
    """Marks the corner that a sequence's offsets count from, and the diagonal through it."""
    q_len, kv_len = case.q_lens[sequence], case.kv_lens[sequence]
    mode = case.sparse_mode
    top_left = mode in (0, 2) or (mode == 8 and sequence != band_sequence(case))
    reach = min(q_len, kv_len)
    if top_left:
        corner, end = (key, row), (key + reach, row + reach)
    else:
        corner = (key + kv_len, row + q_len)
        end = (corner[0] - reach, corner[1] - reach)
    axes.plot(*zip(corner, end, strict=True), color=ORIGIN, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.plot(*corner, "o", color=ORIGIN, markersize=7, clip_on=False, zorder=5)


def draw_sequences(axes: plt.Axes, case: Case) -> None:
    """Frames each sequence of a packed case and marks its origin."""
    row = key = 0
    for sequence, (q_len, kv_len) in enumerate(zip(case.q_lens, case.kv_lens, strict=True)):
        axes.add_patch(Rectangle((key, row), kv_len, q_len, fill=False, edgecolor=INK, linewidth=1))
        draw_origin(axes, case, row, key, sequence)
        row, key = row + q_len, key + kv_len
    if case.cut:
        axes.axhline(case.cut, color=CUT, linewidth=2)
        axes.text(key, case.cut - 0.15, "card 1", color=CUT, ha="right", va="bottom")
        axes.text(key, case.cut + 0.15, "card 2", color=CUT, ha="right", va="top")


def draw_mode(name: str, cases: list[Case]) -> plt.Figure:
    """One panel a case; a dense case with several batches has a panel for each."""
    panels = [
        (case, sequence)
        for case in cases
        for sequence in range(1 if case.packed else len(case.q_lens))
    ]
    shapes = [
        (sum(case.q_lens), sum(case.kv_lens)) if case.packed else (case.q_lens[0], case.kv_lens[0])
        for case, _ in panels
    ]
    inch = 0.20 if cases[0].packed else 0.27  # the side of a cell
    width = sum(max(keys * inch, 1.9) + 0.75 for _, keys in shapes)
    height = max(rows for rows, _ in shapes) * inch + 1.5
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(width, height),
        width_ratios=[max(keys * inch, 1.9) + 0.75 for _, keys in shapes],
        squeeze=False,
        layout="constrained",
    )
    for place, (case, sequence) in zip(axes[0], panels, strict=True):
        if case.packed:
            draw_matrix(place, block_diagonal(case), case.title)
            draw_sequences(place, case)
        else:
            several = f"batch {sequence}: N = {case.prefix[sequence]}" if case.prefix else ""
            draw_matrix(place, 1 + visible(case, sequence), several or case.title)
            if case.sparse_mode != 1:
                draw_origin(place, case, 0, 0, sequence)
            if case.prefix:
                place.axvline(case.prefix[sequence], color=CUT, linewidth=2)
    legend = [Patch(color=KEPT, label="kept"), Patch(color=MASKED, label="masked")]
    if cases[0].sparse_mode != 1:
        dot = plt.Line2D(
            [], [], color=ORIGIN, marker="o", linestyle="--", label="origin and its diagonal"
        )
        legend.append(dot)
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_compressed() -> plt.Figure:
    """The two masks that modes 2-4, 6, 7 and 8 are called with."""
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 4.6), layout="constrained")
    for place, rows, title in (
        (axes[0], 2048, "2048 x 2048\nmodes 2, 3, 4, 7, 8"),
        (axes[1], 3072, "3072 x 2048\nmode 6"),
    ):
        place.add_patch(Rectangle((0, 0), 2048, rows, facecolor="white", edgecolor="none"))
        triangle = [(0, 0), (2048, 0), (2048, 2048)]
        place.add_patch(Polygon(triangle, facecolor=MASKED, edgecolor="none"))
        place.text(1400, 620, "1", fontsize=20, ha="center", va="center")
        place.text(620, 1400, "0", fontsize=20, ha="center", va="center")
        if rows == 3072:
            place.add_patch(Rectangle((1024, 2048), 1024, 1024, facecolor=MASKED, edgecolor="none"))
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


def draw_tiles() -> plt.Figure:
    """Three masks, cut into tiles: what is skipped, what needs the mask, what does not."""
    colours = {"empty": "#F1F1F1", "partial": PARTIAL, "full": KEPT}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    for place, case in zip(axes, TILED, strict=True):
        (q_len,), (kv_len,) = case.q_lens, case.kv_lens
        counts = dict.fromkeys(colours, 0)
        for row in range(0, q_len, TILE):
            for key in range(0, kv_len, TILE):
                kind = tile_class(case, range(row, row + TILE), range(key, key + TILE))
                counts[kind] += 1
                place.add_patch(
                    Rectangle((key, row), TILE, TILE, facecolor=colours[kind], edgecolor="white")
                )
        row, key = np.nonzero(visible(case, 0))
        place.scatter(key + 0.5, row + 0.5, s=4, color=INK, linewidths=0)
        place.set_xlim(0, kv_len)
        place.set_ylim(q_len, 0)
        place.set_aspect("equal")
        place.set_xticks(range(0, kv_len + 1, TILE * 2))
        place.set_yticks(range(0, q_len + 1, TILE * 2))
        place.tick_params(length=0)
        place.xaxis.tick_top()
        place.set_xlabel("key j")
        place.set_ylabel("query row i")
        tally = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        place.set_title(f"{case.title}\n{tally}")
    labels = {
        "empty": "empty: skipped",
        "partial": "partial: computed, then masked",
        "full": "full: computed, mask not looked at",
    }
    handles = [Patch(color=colours[kind], label=label) for kind, label in labels.items()]
    handles.append(
        plt.Line2D([], [], color=INK, marker=".", markersize=4, linestyle="", label="visible pair")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def digest(cases: list[Case]) -> str:
    """Names the contents of a picture; the PNG carries it, so that a stale picture is noticed."""
    summary = hashlib.sha256()
    for case in cases:
        summary.update(repr(case).encode())
        for sequence in range(len(case.q_lens)):
            summary.update(visible(case, sequence).tobytes())
    return summary.hexdigest()


def save(figure: plt.Figure, path: Path, cases: list[Case]) -> None:
    """Writes a PNG of few colours and few bytes."""
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    text = PngInfo()
    text.add_text("masks", digest(cases))
    few = image.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True, pnginfo=text)


def main() -> None:
    """Draws everything."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, cases in PICTURES.items():
            save(draw_mode(name, cases), IMAGES / f"{name}.png", cases)
        save(draw_compressed(), IMAGES / "compressed.png", [])
        save(draw_tiles(), IMAGES / "tiles.png", TILED)
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.name:16} {path.stat().st_size / 1000:5.1f} kB")


if __name__ == "__main__":
    main()
