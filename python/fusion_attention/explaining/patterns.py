"""Names for the shapes that masks have: recognises them from each row's first and last visible key.

A matrix is described by rows alone, so that a mask of a million rows is as easy as one of ten.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What each row of one score matrix sees, int64 [rows] each.

    Attributes:
        count: How many keys.
        first: The first of them; kv_len where there is none.
        end: One behind the last of them; 0 where there is none.
        kv_len: The number of keys.
    """

    count: Tensor
    first: Tensor
    end: Tensor
    kv_len: int


@dataclass(frozen=True)
class Pattern:
    """A named shape.

    Attributes:
        kind: "all", "nothing", "columns" (every row sees the same range), "causal" (row i sees
            the keys before i + end), "anticausal" (those from i + begin on: the opposite), "band"
            (from i + begin to before i + end), "prefix" (causal from the bottom right, and the
            first `end` keys for all) or "other".
        begin: See kind; for "columns" the first key.
        end: See kind; for "columns" one behind the last key.
    """

    kind: str
    begin: int = 0
    end: int = 0


def recognise(rows: Rows) -> Pattern:
    """Returns the simplest pattern that is exactly what the rows see."""
    count, first, end, kv_len = rows.count, rows.first, rows.end, rows.kv_len
    seen = count > 0
    if not seen.any():
        return Pattern("nothing")
    if (count == kv_len).all():
        return Pattern("all")
    if not (count[seen] == (end - first)[seen]).all():
        return Pattern("other")  # a row sees keys on both sides of one that it does not see
    if seen.all() and (first == first[0]).all() and (end == end[0]).all():
        return Pattern("columns", int(first[0]), int(end[0]))
    row = torch.arange(len(count))
    # An end that is cut off by neither edge tells the diagonal.
    ends = (end > 0) & (end < kv_len)
    begins = (first > 0) & (first < kv_len)
    above = int((end - row)[ends][0]) if ends.any() else kv_len
    below = int((first - row)[begins][0]) if begins.any() else -len(count)
    upper = (row + above).clamp(0, kv_len)
    if (first[seen] == 0).all():
        if (end == upper).all():
            return Pattern("causal", end=above)
        prefix = int(end.min())
        if (end == (row + kv_len - len(count) + 1).clamp(prefix, kv_len)).all():
            return Pattern("prefix", end=prefix)
        return Pattern("other")
    lower = (row + below).clamp(0, kv_len)
    if (end[seen] == kv_len).all() and (first == lower).all():
        return Pattern("anticausal", begin=below)
    hidden = lower >= upper
    if (hidden == ~seen).all() and ((first == lower) & (end == upper))[seen].all():
        return Pattern("band", below, above)
    return Pattern("other")
