"""Forward and backward in dense float64, with the sums of absolute values for bounds.py.

Reads like the formula: one problem (sequence) at a time, every head at once, all matrices
materialised.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from oracle.bias import bias_of
from oracle.dropout import keep_mask, unpack
from oracle.geometry import FLT_MAX, Geometry
from oracle.visibility import reports_invalid_rows, visible_keys


@dataclass(frozen=True)
class Quantity:
    """One result of the operator, in its shape and order, as float64.

    Attributes:
        value: the exact result.
        magnitude: the same sums with every term replaced by its absolute value. 0 means: exactly
            `value`.
        score: the largest absolute scaled score on which the element depends.
    """

    value: torch.Tensor
    magnitude: torch.Tensor
    score: torch.Tensor


@dataclass(frozen=True)
class Result:
    """All results of one call.

    Gradients are None where no dy was given, and where there is no such input.
    """

    out: Quantity
    softmax_max: Quantity
    softmax_sum: Quantity
    numels: int
    dq: Quantity | None = None
    dk: Quantity | None = None
    dv: Quantity | None = None
    dpse: Quantity | None = None
    dsink: Quantity | None = None
    dq_rope: Quantity | None = None
    dk_rope: Quantity | None = None

    def quantities(self) -> dict[str, Quantity]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Quantity)}


class _Sums:
    """A Quantity under construction: zeros that sequences add to."""

    def __init__(self, *shape: int) -> None:
        self.value, self.magnitude, self.score = torch.zeros(3, *shape, dtype=torch.float64)

    def done(self, arrange: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> Quantity:
        return Quantity(arrange(self.value), arrange(self.magnitude), arrange(self.score))


def _smallest_weight(dtype: torch.dtype) -> float:
    """Counted with each visible weight and dS, so that bounds cover those lost to underflow."""
    smallest, unit = (2.0**-1022, 2.0**-53) if dtype == torch.float64 else (2.0**-126, 2.0**-24)
    return smallest / (16 * unit)


def _keep(call: Mapping[str, Any], geometry: Geometry) -> tuple[torch.Tensor | None, float]:
    """Flat keep bits over all dropout elements (None: all kept) and the factor of the kept ones."""
    keep_prob = float(call.get("keep_prob", 1.0))
    # The device multiplies by the float32 reciprocal, whatever the inputs' type.
    factor = (1 / torch.tensor(keep_prob, dtype=torch.float32)).item()
    if call.get("dropout_mask") is not None:
        return unpack(call["dropout_mask"], geometry.numels), factor
    if abs(keep_prob - 1.0) < 1e-9:
        return None, 1.0
    if keep_prob < 1e-9:
        return torch.zeros(geometry.numels, dtype=torch.bool), 0.0
    seed, offset = call.get("seed", 0), call.get("offset", 0)
    bits = keep_mask(seed, offset, geometry.numels, keep_prob, call["query"].dtype)
    return bits, factor


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Left @ right in blocks of about sqrt(length) terms.

    What float64 inputs are judged by must be better than one long float64 sum.
    """
    width = max(1, math.isqrt(right.shape[-2]))
    starts = range(0, right.shape[-2], width)
    blocks = [left[..., i : i + width] @ right[..., i : i + width, :] for i in starts]
    return torch.stack(blocks).sum(0)


