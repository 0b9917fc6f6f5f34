"""The effective mask of a call, counted exactly: pairs, rows that see nothing, tiles, single cells.

Structured masks are the row ranges that the core gives; dense ones are read from their data, in
chunks. Knows nothing of pictures and words.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_attention._masks import distinct
from fusion_attention.explaining.facts import Facts, Span
from fusion_attention.explaining.patterns import Pattern, Rows, recognise

EMPTY, PARTIAL, FULL = range(3)
_CHUNK = 1 << 22  # scores that are looked at together
_KEPT_MATRICES = 8  # that pictures may be drawn of


@dataclass(frozen=True)
class Matrix:
    """One score matrix: what every row of it sees.

    Attributes:
        span: The sequence that it belongs to, or the run of them.
        sequence: Index of that sequence.
        head: The head, where the mask differs between heads; otherwise -1.
        copies: How many score matrices of the call are like this one.
        ranges: The keys that mode, tockens and prefix leave to each row, int64 [q_len, 2].
        masked: The dense mask's own part, [q_len, kv_len], non-zero where masked.
    """

    span: Span
    sequence: int
    head: int
    copies: int
    ranges: Tensor
    masked: Tensor | None

    @property
    def q_len(self) -> int:
        return self.span.q_len

    @property
    def kv_len(self) -> int:
        return self.span.kv_len

    @functools.cached_property
    def unbounded(self) -> bool:
        """Whether the ranges leave all keys to all rows."""
        begin, end = self.ranges.unbind(1)
        return bool((begin == 0).all()) and bool((end == self.kv_len).all())

    def cells(self, rows: slice = slice(None), keys: slice = slice(None)) -> Tensor:
        """Bool: which of these rows sees which of these keys."""
        if self.masked is not None and self.unbounded:
            return self.masked[rows, keys] == 0
        key = torch.arange(self.kv_len)[keys]
        begin, end = self.ranges[rows].unbind(1)
        visible = (key >= begin[:, None]) & (key < end[:, None])
        return visible if self.masked is None else visible & (self.masked[rows, keys] == 0)

    def rows(self) -> Rows:
        """What each row sees."""
        if self.masked is None or self.masked.numel() == 0:
            begin, end = self.ranges.unbind(1)
            seen = begin < end
            first = torch.where(seen, begin, self.kv_len)
            return Rows(end - begin, first, torch.where(seen, end, 0), self.kv_len)
        counts, firsts, lasts = [], [], []
        for rows in self._chunks(1):
            cells = self.cells(rows).view(torch.uint8)
            counts.append(cells.sum(1))
            firsts.append(cells.argmax(1))  # of equal elements the first
            lasts.append(self.kv_len - cells.flip(1).argmax(1))
        count = torch.cat(counts)
        first = torch.where(count > 0, torch.cat(firsts), self.kv_len)
        return Rows(count, first, torch.where(count > 0, torch.cat(lasts), 0), self.kv_len)

    def kept_by_mask(self) -> int:
        """How many pairs the dense mask keeps, wherever they are."""
        if self.masked is None:
            return self.q_len * self.kv_len
        return sum(int((self.masked[rows] == 0).sum()) for rows in self._chunks(1))

    def reversals(self) -> tuple[int, int]:
        """(rows whose own key is masked while the next one is visible, rows that have both).

        A row's own key is counted from the bottom right. Causal masks have none of the former.
        """
        row = torch.arange(self.q_len)
        own = row + self.kv_len - self.q_len
        row, own = (x[(own >= 0) & (own < self.kv_len - 1)] for x in (row, own))
        if self.masked is None or not len(row):
            return 0, 0
        reverse = (self.masked[row, own] != 0) & (self.masked[row, own + 1] == 0)
        return int(reverse.sum()), len(row)

    def hides_own_keys(self) -> bool:
        """Whether it is square and its dense mask hides the whole diagonal."""
        if self.masked is None or not self.q_len == self.kv_len > 1:
            return False
        return bool((self.masked.diagonal() != 0).all())

    def fill(self, size: int) -> Tensor:
        """The share of visible pairs in every tile of `size` rows and keys, float64."""
        tile_rows, tile_keys = -(-self.q_len // size), -(-self.kv_len // size)
        seen = torch.zeros(tile_rows, tile_keys, dtype=torch.float64)
        left = torch.arange(tile_keys) * size
        right = (left + size).clamp(max=self.kv_len)
        for rows in self._chunks(size):
            if self.masked is None:
                begin, end = self.ranges[rows].unbind(1)
                overlap = torch.minimum(end[:, None], right) - torch.maximum(begin[:, None], left)
                counts = overlap.clamp(min=0)
            else:
                cells = self.cells(rows)
                pad = (0, tile_keys * size - self.kv_len)
                counts = torch.nn.functional.pad(cells, pad).view(-1, tile_keys, size).sum(2)
            tile = (torch.arange(rows.start, rows.stop) // size)[:, None].expand_as(counts)
            seen.scatter_add_(0, tile, counts.double())
        heights = torch.full((tile_rows,), size, dtype=torch.float64)
        heights[-1:] = self.q_len - (tile_rows - 1) * size
        return seen / (heights[:, None] * (right - left))

    def tiles(self, size: int) -> Tensor:
        """EMPTY, PARTIAL or FULL for every tile of `size` rows and keys, uint8."""
        fill = self.fill(size)
        return torch.where(fill == 0, EMPTY, torch.where(fill == 1, FULL, PARTIAL)).to(torch.uint8)

    def _chunks(self, multiple: int) -> Iterator[slice]:
        """The rows in pieces of about _CHUNK scores, each but the last a multiple of `multiple`."""
        rows = max(_CHUNK // max(self.kv_len, 1) // multiple, 1) * multiple
        for begin in range(0, self.q_len, rows):
            yield slice(begin, min(begin + rows, self.q_len))


@dataclass(frozen=True)
class Visible:
    """The effective mask of a whole call.

    Attributes:
        matrices: The first few score matrices that differ, and those of the band sequence.
        distinct: How many matrices differ, as far as the call's arguments let them.
        pairs: Visible (row, key) pairs, over all heads and sequences.
        empty_rows: Rows that see no key, over all heads and sequences.
        empty_ranges: (sequence, head or -1, first row, one behind the last row) of such rows, the
            first few.
        hidden: Pairs that a dense mask keeps, but tockens or prefix hide.
        reversed_rows: Rows of the different matrices in which a dense mask masks the row's own key
            and keeps the next, and how many rows could.
        selfless: How many of the different matrices are square and hide each row's own key by the
            dense mask, though every row sees another one.
        patterns: What the matrices look like -> how many of the different ones do.
        known: False where a dense mask's data is not there; everything then is what the other
            arguments leave.
    """

    matrices: tuple[Matrix, ...]
    distinct: int
    pairs: int
    empty_rows: int
    empty_ranges: tuple[tuple[int, int, int, int], ...]
    hidden: int
    reversed_rows: tuple[int, int]
    selfless: int
    patterns: Counter[Pattern]
    known: bool


def visible_of(facts: Facts, atten_mask: Tensor | None) -> Visible:
    """Returns the effective mask of a call; `atten_mask` is the call's own, None if unknown."""
    mask = atten_mask if facts.mask == "dense" else None
    known = mask is not None or facts.mask != "dense"
    kept: list[Matrix] = []
    count = pairs = empty = hidden = reverse = judged = selfless = 0
    ranges: list[tuple[int, int, int, int]] = []
    patterns: Counter[Pattern] = Counter()
    for matrix in _matrices(facts, mask):
        rows = matrix.rows()
        count += 1
        seen = int(rows.count.sum())
        pairs += matrix.copies * seen
        reverse, judged = (
            x + y for x, y in zip((reverse, judged), matrix.reversals(), strict=True)
        )
        selfless += matrix.hides_own_keys() and bool((rows.count > 0).all())
        if mask is not None and not matrix.unbounded:
            hidden += matrix.copies * (matrix.kept_by_mask() - seen)
        blind = rows.count == 0
        if blind.any():
            empty += matrix.copies * int(blind.sum())
            if len(ranges) < _KEPT_MATRICES:
                ranges += [(matrix.sequence, matrix.head, *run) for run in _runs(blind)]
        if matrix.q_len and matrix.kv_len:
            patterns[recognise(rows)] += 1
        if len(kept) < _KEPT_MATRICES or matrix.sequence == facts.band_sequence:
            kept.append(matrix)
    return Visible(
        matrices=tuple(kept),
        distinct=count,
        pairs=pairs,
        empty_rows=empty,
        empty_ranges=tuple(ranges[:_KEPT_MATRICES]),
        hidden=hidden,
        reversed_rows=(reverse, judged),
        selfless=selfless,
        patterns=patterns,
        known=known,
    )


def _matrices(facts: Facts, mask: Tensor | None) -> Iterator[Matrix]:
    """Yields every score matrix that may differ from the others."""
    for span in facts.spans:
        ranges = span.row_keys()
        if mask is None:
            yield Matrix(span, span.index, -1, span.count * facts.q_heads, ranges, None)
            continue
        full = distinct(mask if mask.dim() == 4 else mask[None, None])
        several = full.shape[0] > 1
        for sequence in range(span.index, span.index + (span.count if several else 1)):
            for head in range(full.shape[1]):
                own = full[sequence if several else 0, head, : span.q_len, : span.kv_len]
                heads = full.shape[1] > 1
                copies = (1 if several else span.count) * (1 if heads else facts.q_heads)
                yield Matrix(span, sequence, head if heads else -1, copies, ranges, own)


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """The half-open ranges in which the flags are set."""
    edges = torch.diff(flags.to(torch.int8), prepend=torch.zeros(1), append=torch.zeros(1))
    begins, ends = (edges > 0).nonzero().flatten(), (edges < 0).nonzero().flatten()
    return list(zip(begins.tolist(), ends.tolist(), strict=True))
