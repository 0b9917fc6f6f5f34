"""NaN and infinity: unseen they change no bit, seen they reach exactly those who see them.

What sees what is worked out here with booleans, from the oracle's predicates.
"""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from calls import Results, assert_same_bits, forward_and_backward
from case_tensors import case
from cases import draw
from oracle import Geometry, visible_keys
from oracle.bias import bias_of
from oracle.geometry import Sequence

_ROPES = ("query_rope", "key_rope")
_INPUTS = ("query", "key", "value", "pse", "dy", *_ROPES)
_OF_KV_HEADS = ("key", "value", "key_rope")


@dataclass
class Flags:
    """A bool for each element of each operand: [slot, head, token, channel], pse in its shape."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    dy: torch.Tensor
    pse: torch.Tensor | None
    query_rope: torch.Tensor | None
    key_rope: torch.Tensor | None

    @staticmethod
    def none(geometry: Geometry, call: dict[str, Any]) -> "Flags":
        g, pse = geometry, call.get("pse")

        def rope(name: str, heads: int) -> torch.Tensor | None:
            tensor = call.get(name)
            return None if tensor is None else torch.zeros_like(g.heads_first(tensor, heads)) != 0

        return Flags(
            torch.zeros(g.slots, g.heads, g.q_tokens, g.head_dim, dtype=torch.bool),
            torch.zeros(g.slots, g.kv_heads, g.kv_tokens, g.head_dim, dtype=torch.bool),
            torch.zeros(g.slots, g.kv_heads, g.kv_tokens, g.value_dim, dtype=torch.bool),
            torch.zeros(g.slots, g.heads, g.q_tokens, g.value_dim, dtype=torch.bool),
            None if pse is None else torch.zeros(pse.shape, dtype=torch.bool),
            rope("query_rope", g.heads),
            rope("key_rope", g.kv_heads),
        )

    def in_layout(self, geometry: Geometry, name: str) -> torch.Tensor:
        flags = getattr(self, name)
        return flags if name == "pse" else geometry.as_layout(flags)


def _seen_elements(call: dict[str, Any], geometry: Geometry) -> Flags:
    """Which elements some visible score depends on."""
    seen_by = Flags.none(geometry, call)
    for seq in geometry.sequences:
        rows = (seq.slot, slice(None), slice(seq.q_begin, seq.q_begin + seq.q_len))
        keys = (seq.slot, slice(None), slice(seq.kv_begin, seq.kv_begin + seq.kv_len))
        seen = visible_keys(call, geometry, seq)
        row_sees = seen.any(-1)[..., None]
        key_is_seen = seen.any(1).unflatten(0, (geometry.kv_heads, geometry.group)).any(1)
        seen_by.query[rows] = row_sees
        seen_by.dy[rows] = row_sees
        seen_by.key[keys] = key_is_seen[..., None]
        seen_by.value[keys] = key_is_seen[..., None]
        if seen_by.query_rope is not None:
            seen_by.query_rope[rows] = row_sees
            seen_by.key_rope[keys] = key_is_seen[..., None]
        if seen_by.pse is not None:
            _mark(seen_by.pse, call, geometry, seq, seen)
    return seen_by


def _mark(
    flags: torch.Tensor,
    call: dict[str, Any],
    geometry: Geometry,
    seq: Sequence,
    scores: torch.Tensor,
) -> None:
    """Sets the flags of the elements of pse that some of these scores read."""
    bias = bias_of(call, geometry, seq)
    per_head = flags if bias.batch is None else flags[bias.batch]
    for head in range(geometry.heads):
        if bias.elements is None:
            per_head[head] |= scores[head].any()
        else:
            row, key = bias.elements
            per_head[head, row[scores[head]], key[scores[head]]] = True


def _flags_of_scores(
    flags: torch.Tensor, call: dict[str, Any], geometry: Geometry, seq: Sequence
) -> torch.Tensor:
    """The flag of the element of pse that each score reads."""
    bias = bias_of(call, geometry, seq)
    per_head = flags if bias.batch is None else flags[bias.batch]
    return (
        per_head[:, None, None]
        if bias.elements is None
        else per_head[(slice(None), *bias.elements)]
    )


def _own_copies(call: dict[str, Any]) -> dict[str, Any]:
    """The call with every tensor its own memory, so that single elements can be written."""
    tensors = {name: call[name].clone() for name in _INPUTS if call.get(name) is not None}
    return call | tensors


@pytest.mark.parametrize("seed", range(520_000, 520_200))
def test_unseen_elements_change_nothing(seed: int) -> None:
    sample = case(seed)
    clean = _own_copies(sample.call | {"dy": sample.dy})
    geometry = Geometry.of(clean)
    seen_by = _seen_elements(clean, geometry)
    planted = _own_copies(clean)
    poison = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for name in _INPUTS:
        if planted.get(name) is None:
            continue
        unseen = ~seen_by.in_layout(geometry, name)
        values = poison.repeat(-(-int(unseen.sum()) // 3))[: int(unseen.sum())]
        planted[name][unseen] = values.to(planted[name].dtype)
    expected = forward_and_backward(clean, clean.pop("dy"))
    actual = forward_and_backward(planted, planted.pop("dy"))
    assert_same_bits(actual, expected)
    for name, tensor in actual.items():
        assert tensor.isfinite().all(), name


def _reached(call: dict[str, Any], geometry: Geometry, nans: Flags) -> dict[str, torch.Tensor]:
    """Which elements of the results a NaN in the flagged operands must reach, by the formula."""
    out = torch.zeros_like(nans.dy)
    dq, dk, dv = (torch.zeros_like(x) for x in (nans.query, nans.key, nans.value))
    statistics = torch.zeros(out.shape[:3], dtype=torch.bool)
    dpse = None if nans.pse is None else torch.zeros_like(nans.pse)
    dsink = torch.zeros(geometry.heads, dtype=torch.bool)
    ropes = None
    if nans.query_rope is not None:
        ropes = torch.zeros_like(nans.query_rope), torch.zeros_like(nans.key_rope)
    for seq in geometry.sequences:
        rows = (seq.slot, slice(None), slice(seq.q_begin, seq.q_begin + seq.q_len))
        keys = (seq.slot, slice(None), slice(seq.kv_begin, seq.kv_begin + seq.kv_len))
        seen = visible_keys(call, geometry, seq)
        query, dy = nans.query[rows], nans.dy[rows]
        key = nans.key[keys].repeat_interleave(geometry.group, 0)
        value = nans.value[keys].repeat_interleave(geometry.group, 0)
        score = query.any(-1)[:, :, None] | key.any(-1)[:, None, :]
        if nans.query_rope is not None:
            key_rope = nans.key_rope[keys].repeat_interleave(geometry.group, 0)
            score = score | nans.query_rope[rows].any(-1)[:, :, None]
            score = score | key_rope.any(-1)[:, None, :]
        if nans.pse is not None:
            score = score | _flags_of_scores(nans.pse, call, geometry, seq)
        # One NaN among a row's scores makes its sum one, and so all its weights.
        row = (seen & score).any(-1)
        statistics[rows] = row
        from_values = (seen.double() @ value.double()) > 0
        out[rows] = row[..., None] | from_values
        sees_a_key = seen.any(-1)
        delta = (out[rows] | dy).any(-1) & sees_a_key
        dp = dy.any(-1)[:, :, None] | value.any(-1)[:, None, :]
        ds = seen & (row[..., None] | delta[..., None] | dp)
        dq[rows] = ds.any(-1)[..., None]

        def per_kv_head(flags: torch.Tensor) -> torch.Tensor:
            return flags.unflatten(0, (geometry.kv_heads, geometry.group)).any(1)

        dk[keys] = per_kv_head(ds.any(1))[..., None]
        weights = (seen & row[..., None]).any(1)[..., None]
        from_dy = (seen.double().mT @ dy.double()) > 0
        dv[keys] = per_kv_head(weights | from_dy)
        if dpse is not None:
            _mark(dpse, call, geometry, seq, ds)
        if ropes is not None:
            ropes[0][rows] = ds.any(-1)[..., None]
            ropes[1][keys] = per_kv_head(ds.any(1))[..., None]
        dsink |= (row | delta).any(-1)
    layout = call.get("softmax_layout", "")
    reached = {
        "out": geometry.as_layout(out),
        "softmax_max": geometry.statistics(statistics, layout),
        "softmax_sum": geometry.statistics(statistics, layout),
        "dq": geometry.as_layout(dq),
        "dk": geometry.as_layout(dk),
        "dv": geometry.as_layout(dv),
    }
    if dpse is not None:
        reached["dpse"] = dpse
    if ropes is not None:
        for name, flags in zip(("dq_rope", "dk_rope"), ropes, strict=True):
            reached[name] = geometry.as_layout(flags)
    if call.get("sink") is not None:
        reached["dsink"] = dsink
    return reached


def _assert_reaches(actual: Results, clean: Results, reached: dict[str, torch.Tensor]) -> None:
    """NaN exactly where `reached` says, and the clean results' own bits elsewhere."""
    for name, expected in reached.items():
        found = actual[name].isnan()
        wrong = (found != expected).nonzero()
        assert not wrong.numel(), (
            f"{name}{wrong[0].tolist()}: NaN is {not expected[tuple(wrong[0])]}"
        )
        kept = {name: actual[name].masked_fill(expected, 0)}
        assert_same_bits(kept, {name: clean[name].masked_fill(expected, 0)})