def attention(
    call: Mapping[str, Any],
    dy: torch.Tensor | None = None,
    attention_in: torch.Tensor | None = None,
) -> Result:
    """What a call of the operator and its gradient must return.

    Args:
        call: the arguments of npu_fusion_attention by name, and of those that only _v2 has; tensors
            as the caller holds them.
        dy: gradient of attention_out in the call's layout; None computes the forward results alone.
        attention_in: attention_out as the forward pass stored it; None takes the exact one.
    """
    geometry = Geometry.of(call)
    query = geometry.heads_first(call["query"], geometry.heads).double()
    key = geometry.heads_first(call["key"], geometry.kv_heads).double()
    value = geometry.heads_first(call["value"], geometry.kv_heads).double()
    pse, sink = call.get("pse"), call.get("sink")
    has_ropes = call.get("query_rope") is not None
    if has_ropes:
        query_rope = geometry.heads_first(call["query_rope"], geometry.heads).double()
        key_rope = geometry.heads_first(call["key_rope"], geometry.kv_heads).double()
    tiny = _smallest_weight(call["query"].dtype)
    scale = float(call.get("scale", 1.0))
    invalid_rows = reports_invalid_rows(call, geometry)
    keep_bits, keep_factor = _keep(call, geometry)

    slots, heads, group = geometry.slots, geometry.heads, geometry.group
    tokens = (slots, heads, geometry.q_tokens)
    out = _Sums(*tokens, geometry.value_dim)
    row_max, row_sum = _Sums(*tokens), _Sums(*tokens)
    if dy is not None:
        dy = geometry.heads_first(dy, heads).double()
        if attention_in is not None:
            attention_in = geometry.heads_first(attention_in, heads).double()
        dq, dk, dv = _Sums(*query.shape), _Sums(*key.shape), _Sums(*value.shape)
        dpse = None if pse is None else _Sums(*pse.shape)
        dsink = None if sink is None else _Sums(heads)
        if has_ropes:
            dq_rope, dk_rope = _Sums(*query_rope.shape), _Sums(*key_rope.shape)

    first_element = 0
    for seq in geometry.sequences:
        rows = (seq.slot, slice(None), slice(seq.q_begin, seq.q_begin + seq.q_len))
        keys = (seq.slot, slice(None), slice(seq.kv_begin, seq.kv_begin + seq.kv_len))
        elements = heads * seq.q_len * seq.kv_len
        factor = torch.tensor(1.0, dtype=torch.float64)
        if keep_bits is not None:
            kept = keep_bits[first_element : first_element + elements]
            factor = kept.reshape(heads, seq.q_len, seq.kv_len).double() * keep_factor
        first_element += elements
        if seq.q_len == 0 or seq.kv_len == 0:
            continue

        # Scores.
        q = query[rows]
        k = key[keys].repeat_interleave(group, 0)
        v = value[keys].repeat_interleave(group, 0)
        raw, raw_magnitude = _product(q, k.mT), q.abs() @ k.abs().mT
        if has_ropes:
            q_rope, k_rope = query_rope[rows], key_rope[keys].repeat_interleave(group, 0)
            raw = raw + _product(q_rope, k_rope.mT)
            raw_magnitude = raw_magnitude + q_rope.abs() @ k_rope.abs().mT
        bias = bias_of(call, geometry, seq)
        scaled, magnitude = raw * scale, raw_magnitude * abs(scale)
        size = scaled.abs()
        if bias is not None and bias.after_scale:
            scaled, magnitude = scaled + bias.values, magnitude + bias.values.abs()
            size = size + bias.values.abs()  # of the parts: their sum may cancel
        elif bias is not None:
            scaled = (raw + bias.values) * scale
            magnitude = magnitude + bias.values.abs() * abs(scale)
            size = scaled.abs()
        seen = visible_keys(call, geometry, seq)
        scores = torch.where(seen, scaled, -torch.inf)

        # Softmax. A row without a finite score to start from has no weights at all.
        maximum = scores.amax(-1)
        limit = torch.where(seen, size, 0.0).amax(-1)
        limit_magnitude = torch.where(seen, magnitude, 0.0).amax(-1)
        if sink is not None:
            sinks = sink.double()[:, None]
            maximum = torch.maximum(maximum, sinks)
            limit = torch.maximum(limit, sinks.abs())
            limit_magnitude = torch.maximum(limit_magnitude, sinks.abs())
        empty = maximum == -torch.inf
        weights = torch.where(seen & ~empty[..., None], (scores - maximum[..., None]).exp(), 0.0)
        total = weights.sum(-1)
        if sink is not None:
            total = total + (sinks - maximum).exp()
        p = torch.where(empty[..., None], 0.0, weights / total[..., None])
        p_magnitude = torch.where(seen & ~empty[..., None], p + tiny, 0.0)

        out.value[rows] = _product(p * factor, v)
        out.magnitude[rows] = (p_magnitude * factor) @ v.abs()
        out.score[rows] = limit[..., None]
        row_max.value[rows] = torch.where(empty, -FLT_MAX, maximum)
        row_max.magnitude[rows] = torch.where(empty, 0.0, limit_magnitude)
        row_sum.value[rows] = torch.where(
            empty, FLT_MAX if invalid_rows else float(seq.kv_len), total
        )
        row_sum.magnitude[rows] = torch.where(empty, 0.0, total)
        row_sum.score[rows] = limit
        if dy is None:
            continue

        # Backward.
        d_out = dy[rows]
        stored_out = (attention_in if attention_in is not None else out.value)[rows]
        delta = (stored_out * d_out).sum(-1, keepdim=True)
        delta_magnitude = (stored_out * d_out).abs().sum(-1, keepdim=True)
        dp, dp_magnitude = (d_out @ v.mT) * factor, (d_out.abs() @ v.abs().mT) * factor
        ds = p * (dp - delta)
        ds_magnitude = p_magnitude * (dp_magnitude + delta_magnitude)
        ds_magnitude = torch.where(ds_magnitude > 0, ds_magnitude + tiny, 0.0)
        key_limit = torch.where(seen, limit[..., None], 0.0).amax(1)[..., None]

        def per_kv_head(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(0, (geometry.kv_heads, group))

        dq.value[rows] = scale * ds @ k
        dq.magnitude[rows] = abs(scale) * ds_magnitude @ k.abs()
        dq.score[rows] = limit[..., None]
        dk.value[keys] = per_kv_head(scale * ds.mT @ q).sum(1)
        dk.magnitude[keys] = per_kv_head(abs(scale) * ds_magnitude.mT @ q.abs()).sum(1)
        dk.score[keys] = per_kv_head(key_limit).amax(1)
        dv.value[keys] = per_kv_head((p * factor).mT @ d_out).sum(1)
        dv.magnitude[keys] = per_kv_head((p_magnitude * factor).mT @ d_out.abs()).sum(1)
        dv.score[keys] = per_kv_head(key_limit).amax(1)
        if has_ropes:
            dq_rope.value[rows] = scale * ds @ k_rope
            dq_rope.magnitude[rows] = abs(scale) * ds_magnitude @ k_rope.abs()
            dq_rope.score[rows] = limit[..., None]
            dk_rope.value[keys] = per_kv_head(scale * ds.mT @ q_rope).sum(1)
            dk_rope.magnitude[keys] = per_kv_head(abs(scale) * ds_magnitude.mT @ q_rope.abs()).sum(
                1
            )
            dk_rope.score[keys] = per_kv_head(key_limit).amax(1)
        if dpse is not None:
            slope = 1.0 if bias.after_scale else scale
            bias.add_gradient(dpse.value, torch.where(seen, slope * ds, 0.0))
            magnitude = torch.where(seen, abs(slope) * ds_magnitude, 0.0)
            bias.add_gradient_magnitude(dpse.magnitude, magnitude)
            dpse.score.clamp_(min=limit.max())
        if dsink is not None:
            p_sink = torch.where(empty, 0.0, (sinks - maximum).exp() / total)
            dsink.value -= (p_sink * delta[..., 0]).sum(-1)
            dsink.magnitude += ((p_sink + tiny) * delta_magnitude[..., 0]).sum(-1)
            dsink.score = torch.maximum(dsink.score, limit.amax(-1))

    def statistics(tensor: torch.Tensor) -> torch.Tensor:
        return geometry.statistics(tensor, call.get("softmax_layout", ""))

    forward = {
        "out": out.done(geometry.as_layout),
        "softmax_max": row_max.done(statistics),
        "softmax_sum": row_sum.done(statistics),
        "numels": geometry.numels,
    }
    if dy is None:
        return Result(**forward)
    return Result(
        **forward,
        dq=dq.done(geometry.as_layout),
        dk=dk.done(geometry.as_layout),
        dv=dv.done(geometry.as_layout),
        dpse=None if dpse is None else dpse.done(),
        dsink=None if dsink is None else dsink.done(),
        dq_rope=dq_rope.done(geometry.as_layout) if has_ropes else None,
        dk_rope=dk_rope.done(geometry.as_layout) if has_ropes else None,
    )
