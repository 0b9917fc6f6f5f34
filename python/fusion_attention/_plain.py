"""The short way of plain calls: a mask and lengths at most, and nobody who looks on.

Most of what a small call costs is passing arguments, 0.1 to 0.3 us each. So the operators of this
way take few and have one for each layout, which is then no argument: a [1, 2, 8, 16] forward pass
takes 5 us this way and 14 us the general one (_entry.py). Nothing is refused here: what is not
plain, or fails, goes the general way, which knows every rule and has the words. A call that
succeeds here gives the same there.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from fusion_attention import _autograd, _entry, _library
from fusion_attention._arguments import UNLIMITED, Integers

#: attention_out, softmax_max, softmax_sum, softmax_in and the number of dropout elements.
Results: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, int]

#: What a plain call states besides its tensors: the layout, which chooses the operator; head_num,
#: scale and, of packed sequences, actual_seq_qlen and actual_seq_kvlen; sparse_mode, pre_tockens
#: and next_tockens, or nothing where they are the defaults.
Settings: TypeAlias = tuple[str, tuple[Any, ...], tuple[int, ...]]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    head_num: int,
    input_layout: str,
    scale: float,
    sparse_mode: int,
    pre_tockens: int,
    next_tockens: int,
    actual_seq_qlen: Integers,
    actual_seq_kvlen: Integers,
    keep_prob: float,
    inner_precise: int,
    softmax_layout: str,
    nothing_else: bool,
    pse_type: int = 1,
) -> Results | None:
    """Returns the results of a plain call; None where the call must go the general way.

    `nothing_else` says that all other arguments are None.
    """
    if is_compiling():
        return None
    try:
        if (
            not nothing_else
            or softmax_layout != ""
            # The operators' own conversions would take more types than the general way does.
            or (type(keep_prob) is not float and type(keep_prob) is not int)
            or type(head_num) is not int
            or type(input_layout) is not str
            or type(scale) is not float
            or type(sparse_mode) is not int
            or type(pre_tockens) is not int
            or type(next_tockens) is not int
            or type(inner_precise) is not int
            or type(pse_type) is not int
            or keep_prob != 1
            or inner_precise != 0
            or pse_type != 1
            or forward_ad._current_level >= 0
        ):
            return None
        forward = _library.forward_plain[input_layout]
        is_recorded = torch.is_grad_enabled() and (
            query.requires_grad or key.requires_grad or value.requires_grad
        )
        has_lengths = actual_seq_qlen is not None or actual_seq_kvlen is not None
        has_bounds = sparse_mode != 0 or pre_tockens != UNLIMITED or next_tockens != UNLIMITED
        if not (is_recorded or has_lengths or has_bounds or atten_mask is not None):
            return forward(query, key, value, head_num, scale)  # 0.3 us less than with the defaults
        stated: tuple[Any, ...] = (head_num, scale)
        if has_lengths:
            if not (_are_ends(actual_seq_qlen) and _are_ends(actual_seq_kvlen)):
                return None
            # Copies: backward reads them, and they are the caller's to change.
            stated = (head_num, scale, list(actual_seq_qlen), list(actual_seq_kvlen))
        bounds = (sparse_mode, pre_tockens, next_tockens) if has_bounds else ()
        if not is_recorded:
            return forward(query, key, value, *stated, atten_mask, *bounds)
        # These meet a Function before its operator could refuse.
        if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state():
            return None
    except Exception:  # the general way will fail too, and say why
        return None
    try:
        return _PlainAttention.apply(query, key, value, atten_mask, (input_layout, stated, bounds))
    except _library.NotPlainError:
        return None


def _are_ends(values: Integers) -> bool:
    return type(values) in (list, tuple) and all(type(value) is int for value in values)


class _PlainAttention(torch.autograd.Function):
    """(query, key, value, atten_mask, settings) -> Results.

    The settings are one value because each input of a Function costs 0.2 us.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Results:
        query, key, value, atten_mask, settings = inputs
        layout, stated, bounds = settings
        try:
            results = _library.forward_plain[layout](
                query, key, value, *stated, atten_mask, *bounds
            )
        except Exception:  # nothing else's: hooks of what is saved below raise to be heard
            raise _library.NotPlainError from None
        out, softmax_max, softmax_sum, softmax_in, _ = results
        ctx.mark_non_differentiable(softmax_max, softmax_sum, softmax_in)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value, atten_mask, out, softmax_max, softmax_sum)
        ctx.settings = settings
        return results

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        *tensors, out, softmax_max, softmax_sum = ctx.saved_tensors
        if dy is None:  # nobody used out
            dy = torch.zeros_like(out)
        dq, dk, dv = _gradient(tensors, ctx.settings, (dy, softmax_max, softmax_sum, out))
        query, key, value, *_ = ctx.needs_input_grad
        return dq if query else None, dk if key else None, dv if value else None, None, None


def _gradient(
    tensors: list[Tensor | None], settings: Settings, results: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Returns (dq, dk, dv)."""
    query, key, value, atten_mask = tensors
    layout, stated, bounds = settings
    if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        try:
            return _library.backward_plain[layout](
                *results, query, key, value, *stated, atten_mask, *bounds
            )
        except _library.NotPlainError:
            pass
    head_num, scale, *ends = stated
    sparse_mode, pre_tockens, next_tockens = bounds or (0, UNLIMITED, UNLIMITED)
    given = _entry.arguments(
        (query, key, value, None, None, atten_mask, None, None, None, None),
        head_num, layout, scale, 1.0, pre_tockens, next_tockens, 0, None, *(ends or (None, None)),
        sparse_mode, "",
    )  # fmt: skip
    return _autograd.gradient(given, (*results, 0, None, None, False, False))[:3]
