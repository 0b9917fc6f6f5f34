"""Which keys a row sees in a benchmark: as a name, as a matrix, as a number of pairs.

Knows neither operator: contestants.py turns a mask into the arguments of each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["full", "causal", "band", "prefix", "random", "blocks"]

# Blocks and random masks have no formula: they are drawn, always the same ones.
_SHARE_SEEN = 0.5


@dataclass(frozen=True)
class Mask:
    """The visible keys of every row of a sequence.

    Attributes:
        kind: "full": all. "causal": those up to the row's own, counted from the bottom right.
            "band": the last `size` of these. "prefix": those of causal and the first `size`.
            "random": each with probability 1/2. "blocks": squares of `size` x `size`, each with
            probability 1/2, those on the diagonal always.
        size: What the kind says.
    """

    kind: Kind = "full"
    size: int = 0

    @property
    def name(self) -> str:
        """A short text that tells this mask from every other one."""
        return f"{self.kind} {self.size}" if self.size else self.kind

    @property
    def is_dense(self) -> bool:
        """Whether only a matrix can say it."""
        return self.kind in ("random", "blocks")

    def shortened(self, factor: float) -> Mask:
        """The mask for sequences of `factor` times the length."""
        return replace(self, size=max(1, round(self.size * factor))) if self.size else self

    def visible(self, q_len: int, kv_len: int) -> Tensor | None:
        """The [q_len, kv_len] bool matrix, True where a key is visible; None where all are.

        Example:
            >>> Mask("band", 2).visible(3, 3).int().tolist()
            [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
        """
        if self.kind == "full":
            return None
        if self.is_dense:
            return _drawn(self, q_len, kv_len)
        causal = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
        if self.kind == "band":
            return causal.triu(kv_len - q_len - self.size + 1)
        if self.kind == "prefix":
            causal[:, : self.size] = True
        return causal

    def pairs(self, q_len: int, kv_len: int) -> int:
        """How many (row, key) pairs are visible.

        Example:
            >>> Mask("causal").pairs(3, 3), Mask("band", 2).pairs(3, 3), Mask("full").pairs(2, 3)
            (6, 5, 6)
        """
        if self.kind == "full":
            return q_len * kv_len
        if self.is_dense:
            return int(_drawn(self, q_len, kv_len).sum())
        seen = (torch.arange(q_len) + (kv_len - q_len + 1)).clamp(min=0)
        if self.kind == "band":
            seen = seen.clamp(max=self.size)
        if self.kind == "prefix":
            seen = seen.clamp(min=min(self.size, kv_len))
        return int(seen.sum())


FULL, CAUSAL = Mask("full"), Mask("causal")


@functools.lru_cache(maxsize=4)
def _drawn(mask: Mask, q_len: int, kv_len: int) -> Tensor:
    """The matrix of a mask without a formula: one for all, do not write to it."""
    generator = torch.Generator().manual_seed(0)
    side = mask.size if mask.kind == "blocks" else 1
    rows, columns = -(-q_len // side), -(-kv_len // side)
    seen = torch.rand(rows, columns, generator=generator) < _SHARE_SEEN
    if mask.kind == "blocks":
        seen |= torch.eye(rows, columns, dtype=torch.bool)
        seen = seen.repeat_interleave(side, 0).repeat_interleave(side, 1)
    return seen[:q_len, :kv_len].contiguous()
