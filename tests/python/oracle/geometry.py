"""What a call's shapes say: heads, head sizes, and which tokens form which attention problem.

Knows the five layouts; nothing about masks or numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

FLT_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Sequence:
    """Query tokens [q_begin, q_begin + q_len) of one problem against its own keys.

    `slot` is the index along the batch axis after `Geometry.heads_first`: the batch index of dense
    layouts, 0 in TND.
    """

    index: int
    slot: int
    q_begin: int
    q_len: int
    kv_begin: int
    kv_len: int


def _lengths(cumulative: list[int]) -> list[int]:
    """Lengths behind a cumulative list; a drop to trailing zeros means unused: length 0."""
    return [max(0, end - begin) for begin, end in zip([0, *cumulative], cumulative, strict=False)]


@dataclass(frozen=True)
class Geometry:
    """Sizes of one call, and its attention problems in order."""

    layout: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q_tokens: int
    kv_tokens: int
    slots: int
    sequences: tuple[Sequence, ...]

    @property
    def is_packed(self) -> bool:
        return self.layout == "TND"

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def numels(self) -> int:
        return self.heads * sum(s.q_len * s.kv_len for s in self.sequences)

    @staticmethod
    def of(call: Mapping[str, Any]) -> "Geometry":
        layout = call["input_layout"].upper()
        heads = call["head_num"]
        query, key, value = call["query"], call["key"], call["value"]
        if layout in ("BSH", "SBH"):
            head_dim = query.shape[2] // heads
            kv_heads = key.shape[2] // head_dim
            value_dim = value.shape[2] // kv_heads
        else:
            heads_axis = {"BNSD": 1, "BSND": 2, "TND": 1}[layout]
            head_dim, kv_heads, value_dim = query.shape[-1], key.shape[heads_axis], value.shape[-1]
        if layout == "TND":
            slots, q_tokens, kv_tokens = 1, query.shape[0], key.shape[0]
            q_lens = _lengths(list(call["actual_seq_qlen"]))
            kv_lens = _lengths(list(call["actual_seq_kvlen"]))
            sequences = []
            q_begin = kv_begin = 0
            for index, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
                sequences.append(Sequence(index, 0, q_begin, q_len, kv_begin, kv_len))
                q_begin, kv_begin = q_begin + q_len, kv_begin + kv_len
        else:
            batch_axis = 1 if layout == "SBH" else 0
            token_axis = {"BSH": 1, "SBH": 0, "BNSD": 2, "BSND": 1}[layout]
            slots = query.shape[batch_axis]
            q_tokens, kv_tokens = query.shape[token_axis], key.shape[token_axis]
            sequences = [Sequence(b, b, 0, q_tokens, 0, kv_tokens) for b in range(slots)]
        return Geometry(
            layout,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            q_tokens,
            kv_tokens,
            slots,
            tuple(sequences),
        )

    def heads_first(self, tensor: torch.Tensor, heads: int) -> torch.Tensor:
        """A tensor of the call's layout as [slots, heads, tokens, channels]."""
        match self.layout:
            case "BNSD":
                return tensor
            case "BSND":
                return tensor.permute(0, 2, 1, 3)
            case "BSH":
                return tensor.unflatten(2, (heads, tensor.shape[2] // heads)).permute(0, 2, 1, 3)
            case "SBH":
                return tensor.unflatten(2, (heads, tensor.shape[2] // heads)).permute(1, 2, 0, 3)
            case _:
                return tensor.permute(1, 0, 2)[None]

    def as_layout(self, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of `heads_first`."""
        match self.layout:
            case "BNSD":
                return tensor
            case "BSND":
                return tensor.permute(0, 2, 1, 3)
            case "BSH":
                return tensor.permute(0, 2, 1, 3).flatten(2)
            case "SBH":
                return tensor.permute(2, 0, 1, 3).flatten(2)
            case _:
                return tensor[0].permute(1, 0, 2)

    def statistics(self, rows: torch.Tensor, softmax_layout: str) -> torch.Tensor:
        """Row values in the shape and memory order of softmax_max: 8 equal values a row.

        Args:
            rows: [slots, heads, q_tokens].
            softmax_layout: as the call gives it.
        """
        if self.is_packed:
            if softmax_layout == "TND":
                flat = rows[0].T
            else:
                used = sum(s.q_len for s in self.sequences)
                blocks = [
                    rows[0, :, s.q_begin : s.q_begin + s.q_len].flatten() for s in self.sequences
                ]
                flat = torch.cat([*blocks, rows[0, :, used:].flatten()])
            rows = flat.reshape(self.q_tokens, self.heads)
        return rows[..., None].expand(*rows.shape, 8)
