"""Which stored element of pse each score reads, as a dense pair of index matrices."""

import torch

from oracle.geometry import Geometry, Sequence

COMPRESSED_ROWS = 1024


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
