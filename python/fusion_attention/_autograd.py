"""The operator as one differentiable function.

softmax_max and softmax_sum are not differentiable. The gradient itself has no gradient: asking for
one raises. Arguments are the operators' common ones (`Arguments`), followed by what a class names.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusion_attention import _library
from fusion_attention._arguments import COUNT, TENSOR_COUNT, Arguments

_PSE = Arguments._fields.index("pse")
_SINK = Arguments._fields.index("sink")
_QUERY_ROPE = Arguments._fields.index("query_rope")
_KEY_ROPE = Arguments._fields.index("key_rope")


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _library.forward(*inputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    out, softmax_max, softmax_sum = output
    ctx.mark_non_differentiable(softmax_max, softmax_sum)
    ctx.set_materialize_grads(False)
    seed, offset = inputs[COUNT:]
    ctx.save_for_backward(*inputs[:TENSOR_COUNT], seed, offset, out, softmax_max, softmax_sum)
    ctx.settings = inputs[TENSOR_COUNT:COUNT]


def _differentiate(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *tensors, seed, offset, out, softmax_max, softmax_sum = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if dy is None:  # nobody used out
        dy = torch.zeros_like(out)
    dq, dk, dv, dpse, dsink, dq_rope, dk_rope = gradient(
        (*tensors, *ctx.settings),
        (dy, softmax_max, softmax_sum, out, 0, seed, offset, needs[_PSE], needs[_SINK]),
    )
    found = {0: dq, 1: dk, 2: dv, _PSE: dpse, _SINK: dsink}
    found |= {_QUERY_ROPE: dq_rope, _KEY_ROPE: dk_rope}
    return tuple(found.get(index) if need else None for index, need in enumerate(needs))


def _no_second_gradient(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "npu_fusion_attention: the gradient of the gradient is not implemented. "
        "Use scaled_dot_product_attention's math backend where double backward is needed."
    )


def no_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    """Refuses to be mapped; the signature is that of vmap rules."""
    raise NotImplementedError(
        "npu_fusion_attention: vmap is not implemented. "
        "Fold the mapped dimension into the batch dimension instead."
    )


class _Attention(torch.autograd.Function):
    """(*arguments, seed, offset) -> (out, softmax_max, softmax_sum)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _library.forward(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_differentiate)


class _TransformableAttention(torch.autograd.Function):
    """The same for torch.func's transforms, which ask for a form that costs 30 us more a call."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)
    vmap = staticmethod(no_vmap)


class _Gradient(torch.autograd.Function):
    """(*arguments, dy, ...) -> (dq, dk, dv, ...), as `gradient` takes and returns them."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _library.backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    backward = staticmethod(_no_second_gradient)
    vmap = staticmethod(no_vmap)


def _distinct(inputs: tuple[Any, ...]) -> list[Any]:
    """Makes every tensor another object: dynamo traces no Function that gets one of them twice."""
    result: list[Any] = []
    for value in inputs:
        repeated = isinstance(value, Tensor) and any(value is earlier for earlier in result)
        result.append(value.view_as(value) if repeated else value)
    return result


def attention(
    arguments: Arguments, seed: Tensor | None, offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (out, softmax_max, softmax_sum)."""
    if torch._C._are_functorch_transforms_active():
        return _TransformableAttention.apply(*arguments, seed, offset)
    # Without any recording the operator alone would do; a dual number must not lose its tangent.
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        inputs = (*arguments, seed, offset)
        return _Attention.apply(*(_distinct(inputs) if torch.compiler.is_compiling() else inputs))
    return _library.forward(*arguments, seed, offset)


def gradient(arguments: Arguments, rest: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Returns (dq, dk, dv, dpse, dsink, dq_rope, dk_rope).

    `rest` is what backward takes after the common arguments.
    """
    if torch.compiler.is_compiling():
        # A backward pass that always raises cannot be traced: in a graph gradients are constants.
        with torch.no_grad():
            return _library.backward(*arguments, *rest)
    if torch.is_grad_enabled():  # recorded only so that differentiating it raises
        return _Gradient.apply(*arguments, *rest)
    return _library.backward(*arguments, *rest)
