"""One call of the library, forward and backward, and how to compare two of them bit by bit."""

from typing import Any

import torch

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

Results = dict[str, torch.Tensor]

_RENAMED = {"scale": "scale_value"}
_POSITIONAL = ("query", "key", "value", "head_num", "input_layout")


def run(call: dict[str, Any], dy: torch.Tensor) -> dict[str, Any]:
    """Everything that a call and its gradient return, by name; dpse and dsink may be None."""
    out, row_max, row_sum, _, seed, offset, numels = npu_fusion_attention(**call)
    options = {_RENAMED.get(n, n): v for n, v in call.items() if n not in _POSITIONAL}
    options |= {"seed": seed, "offset": offset, "numels": numels}
    gradients = npu_fusion_attention_grad(
        call["query"],
        call["key"],
        call["value"],
        dy,
        call["head_num"],
        call["input_layout"],
        softmax_max=row_max,
        softmax_sum=row_sum,
        attention_in=out,
        **options,
    )
    results = {"out": out, "softmax_max": row_max, "softmax_sum": row_sum}
    results |= {"seed": seed, "offset": offset, "numels": numels}
    return results | dict(zip(("dq", "dk", "dv", "dpse", "dsink"), gradients, strict=True))


def forward_and_backward(call: dict[str, Any], dy: torch.Tensor) -> Results:
    """The tensors of `run`."""
    return {name: x for name, x in run(call, dy).items() if isinstance(x, torch.Tensor)}


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
