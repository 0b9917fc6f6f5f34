"""A call in flash-attn's words: window, slopes and what else its functions take besides tensors.

A window is (left, right), counted from the bottom right, -1 for no bound, one for all sequences.
"""

from typing import Any

import torch
from torch import Tensor

from fusion_attention._masks import bounds
from fusion_attention.convert._reading import Reading
from fusion_attention.convert._refusal import refuse

Window = tuple[int, int]
Span = tuple[int, int, int, int]


def options_of(reading: Reading, spans: list[Span]) -> dict[str, Any]:
    """Returns what both of flash-attn's functions take besides the tensors.

    Args:
        reading: The call.
        spans: (q_begin, q_len, kv_begin, kv_len) of each sequence.

    Raises:
        ConversionError: flash-attn has no words for the call.
    """
    reading.refuse_extras("sink", "dropout_mask")
    if reading.value.shape[3] != reading.query.shape[3]:
        raise refuse(
            f"value with {reading.value.shape[3]} channels for {reading.query.shape[3]} of query",
            "flash-attn has one head dimension",
            "Pad value with zeros and cut the result to its channels",
        )
    left, right = _window(reading, spans)
    return {
        "dropout_p": reading.dropout_p,
        "softmax_scale": reading.scale,
        "causal": right == 0,
        "window_size": (left, right),
        "alibi_slopes": _slopes(reading, spans),
    }


def _window(reading: Reading, spans: list[Span]) -> Window:
    """Returns the one window of all sequences, or refuses."""
    left = right = -1
    if reading.mask is None:
        for q_begin, q_len, kv_begin, kv_len in spans:
            rows = slice(q_begin, q_begin + q_len)
            begin, end = reading.begin[0, rows] - kv_begin, reading.end[0, rows] - kv_begin
            pre, following = bounds(begin, end, kv_len)
            left = left if pre is None else pre
            right = right if following is None else following
        if min(left, right) >= -1 and all(_is_window(reading, span, left, right) for span in spans):
            return left, right
    raise refuse(
        "this mask",
        "flash-attn knows windows from the bottom right alone, one for all sequences",
        "Use to_flex or to_sdpa, which take any mask",
    )


def _is_window(reading: Reading, span: Span, left: int, right: int) -> bool:
    """Whether all rows of all batches see what flash-attn's window shows them."""
    q_begin, q_len, kv_begin, kv_len = span
    place = torch.arange(q_len) + kv_len - q_len
    begin = (place - left).clamp(min=0) if left >= 0 else torch.zeros_like(place)
    end = (place + 1 + right).clamp(max=kv_len) if right >= 0 else torch.full_like(place, kv_len)
    rows = slice(q_begin, q_begin + q_len)
    ours_begin, ours_end = reading.begin[:, rows] - kv_begin, reading.end[:, rows] - kv_begin
    same = (ours_begin == begin) & (ours_end == end)
    return bool((same | ((ours_begin >= ours_end) & (begin >= end))).all())


def _slopes(reading: Reading, spans: list[Span]) -> Tensor | None:
    if reading.arguments["pse"] is None:
        return None
    linear = reading.slopes is not None and reading.arguments["pse_type"] == 2
    deltas = torch.tensor([q_len - kv_len for _, q_len, _, kv_len in spans])
    if linear and torch.equal(reading.start(torch.arange(len(spans))), deltas):
        # Theirs are [N] or [B, N]; [1, N] for a larger batch is neither, nor is a row for each of
        # the unused sequences that a packed call may end with.
        if len(reading.slopes) == 1:
            return reading.slopes[0]
        return reading.slopes if reading.sequences is None else reading.slopes[: len(spans)]
    raise refuse(
        "pse",
        "flash-attn has no bias but -slope * |i + Skv - Sq - j|",
        "Use to_flex or to_sdpa, which take any bias",
    )
