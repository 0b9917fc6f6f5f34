"""Small legal calls on meta tensors, to be changed in what a test of lint is about."""

from typing import Any

import torch
from torch import Tensor

CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
PREFIX = torch.cat([CAUSAL, (torch.arange(2048) >= 1024).expand(1024, 2048)])


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def call(layout: str = "BNSD", q: int = 64, kv: int = 64, **changes: Any) -> dict[str, Any]:
    """A legal call with B=2, N=4, D=64, changed in what a test is about."""
    shapes = {
        "BNSD": lambda s: (2, 4, s, 64),
        "BSND": lambda s: (2, s, 4, 64),
        "BSH": lambda s: (2, s, 256),
        "SBH": lambda s: (s, 2, 256),
        "TND": lambda s: (s, 4, 64),
    }
    shape = shapes[layout.upper()]
    query, key = meta(*shape(q)), meta(*shape(kv))
    made = {"query": query, "key": key, "value": key, "head_num": 4, "input_layout": layout}
    return made | {"scale": 0.125} | changes


def packed(
    q_ends: list[int], kv_ends: list[int], tokens: int = 0, **changes: Any
) -> dict[str, Any]:
    """A legal packed call."""
    lengths = {"actual_seq_qlen": q_ends, "actual_seq_kvlen": kv_ends}
    return call("TND", tokens or max(q_ends), tokens or max(kv_ends), **lengths, **changes)


def triangle(q: int, kv: int, diagonal: int = 1) -> Tensor:
    """A full causal mask."""
    return torch.ones(q, kv, dtype=torch.bool).triu(diagonal)


def gradient(**changes: Any) -> dict[str, Any]:
    """A gradient call by hand."""
    rows = meta(2, 4, 64, 8, dtype=torch.float32)
    made = call(dy=meta(2, 4, 64, 64), attention_in=meta(2, 4, 64, 64))
    made |= {"softmax_max": rows, "softmax_sum": rows, "scale_value": made.pop("scale")}
    return made | changes
