"""What pse adds to the scores of one sequence, as a dense matrix, and where its gradient goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from oracle.geometry import Geometry, Sequence

COMPRESSED_ROWS = 1024


@dataclass(frozen=True)
class Bias:
    """The bias of one sequence.

    Attributes:
        values: [heads, q_len, kv_len], float64.
        after_scale: whether it is added to the scaled scores.
        batch: the entry of pse's batch axis that the sequence reads; None where it has none.
        elements: row and key of the stored element that each score reads; None for slopes.
        distances: what the slopes are multiplied with, times -1, [q_len, kv_len]; None without.
    """

    values: torch.Tensor
    after_scale: bool
    batch: int | None
    elements: tuple[torch.Tensor, torch.Tensor] | None = None
    distances: torch.Tensor | None = None

    def add_gradient(self, sums: torch.Tensor, terms: torch.Tensor) -> None:
        """Adds terms [heads, q_len, kv_len], one for each score, to what pse holds."""
        per_head = sums if self.batch is None else sums[self.batch]
        if self.distances is not None:
            per_head += (terms * self.distances).sum((-2, -1))
            return
        for head in range(terms.shape[0]):
            per_head[head].index_put_(self.elements, terms[head], accumulate=True)

    def add_gradient_magnitude(self, sums: torch.Tensor, terms: torch.Tensor) -> None:
        """The same for terms that are absolute values."""
        positive = None if self.distances is None else -self.distances
        Bias(self.values, self.after_scale, self.batch, self.elements, positive).add_gradient(
            sums, terms
        )


def bias_of(call: Mapping[str, Any], geometry: Geometry, seq: Sequence) -> Bias | None:
    """The bias of this sequence, of any pse_type."""
    pse, pse_type = call.get("pse"), call.get("pse_type", 1)
    if pse is None:
        return None
    if pse_type in (0, 1):
        row, key, batch = stored_elements(pse, geometry, seq)
        values = pse[batch].double()[:, row, key]
        return Bias(values, pse_type == 0, batch, elements=(row, key))
    shift = start_shift(call, seq)
    distance = torch.arange(seq.kv_len)[None, :] - torch.arange(seq.q_len)[:, None] + shift
    distance = distance.abs().double()
    if pse_type == 3:
        distance = distance.sqrt()
    batch = seq.index if pse.dim() == 2 else None
    slopes = pse.double() if batch is None else pse[batch].double()
    return Bias(-slopes[:, None, None] * distance, True, batch, distances=-distance)


def start_shift(call: Mapping[str, Any], seq: Sequence) -> int:
    """How far key 0 lies behind row 0 in what slopes measure."""
    starts = call.get("q_start_idx"), call.get("kv_start_idx")
    if not all(starts):
        return 0
    if call.get("atten_mask") is not None and call.get("sparse_mode", 0) == 8 and seq.index > 0:
        return 0  # mode 8 cuts the first sequence alone
    shift = int(starts[1][0]) - int(starts[0][0])
    return max(-(2**40), min(shift, 2**40))


def stored_elements(
    pse: torch.Tensor, geometry: Geometry, seq: Sequence
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Row and key index matrices [q_len, kv_len] into pse[batch, head], and that batch index.

    A compressed pse holds the last 1024 rows of a bias that depends on row - key alone, for the
    longest sequence. Rows among the last 1024 of a sequence read their own row; earlier ones read
    row % 1024, the same number of whole 1024-blocks further right, which is the same diagonal.
    Pairs above the diagonal are never visible; their indices are clamped so that gathering is safe.
    """
    batch = seq.index % pse.shape[0]
    rows, keys = pse.shape[2], pse.shape[3]
    row = torch.arange(seq.q_len)[:, None].expand(seq.q_len, seq.kv_len)
    key = torch.arange(seq.kv_len)[None, :].expand(seq.q_len, seq.kv_len)
    compressed = rows == COMPRESSED_ROWS and (
        geometry.is_packed or geometry.q_tokens > COMPRESSED_ROWS
    )
    if not compressed:
        return (row if rows > 1 else torch.zeros_like(row)), key, batch
    tail = row >= seq.q_len - COMPRESSED_ROWS
    stored_row = torch.where(tail, row - (seq.q_len - COMPRESSED_ROWS), row % COMPRESSED_ROWS)
    stored_key = torch.where(
        tail,
        key + keys - seq.kv_len,
        key + keys - COMPRESSED_ROWS * (1 + row // COMPRESSED_ROWS),
    )
    return stored_row, stored_key.clamp(0, keys - 1), batch
