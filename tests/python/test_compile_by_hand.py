"""A user's own autograd.Function around the operator and its gradient, compiled as one graph."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion_attention

HEADS, DIM = 4, 16


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def by_hand(version: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """Attention whose gradient is called by hand, with `options` in both directions."""
    forward = getattr(fusion_attention, f"npu_fusion_attention{version}")
    gradient = getattr(fusion_attention, f"npu_fusion_attention_grad{version}")

    class Attention(torch.autograd.Function):
        """Saves the statistics, as context-parallel training does."""

        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out, row_max, row_sum, *_ = forward(
                query, key, value, HEADS, "BNSD", scale=0.25, **options
            )
            ctx.save_for_backward(query, key, value, out, row_max, row_sum)
            return out

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
            query, key, value, out, row_max, row_sum = ctx.saved_tensors
            return gradient(
                query, key, value, dy, HEADS, "BNSD", softmax_max=row_max, softmax_sum=row_sum,
                attention_in=out, scale_value=0.25, **options,
            )[:3]  # fmt: skip

    return Attention.apply


@pytest.mark.parametrize(
    ("version", "options"),
    [("", {"keep_prob": 0.5, "seed": 5, "offset": 4}), ("_v2", {"pre_tokens": 9}), ("_v3", {})],
)
def test_one_graph_both_ways(version: str, options: dict[str, Any]) -> None:
    options |= {"atten_mask": torch.ones(2048, 2048, dtype=torch.bool).triu(1), "sparse_mode": 4}
    options |= {"next_tockens" if version != "_v2" else "next_tokens": 0}
    attention = by_hand(version, options)
    tensors = [torch.randn(2, HEADS, 33, DIM, requires_grad=True) for _ in range(3)]

    def gradients(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        out = function(*tensors)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    expected = gradients(attention)
    for a, b in zip(gradients(compiled), expected, strict=True):
        assert torch.equal(a, b)