def _cases_with(name: str, count: int) -> list[int]:
    """Seeds of cases that have this operand; without dropout, which hides what it drops."""
    found: list[int] = []
    seed = 530_000
    while len(found) < count:
        spec = draw(seed)
        # A dense compressed pse has a million scores, too many for the booleans here.
        long = spec.pse == "compressed" and not spec.is_packed
        present = spec.rope_dim > 0 if name in _ROPES else name != "pse" or spec.pse != "none"
        if spec.dropout == "none" and not long and present:
            found.append(seed)
        seed += 1
    return found


@pytest.mark.parametrize(
    ("name", "seed"), [(name, seed) for name in _INPUTS for seed in _cases_with(name, 30)]
)
def test_a_nan_reaches_exactly_those_who_see_it(name: str, seed: int) -> None:
    sample = case(seed)
    clean = _own_copies(sample.call | {"dy": sample.dy})
    geometry = Geometry.of(clean)
    seen = _seen_elements(clean, geometry).in_layout(geometry, name).nonzero()
    if not len(seen):
        # Nobody sees anything here: the other test's ground.
        assert not forward_and_backward(clean, clean.pop("dy"))["out"].any()
        return
    planted = _own_copies(clean)
    at = tuple(seen[random.Random(seed).randrange(len(seen))].tolist())
    planted[name][at] = torch.nan
    nans = Flags.none(geometry, clean)
    if name == "pse":
        nans.pse = planted["pse"].isnan()
    else:
        heads = geometry.kv_heads if name in _OF_KV_HEADS else geometry.heads
        setattr(nans, name, geometry.heads_first(planted[name], heads).isnan())
    reached = _reached(clean, geometry, nans)
    expected = forward_and_backward(clean, clean.pop("dy"))
    actual = forward_and_backward(planted, planted.pop("dy"))
    _assert_reaches(actual, expected, reached)
