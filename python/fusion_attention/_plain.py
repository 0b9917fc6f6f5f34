"""The short way of plain calls: a mask and lengths at most, and nobody who looks on.

Most of what a small call costs is passing what it does not state: a [1, 2, 8, 16] forward pass
takes 6.4 us this way and 14 us the general one (_entry.py). Nothing is refused here: what is not
plain, or fails, goes the general way, which knows every rule and has the words. A call that
succeeds here gives the same there.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusion_attention import _autograd, _entry, _library
from fusion_attention._arguments import UNLIMITED, Integers

#: attention_out, softmax_max, softmax_sum, softmax_in and the number of dropout elements.
Results: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, int]

#: head_num, input_layout, scale, sparse_mode and, where they say something, pre_tockens,
#: next_tockens and, of packed sequences, actual_seq_qlen, actual_seq_kvlen.
Settings: TypeAlias = tuple[Any, ...]


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
    others: tuple[Tensor | Integers, ...],
    pse_type: int = 1,
) -> Results | None:
    """Returns the results of a plain call; None where the call must go the general way.

    `others` are the arguments that a plain call leaves at None.
    """
    if torch.compiler.is_compiling():
        return None
    try:
        if (
            others.count(None) != len(others)
            or softmax_layout != ""
            # The operators' own conversions would take more types than the general way does.
            or type(keep_prob) not in (float, int)
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
            or not query.is_cpu
            or forward_ad._current_level >= 0
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        settings: Settings = (head_num, input_layout, scale, sparse_mode)
        if actual_seq_qlen is not None or actual_seq_kvlen is not None:
            if not (_are_ends(actual_seq_qlen) and _are_ends(actual_seq_kvlen)):
                return None
            # Copies: backward reads them, and they are the caller's to change.
            ends = list(actual_seq_qlen), list(actual_seq_kvlen)
            settings += (pre_tockens, next_tockens, *ends)
        elif not pre_tockens == next_tockens == UNLIMITED:
            settings += (pre_tockens, next_tockens)
        if not torch.is_grad_enabled() or not (
            query.requires_grad or key.requires_grad or value.requires_grad
        ):
            return _library.forward_plain(query, key, value, atten_mask, *settings)
        # These meet a Function before its operator could refuse.
        if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state():
            return None
    except Exception:  # the general way will fail too, and say why
        return None
    try:
        return _PlainAttention.apply(query, key, value, atten_mask, settings)
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
        *tensors, settings = inputs
        try:
            results = _library.forward_plain(*tensors, *settings)
        except Exception:  # nothing else's: hooks of what is saved below raise to be heard
            raise _library.NotPlainError from None
        out, softmax_max, softmax_sum, softmax_in, _ = results
        ctx.mark_non_differentiable(softmax_max, softmax_sum, softmax_in)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, softmax_max, softmax_sum)
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
    if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        try:
            return _library.backward_plain(*results, *tensors, *settings)
        except _library.NotPlainError:
            pass
    query, key, value, atten_mask = tensors
    head_num, input_layout, scale, sparse_mode, *rest = settings
    defaults = (UNLIMITED, UNLIMITED, None, None)
    pre_tockens, next_tockens, *ends = (*rest, *defaults[len(rest) :])
    given = _entry.arguments(
        (query, key, value, None, None, atten_mask, None, None, None, None),
        head_num, input_layout, scale, 1.0, pre_tockens, next_tockens, 0, None, *ends,
        sparse_mode, "",
    )  # fmt: skip
    return _autograd.gradient(given, (*results, 0, None, None, False, False))[:3]
