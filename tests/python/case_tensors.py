"""The tensors of a case: seeded values, in the strides and shapes that its spec asks for."""

import functools
import itertools
import random
from typing import Any

import torch
from cases import COMPRESSED_ROWS, Case, Spec, draw
from oracle import Geometry


@functools.cache
def compressed_mask(sparse_mode: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """The one matrix that a compressed sparse_mode takes as atten_mask."""
    mask = torch.ones(2048, 2048).triu(1)
    if sparse_mode == 6:
        rectangle = torch.ones(1024, 2048)
        rectangle[:, :1024] = 0
        mask = torch.cat([mask, rectangle])
    return mask.to(dtype)


def restride(tensor: torch.Tensor, kind: str, batch_axis: int = 0) -> torch.Tensor:
    """The tensor, lying differently in memory; only "expanded" changes its values.

    That one repeats the first batch entry by a stride of 0 (in TND the first head).
    """
    if kind == "contiguous" or tensor.numel() == 0:
        return tensor
    if kind == "turned":
        order = tuple(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)
    if kind == "expanded":
        return tensor.narrow(batch_axis, 0, 1).expand_as(tensor)
    size, step = tensor.shape[-1], 2 if kind == "stepped" else 1
    # Nothing may read what lies between the elements.
    trap = torch.nan if tensor.is_floating_point() else 1
    wide = tensor.new_full((*tensor.shape[:-1], size * step + 5), trap)
    view = wide[..., 3 : 3 + size * step : step]
    view.copy_(tensor)
    return view


def _tensor_shape(spec: Spec, tokens: int, heads: int, dim: int) -> tuple[int, ...]:
    match spec.layout:
        case "BSH":
            return spec.batch, tokens, heads * dim
        case "SBH":
            return tokens, spec.batch, heads * dim
        case "BNSD":
            return spec.batch, heads, tokens, dim
        case "BSND":
            return spec.batch, tokens, heads, dim
        case _:
            return tokens, heads, dim


def _mask(spec: Spec, generator: torch.Generator) -> torch.Tensor:
    if spec.mask == "compressed":
        return compressed_mask(spec.sparse_mode, spec.mask_dtype)
    rows, keys = max(spec.q_lens), max(spec.kv_lens)
    leading = {
        "SS": (),
        "11SS": (1, 1),
        "B1SS": (spec.batch, 1),
        "BNSS": (spec.batch, spec.heads),
    }[spec.mask]
    drops = torch.rand(*leading, rows, keys, generator=generator) < spec.mask_density
    if spec.mask_dtype == torch.bool:
        return drops
    return drops * torch.randint(1, 256, drops.shape, generator=generator, dtype=torch.uint8)


def _pse_shape(spec: Spec, rng: random.Random) -> tuple[int, ...]:
    batch, q_len, kv_len = len(spec.q_lens), spec.q_lens[0], max(spec.kv_lens)
    return {
        "BNSS": (batch, spec.heads, q_len, kv_len),
        "1NSS": (1, spec.heads, q_len, kv_len),
        "BN1S": (batch, spec.heads, 1, kv_len),
        "1N1S": (1, spec.heads, 1, kv_len),
        "compressed": (rng.choice([1, batch]), spec.heads, COMPRESSED_ROWS, kv_len),
        "slopes N": (spec.heads,),
        "slopes BN": (batch + spec.unused, spec.heads),
    }[spec.pse]


def build(spec: Spec) -> Case:
    """The tensors of a spec. Always the same ones."""
    generator = torch.Generator().manual_seed(spec.seed)
    rng = random.Random(spec.seed + 1)
    batch_axis = 1 if spec.layout in ("SBH", "TND") else 0

    def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
        values = torch.randn(shape, generator=generator) * size
        return restride(values.to(spec.dtype), spec.strides, batch_axis)

    q_tokens = sum(spec.q_lens) + spec.spare_tokens if spec.is_packed else spec.q_lens[0]
    kv_tokens = sum(spec.kv_lens) + spec.spare_tokens if spec.is_packed else spec.kv_lens[0]
    q_size = spec.head_dim**-0.5 if spec.scale_kind == "one" else 1.0
    call: dict[str, Any] = {
        "query": normal(*_tensor_shape(spec, q_tokens, spec.heads, spec.head_dim), size=q_size),
        "key": normal(*_tensor_shape(spec, kv_tokens, spec.kv_heads, spec.head_dim)),
        "value": normal(*_tensor_shape(spec, kv_tokens, spec.kv_heads, spec.value_dim)),
        "head_num": spec.heads,
        "input_layout": rng.choice([spec.layout, spec.layout, spec.layout.lower()]),
    }
    if spec.arguments.get("softmax_layout"):
        call["input_layout"] = spec.layout
    call |= {name: value for name, value in spec.arguments.items() if name != "sink"}
    if spec.is_packed:
        call["actual_seq_qlen"] = [*itertools.accumulate(spec.q_lens), *[0] * spec.unused]
        call["actual_seq_kvlen"] = [*itertools.accumulate(spec.kv_lens), *[0] * spec.unused]
    if spec.mask != "none":
        mask = _mask(spec, generator)
        call["atten_mask"] = mask if spec.mask == "compressed" else restride(mask, spec.strides)
    if spec.rope_dim:
        call["query_rope"] = normal(q_tokens, spec.heads, spec.rope_dim, size=q_size)
        call["key_rope"] = normal(kv_tokens, spec.kv_heads, spec.rope_dim)
    if spec.pse != "none":
        sizes = [0.5, 0.05, -0.01] if spec.has_slopes else [1.0, 5.0]
        draw_values = torch.rand if spec.has_slopes else torch.randn
        pse = draw_values(_pse_shape(spec, rng), generator=generator) * rng.choice(sizes)
        call["pse"] = restride(pse if spec.has_slopes else pse.to(spec.dtype), spec.strides)
    if spec.arguments["sink"]:
        call["sink"] = torch.randn(spec.heads, generator=generator) * 2
    if spec.dropout == "external":
        bits = Geometry.of(call).numels
        size = max(1, rng.choice([-(-bits // 8), -(-bits // 128) * 16]))
        call["dropout_mask"] = torch.randint(
            0, 256, (size,), generator=generator, dtype=torch.uint8
        )
    dy = normal(*_tensor_shape(spec, q_tokens, spec.heads, spec.value_dim))
    return Case(spec, call, dy)


def case(seed: int) -> Case:
    """The case with this seed."""
    return build(draw(seed))
