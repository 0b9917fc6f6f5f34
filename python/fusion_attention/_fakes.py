"""Shapes of the operators' results, for meta tensors and torch.compile, after a real call's checks.

The checks run in the compiled library on meta tensors of the shapes seen while tracing, outside the
tracing modes: the texts are those of a real call, and no guard is added to the graph.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fusion_attention import _library
from fusion_attention._arguments import COUNT, TENSOR_COUNT, Arguments
from fusion_attention._autograd import no_vmap


def _known(size: int | torch.SymInt) -> int | None:
    """The value of a size while tracing; None for one that only the run will tell."""
    return size if isinstance(size, int) else size.node.hint


def _check(arguments: Arguments, gradient: tuple[Any, ...] = (None,) * 5) -> None:
    tensors = (*arguments[:TENSOR_COUNT], *gradient[:4])
    shapes = [None if tensor is None else [_known(n) for n in tensor.shape] for tensor in tensors]
    unknown = any(shape is not None and None in shape for shape in shapes)
    if unknown or arguments.qlen_tensor is not None or arguments.kvlen_tensor is not None:
        return  # the real call will check
    with _disable_current_modes():
        metas = [
            None if tensor is None else torch.empty(shape, dtype=tensor.dtype, device="meta")
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]
        _library.check_shapes(
            *metas[:TENSOR_COUNT], *arguments[TENSOR_COUNT:], *metas[TENSOR_COUNT:], gradient[4]
        )


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    arguments = Arguments(*inputs[:COUNT])
    _check(arguments)
    query, key, value = arguments.query, arguments.key, arguments.value
    head_num, layout = arguments.head_num, arguments.input_layout.upper()
    if layout in ("BSH", "SBH"):
        kv_heads = key.shape[2] // (query.shape[2] // head_num)
        value_dim = value.shape[2] // kv_heads
        out = query.new_empty(query.shape[0], query.shape[1], head_num * value_dim)
        batch, tokens = (
            (query.shape[0], query.shape[1])
            if layout == "BSH"
            else (query.shape[1], query.shape[0])
        )
        statistics: tuple[Any, ...] = (batch, head_num, tokens, 8)
    else:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        if layout == "BSND":
            statistics = (query.shape[0], query.shape[2], query.shape[1], 8)
        else:
            statistics = (*query.shape[:-1], 8)
    softmax_max, softmax_sum = (query.new_empty(statistics, dtype=torch.float32) for _ in range(2))
    return out, softmax_max, softmax_sum


def _backward(*inputs: Any) -> tuple[Tensor, ...]:
    arguments = Arguments(*inputs[:COUNT])
    _check(arguments, inputs[COUNT : COUNT + 5])
    wants_dpse, wants_dsink = inputs[-2:]
    query = arguments.query

    def like(tensor: Tensor | None, wanted: bool = True) -> Tensor:
        if tensor is None or not wanted:
            return query.new_empty(0)
        return query.new_empty(tensor.shape, dtype=tensor.dtype)

    return (
        like(query),
        like(arguments.key),
        like(arguments.value),
        like(arguments.pse, wants_dpse),
        like(arguments.sink, wants_dsink),
        like(arguments.query_rope),
        like(arguments.key_rope),
    )


def _checked(*inputs: Any) -> Tensor:
    arguments = Arguments(*inputs[:COUNT])
    _check(arguments, inputs[COUNT:])
    return arguments.query.new_empty(0, dtype=torch.float32)


def _dropout_mask(like: Tensor, numels: int, *_: Any) -> Tensor:
    return like.new_empty((numels + 127) // 128 * 16, dtype=torch.uint8)


torch.library.register_fake("fusion_attention::forward", _forward)
torch.library.register_fake("fusion_attention::backward", _backward)
torch.library.register_fake("fusion_attention::check", _checked)
torch.library.register_fake("fusion_attention::dropout_mask", _dropout_mask)
for _name in ("forward", "backward", "check", "dropout_mask"):
    torch.library.register_vmap(f"fusion_attention::{_name}", no_vmap)
