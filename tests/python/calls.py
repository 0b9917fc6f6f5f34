"""One call of the library, forward and backward, and how to compare two of them bit by bit.

A call is a dict of npu_fusion_attention's arguments by name, and of those that only _v2 has.
"""

from typing import Any

import torch

import fusion_attention
from fusion_attention import npu_fusion_attention_v3

Results = dict[str, torch.Tensor]

V2_ONLY = ("query_rope", "key_rope", "pse_type", "q_start_idx", "kv_start_idx")
_RENAMED = {"scale": "scale_value"}
_SPELLED = {"pre_tockens": "pre_tokens", "next_tockens": "next_tokens"}
_POSITIONAL = ("query", "key", "value", "head_num", "input_layout")
_GRADIENTS = {
    1: ("dq", "dk", "dv", "dpse", "dsink"),
    2: ("dq", "dk", "dv", "dpse", "dq_rope", "dk_rope", "dsink"),
    3: ("dq", "dk", "dv", "dpse", "dsink"),
}


def version_of(call: dict[str, Any]) -> int:
    """The oldest function that takes the call."""
    return 2 if any(name in call for name in V2_ONLY) else 1


def as_v2(call: dict[str, Any]) -> dict[str, Any]:
    """The call with the parameters spelled as _v2 spells them."""
    return {_SPELLED.get(name, name): value for name, value in call.items()}


def forward(call: dict[str, Any], version: int | None = None) -> tuple[Any, ...]:
    """What the function of this version returns; None takes the oldest that can."""
    version = version or version_of(call)
    if version == 3:
        return npu_fusion_attention_v3(**call)
    if version == 2:
        return fusion_attention.npu_fusion_attention_v2(**as_v2(call))
    return fusion_attention.npu_fusion_attention(**call)


def gradient(
    call: dict[str, Any],
    dy: torch.Tensor,
    results: dict[str, Any],
    version: int | None = None,
) -> dict[str, Any]:
    """The gradients by name, from the results of the forward call that the gradient takes."""
    version = version or version_of(call)
    if version == 2:
        call = as_v2(call)
    suffix = "" if version == 1 else f"_v{version}"
    function = getattr(fusion_attention, f"npu_fusion_attention_grad{suffix}")
    options = {_RENAMED.get(n, n): v for n, v in call.items() if n not in _POSITIONAL}
    positional = [call["query"], call["key"], call["value"], dy]
    found = function(*positional, call["head_num"], call["input_layout"], **options | results)
    return dict(zip(_GRADIENTS[version], found, strict=True))


def run(call: dict[str, Any], dy: torch.Tensor, version: int | None = None) -> dict[str, Any]:
    """Everything that a call and its gradient return, by name; some gradients may be None."""
    version = version or version_of(call)
    out, row_max, row_sum, _, *pair = forward(call, version)
    words = dict(zip(("seed", "offset", "numels"), pair, strict=version != 3))
    saved = {"softmax_max": row_max, "softmax_sum": row_sum, "attention_in": out}
    gradients = gradient(call, dy, saved | words, version)
    return {"out": out, "softmax_max": row_max, "softmax_sum": row_sum, **words, **gradients}


def forward_and_backward(
    call: dict[str, Any], dy: torch.Tensor, version: int | None = None
) -> Results:
    """The tensors of `run`."""
    return {name: x for name, x in run(call, dy, version).items() if isinstance(x, torch.Tensor)}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as integers, so that -0.0 differs from 0.0 and a NaN equals itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])


def assert_same_bits(actual: Results, expected: Results, *names: str) -> None:
    """Fails with the first result of `names` (all, if none are named) that differs in any bit."""
    for name in names or expected:
        a, b = actual[name], expected[name]
        assert a.shape == b.shape, f"{name}: {list(a.shape)}, expected {list(b.shape)}"
        different = (bits(a) != bits(b)).nonzero()
        if different.numel():
            at = tuple(different[0].tolist())
            values = f"{a[at].item()!r}, expected {b[at].item()!r}"
            raise AssertionError(f"{name}{list(at)} is {values}; {len(different)} differ")
