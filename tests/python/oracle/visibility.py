"""Which (row, key) pairs take part: the predicate of every sparse_mode as a dense bool matrix."""

from collections.abc import Mapping
from typing import Any

import torch

from oracle.geometry import Geometry, Sequence

DEFAULT_TOCKENS = 2147483647


def _band_sequence(call: Mapping[str, Any], geometry: Geometry) -> int:
    """The sequence that uses pre/next_tockens: the last (mode 7), first (8) with queries."""
    with_queries = [s.index for s in geometry.sequences if s.q_len > 0]
    if not with_queries:
        return -1
    return with_queries[-1] if call["sparse_mode"] == 7 else with_queries[0]


def _dense_mask(mask: torch.Tensor, geometry: Geometry, seq: Sequence) -> torch.Tensor:
    """True where the caller's mask lets the pair through: [1 or heads, q_len, kv_len]."""
    drops = mask.view(torch.uint8) != 0
    if drops.dim() == 2:
        drops = drops[None, None]
    drops = drops[seq.index if drops.shape[0] > 1 else 0]
    return ~drops[:, : seq.q_len, : seq.kv_len]


def visible_keys(call: Mapping[str, Any], geometry: Geometry, seq: Sequence) -> torch.Tensor:
    """Bool [heads, q_len, kv_len] of one problem."""
    shape = (geometry.heads, seq.q_len, seq.kv_len)
    mask = call.get("atten_mask")
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    mode = call.get("sparse_mode", 0)
    # Python ints have no range, so any int64 tocken is compared as it is.
    pre = int(call.get("pre_tockens", DEFAULT_TOCKENS))
    following = int(call.get("next_tockens", DEFAULT_TOCKENS))
    delta = seq.kv_len - seq.q_len
    row = torch.arange(seq.q_len)[:, None]
    key = torch.arange(seq.kv_len)[None, :]

    def band(shift: int) -> torch.Tensor:
        low, high = max(shift - pre, -(2**40)), min(shift + following, 2**40)
        return (key - row >= low) & (key - row <= high)

    match mode:
        case 0:
            keep = _dense_mask(mask, geometry, seq) & band(0)
        case 1:
            keep = _dense_mask(mask, geometry, seq)
        case 2:
            keep = key <= row
        case 3:
            keep = key <= row + delta
        case 4:
            keep = band(delta)
        case 5 | 6:
            keep = (key < call["prefix"][seq.index]) | (key <= row + delta)
            if mode == 5:
                keep = keep & _dense_mask(mask, geometry, seq)
        case 7 | 8:
            if seq.index == _band_sequence(call, geometry):
                keep = band(delta)
            else:
                keep = key <= row + (delta if mode == 7 else 0)
        case _:
            raise ValueError(f"no such sparse_mode: {mode}")
    return keep.expand(shape)


def reports_invalid_rows(call: Mapping[str, Any], geometry: Geometry) -> bool:
    """Whether rows without keys report softmax_sum = FLT_MAX: asked for, or inferred."""
    if call.get("inner_precise", 0) == 2:
        return True
    if geometry.is_packed or call.get("atten_mask") is None:
        return False
    q_len, kv_len = geometry.q_tokens, geometry.kv_tokens
    pre = int(call.get("pre_tockens", DEFAULT_TOCKENS))
    following = int(call.get("next_tockens", DEFAULT_TOCKENS))
    match call.get("sparse_mode", 0):
        case 0:
            return following < 0 or pre + kv_len < q_len
        case 3:
            return q_len > kv_len
        case 4:
            return pre < 0 or following + kv_len < q_len
        case 5 | 6:
            return q_len > kv_len and 0 in call["prefix"]
    return False
