"""What the core makes of a call: the validated problem and the plan for it, as plain values.

Everything is read off the operators `describe` and `row_keys`; no rule and no geometry is stated
here a second time.
"""

from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fusion_attention import _library
from fusion_attention.explaining.reading import GRADIENT_TENSORS, Reading, arguments

#: What may be left out, a group at a time, to learn something about a call that is refused.
_GROUPS: tuple[tuple[str, ...], ...] = (
    ("atten_mask",),
    ("actual_seq_qlen", "actual_seq_kvlen"),
    ("pse",),
    ("query_rope", "key_rope"),
    ("sink",),
    ("dropout_mask",),
    ("padding_mask",),
)


@dataclass(frozen=True)
class Span:
    """A run of sequences that differ in nothing but their index.

    Attributes:
        index: Index of the first.
        count: How many they are.
        q_begin: TND: the first query token; so for kv_begin.
        row: The numbers as `row_keys` takes them.
    """

    index: int
    count: int
    q_begin: int
    q_len: int
    kv_begin: int
    kv_len: int
    dropout_begin: int
    begin_offset: int
    end_offset: int
    prefix: int
    row: Tensor = field(repr=False)

    def row_keys(self) -> Tensor:
        """The half-open ranges of keys that its rows may see: int64 [q_len, 2]."""
        return _library.row_keys(self.row)


@dataclass(frozen=True)
class Facts:
    """A validated call. Names and values are those of the core's Problem and Plan.

    Attributes:
        mask: "none", "dense" (a byte per score) or "compressed" (the rows' ranges alone decide).
        pse: "none", "dense", "compressed" (the last 1024 rows of a Toeplitz bias) or "slopes".
        dropout: "none", "philox", "external" or "drop_all".
        drop_rate: The share of weights that generated dropout really drops.
        band_sequence: Modes 7 and 8: the sequence that uses pre_tockens and next_tockens.
        target: The SIMD target that would run, "none" for a backend without.
        spans: The sequences.
        without: Arguments that were left out because the call is refused with them.
    """

    layout: str
    dtype: str
    sequences: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    keep_prob: float
    dropout: str
    drop_rate: float
    numels: int
    mask: str
    sparse_mode: int
    pre_tockens: int
    next_tockens: int
    band_sequence: int
    pse: str
    pse_after_scale: bool
    has_sink: bool
    softmax_layout_tnd: bool
    invalid_row_mode: bool
    out_shape: tuple[int, ...]
    statistics_shape: tuple[int, ...]
    backend: str
    threads: int
    target: str
    spans: tuple[Span, ...] = field(repr=False)
    without: tuple[str, ...] = ()

    @property
    def packed(self) -> bool:
        return self.layout == "TND"


def _parsed(text: str, kind: type) -> Any:
    if kind is bool:
        return text == "1"
    if kind in (int, float, str):
        return kind(text)
    return tuple(map(int, text.split(",")))


def facts_of(reading: Reading) -> Facts | None:
    """Returns the facts of a call; where it is refused, those of the call without some arguments.

    None where even that is refused.
    """
    groups = [[name for name in group if reading[name] is not None] for group in _GROUPS]
    if reading.is_gradient:
        groups.insert(0, list(GRADIENT_TENSORS))
    groups = [group for group in groups if group]
    for without in ([], *groups, *accumulate(groups)):  # nothing, one of them, more and more
        try:
            described = _described(reading, without)
        except (RuntimeError, NotImplementedError):
            continue
        return _facts(*described, tuple(without))
    return None


def _described(reading: Reading, without: list[str]) -> tuple[Tensor, str]:
    instead: dict[str, Any] = dict.fromkeys(without)
    common = {name: value for name, value in instead.items() if name not in GRADIENT_TENSORS}
    if "pse" in without:
        common["pse_type"] = 1  # the others need one
    gradient: tuple[Any, ...] = (None,) * 5
    if reading.is_gradient and "dy" not in without:
        tensors = [reading.tensor(name) for name in GRADIENT_TENSORS]
        if all(tensor is not None for tensor in tensors):
            metas = (torch.empty(x.shape, dtype=x.dtype, device="meta") for x in tensors)
            gradient = (*metas, reading.integer("numels"))
    with torch.no_grad():
        return _library.describe(*arguments(reading, "meta", **common), *gradient)


def _facts(sequences: Tensor, text: str, without: tuple[str, ...]) -> Facts:
    given = dict(line.split("=", 1) for line in text.splitlines())
    known = {f.name: _parsed(given[f.name], f.type) for f in fields(Facts) if f.name in given}
    spans = tuple(Span(*row.tolist(), row) for row in sequences)
    return Facts(**known, spans=spans, without=without)
