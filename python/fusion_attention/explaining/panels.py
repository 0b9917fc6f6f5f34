"""Panels: the effective mask as small grids of cells, for the terminal and for pictures alike.

A cell is a token by a token where that fits, else a square of them. Cells are sized for the eye:
the kernels' tiles are others. Chooses what is shown; draws nothing.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion_attention.explaining.facts import Facts, Span
from fusion_attention.explaining.visible import Matrix, Visible

OUTSIDE, EMPTY, PARTIAL, FULL = range(4)
_CELLS = 32  # along an edge: as many tokens are shown one by one
_CORNER = 8  # tokens along the edge of a corner
_FEWEST = 8  # cells along an edge that still show the shape of a mask


@dataclass(frozen=True)
class Frame:
    """A sequence's place in a panel, in tokens, and the corner that its mask counts from.

    Attributes:
        origin: "top left", "bottom right", or "" where the mask has none.
        prefix: The leading keys that all its rows see.
    """

    row: int
    key: int
    q_len: int
    kv_len: int
    origin: str
    prefix: int


@dataclass(frozen=True)
class Panel:
    """A grid of cells.

    Attributes:
        title: What it shows.
        cells: OUTSIDE (of all sequences), EMPTY, PARTIAL or FULL, uint8 [rows, keys].
        size: Tokens along the edge of a cell.
        row: The token that the first row starts with; key alike.
        frames: The sequences in it.
        dots: Visible pairs, for panels of larger cells that are small enough to show them; bool.
        cut: A row above which another card's rows begin; 0: none.
    """

    title: str
    cells: Tensor
    size: int
    row: int = 0
    key: int = 0
    frames: tuple[Frame, ...] = ()
    dots: Tensor | None = None
    cut: int = 0


def origin_of(facts: Facts, span: Span) -> str:
    """The corner from which the offsets of a sequence count."""
    if facts.mask == "none" or facts.sparse_mode == 1:
        return ""
    top_left = facts.sparse_mode in (0, 2) or (
        facts.sparse_mode == 8 and span.index != facts.band_sequence
    )
    return "top left" if top_left else "bottom right"


def _frame(facts: Facts, matrix: Matrix, row: int, key: int) -> Frame:
    span = matrix.span
    return Frame(row, key, span.q_len, span.kv_len, origin_of(facts, span), span.prefix)


def cell_size(tokens: int, cells: int) -> int:
    """The smallest power of two that makes so many tokens fit; 1 where each may have its cell."""
    return 1 if tokens <= _CELLS else 2 ** math.ceil(math.log2(tokens / cells))


def panel_of(facts: Facts, matrix: Matrix, title: str, size: int) -> Panel:
    """One score matrix in cells of `size` tokens."""
    small = size > 1 and matrix.q_len * matrix.kv_len <= 2048
    return Panel(
        title,
        matrix.tiles(size) + EMPTY,
        size,
        frames=(_frame(facts, matrix, 0, 0),),
        dots=matrix.cells() if small else None,
    )


def packed_panel(facts: Facts, visible: Visible, title: str) -> Panel:
    """All sequences of a packed call, along the diagonal."""
    end = facts.spans[-1]
    cells = torch.zeros(end.q_begin + end.q_len, end.kv_begin + end.kv_len, dtype=torch.uint8)
    frames = []
    for matrix in visible.matrices:
        row, key = matrix.span.q_begin, matrix.span.kv_begin
        own = torch.where(matrix.cells(), FULL, EMPTY).to(torch.uint8)
        cells[row : row + matrix.q_len, key : key + matrix.kv_len] = own
        frames.append(_frame(facts, matrix, row, key))
    return Panel(title, cells, 1, frames=tuple(frames))


def panels_of(facts: Facts, visible: Visible, limit: int, cells: int) -> list[Panel]:
    """The panels that show a call, at most `limit` of them and of about `cells` rows.

    Small packed calls are one panel; large ones are an overview and single sequences; a single
    large matrix comes with two of its corners, where the tokens can be told apart. Cells have one
    size, the corners' apart; short sequences of a long batch have a smaller one than its overview.
    """
    matrices = [m for m in visible.matrices if m.q_len and m.kv_len]
    if not matrices:
        return []
    end = facts.spans[-1]
    tokens = max(end.q_begin + end.q_len, end.kv_begin + end.kv_len)
    if facts.packed and len(facts.spans) > 1:
        if tokens <= _CELLS and visible.distinct == len(facts.spans) == len(visible.matrices):
            return [packed_panel(facts, visible, f"{facts.sequences} packed sequences")]
        matrices.sort(key=lambda m: m.sequence != facts.band_sequence)  # what was cut comes first
    size = cell_size(tokens, cells)
    panels = [_overview(facts, size)] if _has_overview(facts) else []
    shown = matrices[: limit - len(panels)]
    longest = max(max(matrix.q_len, matrix.kv_len) for matrix in shown)
    if longest < _FEWEST * size:
        size = cell_size(longest, cells)
    panels += [panel_of(facts, m, _title(facts, m, visible), size) for m in shown]
    if len(panels) == 1 and panels[0].size > 1:
        panels += _corners(facts, matrices[0])
    return panels


def show_all(facts: Facts, visible: Visible, panels: list[Panel]) -> bool:
    """Says whether every score matrix that may differ from the others is in one of the panels."""
    packed = len(panels[0].frames) > 1 or _has_overview(facts)
    return packed or visible.distinct <= len(panels)


def _has_overview(facts: Facts) -> bool:
    return facts.packed and len(facts.spans) > 1 and facts.mask != "dense"


def _overview(facts: Facts, size: int) -> Panel:
    """All sequences of a packed call along the diagonal, in larger cells."""
    end = facts.spans[-1]
    whole = replace(end, index=0, q_len=end.q_begin + end.q_len, kv_len=end.kv_begin + end.kv_len)
    seen, own = [], []
    for span in facts.spans:
        seen.append(span.row_keys() + span.kv_begin)
        own.append(torch.tensor([span.kv_begin, span.kv_begin + span.kv_len]).expand(span.q_len, 2))
    tiles = Matrix(whole, 0, -1, 1, torch.cat(seen), None).tiles(size) + EMPTY
    inside = Matrix(whole, 0, -1, 1, torch.cat(own), None).fill(size) > 0
    title = f"all {facts.sequences:,} sequences: {whole.q_len:,} x {whole.kv_len:,}"
    return Panel(title, torch.where(inside, tiles, OUTSIDE).to(torch.uint8), size)


def _title(facts: Facts, matrix: Matrix, visible: Visible) -> str:
    kind = "sequence" if facts.packed else "batch"
    several = visible.distinct > 1 or facts.packed
    place = f"{kind} {matrix.sequence}" if several else f"every {kind} and head"
    place += f", head {matrix.head}" if matrix.head >= 0 else ""
    prefix = f", prefix {matrix.span.prefix}" if matrix.span.prefix else ""
    return f"{place}: {matrix.q_len:,} x {matrix.kv_len:,}{prefix}"


def _corners(facts: Facts, matrix: Matrix) -> list[Panel]:
    """The first and the last tokens of a matrix, one cell each: where its diagonal starts."""
    corners = []
    rows, keys = min(matrix.q_len, _CORNER), min(matrix.kv_len, _CORNER)
    for title, row, key in (
        ("top left corner", 0, 0),
        ("bottom right corner", matrix.q_len - rows, matrix.kv_len - keys),
    ):
        cells = matrix.cells(slice(row, row + rows), slice(key, key + keys))
        shown = torch.where(cells, FULL, EMPTY).to(torch.uint8)
        frame = replace(_frame(facts, matrix, 0, 0), row=-row, key=-key)
        corners.append(Panel(title, shown, 1, row, key, (frame,)))
    return corners
