"""Calls as Python programs: of the operator, and of the functions that it converts to."""

from typing import Any

import torch
from torch import Tensor

from fusion_attention._arguments import UNLIMITED
from fusion_attention._call import Call, signature
from fusion_attention._masks import Structure, causal_mask, prefix_mask, recognise
from fusion_attention.convert._refusal import refuse

_IMPORTS = {
    "scaled_dot_product_attention": "from torch.nn.functional import scaled_dot_product_attention",
    "flash_attn_func": "from flash_attn import flash_attn_func",
    "flash_attn_varlen_func": "from flash_attn import flash_attn_varlen_func",
    "varlen_attn": "from torch.nn.attention.varlen import varlen_attn",
}
_DATA = ("query", "key", "value", "q", "k", "v")


def program_of_call(call: Call) -> str:
    """Returns a program that makes the call, with random numbers in its tensors.

    Example:
        >>> from fusion_attention._call import bind
        >>> query = torch.empty(1, 2, 4, 8)
        >>> print(program_of_call(bind("npu_fusion_attention", query, query, query, 2, "BNSD")))
        import torch
        from fusion_attention import npu_fusion_attention
        <BLANKLINE>
        query = torch.randn(1, 2, 4, 8)
        key = torch.randn(1, 2, 4, 8)
        value = torch.randn(1, 2, 4, 8)
        out = npu_fusion_attention(
            query, key, value, 2, "BNSD",
        )[0]
    """
    given = {
        name: value
        for name, value in call.arguments.items()
        if not _is(value, signature(call.function).parameters[name].default)
    }
    leading = [given.pop(name) for name in ("query", "key", "value")]
    first = f'query, key, value, {given.pop("head_num")}, "{given.pop("input_layout")}",'
    tensors = dict(zip(("query", "key", "value"), leading, strict=True))
    imports = f"from fusion_attention import {call.function}"
    return _program(imports, tensors, call.function, [first], given, "[0]")


def program_of_arguments(function: str, arguments: dict[str, Any]) -> str:
    """Returns a program that calls another function, of those that `to_*` is made for."""
    tensors = {name: value for name, value in arguments.items() if name in _DATA}
    rest = {name: value for name, value in arguments.items() if name not in _DATA}
    return _program(_IMPORTS[function], tensors, function, [f"{', '.join(tensors)},"], rest, "")


def _program(
    imports: str,
    tensors: dict[str, Tensor],
    function: str,
    lines: list[str],
    options: dict[str, Any],
    result: str,
) -> str:
    setup = [
        f"{name} = torch.randn({', '.join(map(str, tensor.shape))})"
        for name, tensor in tensors.items()
    ]
    for name, value in options.items():
        if isinstance(value, Tensor):
            setup.append(f"{name} = {_expression(name, value)}")
            lines.append(f"{name}={name},")
        else:
            lines.append(f"{name}={value!r},")
    body = "\n".join(f"    {line}" for line in lines)
    return "\n".join(
        ["import torch", imports, "", *setup, f"out = {function}(", body, f"){result}"]
    )


def _is(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, Tensor) and value == default)


def _expression(name: str, tensor: Tensor) -> str:
    """Returns Python that makes the tensor."""
    if tensor.dtype == torch.bool:
        if name == "atten_mask" and torch.equal(tensor, causal_mask()):
            return "torch.ones(2048, 2048, dtype=torch.bool).triu(1)"
        if name == "atten_mask" and torch.equal(tensor, prefix_mask()):
            return (
                "torch.cat([torch.ones(2048, 2048, dtype=torch.bool).triu(1), "
                "torch.arange(2048).expand(1024, 2048) >= 1024])"
            )
        return _kept(tensor)
    if tensor.dim() <= 2:
        return f"torch.tensor({tensor.tolist()}, dtype={tensor.dtype})"
    raise refuse(
        f"{name} of shape {list(tensor.shape)} as text",
        "its numbers are too many to print",
        "Use the functions of fusion_attention.convert in Python",
    )


def _kept(kept: Tensor) -> str:
    """Returns Python that makes a mask of SDPA's, True for what is seen."""
    structure = recognise(~kept)
    q_len, kv_len = kept.shape[-2:]
    delta = kv_len - q_len
    ones = f"torch.ones({q_len}, {kv_len}, dtype=torch.bool)"
    match structure:
        case Structure(0):
            return ones
        case Structure(2):
            return f"{ones}.tril()"
        case Structure(3):
            return f"{ones}.tril({delta})"
        case Structure(4, pre, following):
            upper = "" if following == UNLIMITED else f".tril({delta + following})"
            lower = "" if pre == UNLIMITED else f".triu({delta - pre})"
            return ones + upper + lower
        case Structure(6, prefix=prefix) if len(set(prefix or ())) == 1:
            return f"{ones}.tril({delta}) | (torch.arange({kv_len}) < {(prefix or (0,))[0]})"
    raise refuse(
        "this mask as text",
        "it is no causal mask, no window and no prefix",
        "Use the functions of fusion_attention.convert in Python",
    )
