"""What the clients' tests share: tensors on the device, and the comparison with float64.

Clients may call as they like; here is said what they meant, as one plain call for the oracle. The
allowed error is that of tests/python/bounds.py. Knows nothing of any client.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from bounds import excess
from oracle import attention, keep_mask
from torch import Tensor

Results = dict[str, Tensor]


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random tensor on the device that wants a gradient."""
    return torch.randn(*shape, dtype=dtype, device="npu", requires_grad=True)


def causal_mask() -> Tensor:
    """The compressed mask of modes 2, 3 and 4, as most clients build it."""
    return torch.triu(torch.ones((2048, 2048), dtype=torch.bool, device="npu"), diagonal=1)


def future(rows: int, columns: int) -> Tensor:
    """For the oracle: what a causal mask hides whose last row sees every key."""
    return torch.ones(rows, columns, dtype=torch.bool).triu(1 + columns - rows)


def trained(function: Callable[..., Tensor], inputs: Mapping[str, Tensor], dy: Tensor) -> Results:
    """Runs a client forward and backward: its output, and dNAME for each input by name."""
    out = function(*inputs.values())
    out.backward(dy)
    grads = {f"d{name}": x.grad for name, x in inputs.items() if x.grad is not None}
    return {"out": out.detach(), **grads}


def meant(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, **options: Any
) -> dict[str, Any]:
    """The plain call for the oracle; options by the operator's own names."""
    tensors = {"query": query, "key": key, "value": value}
    return {**tensors, "head_num": head_num, "input_layout": input_layout, **options}


def assert_exact(
    results: Results, meaning: Mapping[str, Any], dy: Tensor | None = None, parts: int = 1
) -> None:
    """Fails if a result is further from float64 than rounding explains.

    Args:
        results: any of out, softmax_max, softmax_sum, dq, dk, dv, dpse, dsink, in the layout of
            `meaning`.
        meaning: the call as the oracle takes it.
        dy: gradient of out; needed where results hold gradients.
        parts: from how many calls a client has put the results together. Each part obeys its own
            bound; the bounds' magnitudes add up to that of the whole, and one more rounding for
            each addition is less than the bound of one part.
    """
    meaning = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in meaning.items()}
    results = {name: x.detach().cpu() for name, x in results.items()}
    dy = None if dy is None else dy.cpu()
    exact = attention(meaning, dy, results.get("out")).quantities()
    inputs = meaning["query"].dtype
    for name, result in results.items():
        ratio = excess(name, result, exact[name], inputs)
        assert ratio <= parts, f"{name} is off by {ratio:.3g} of what is allowed, {parts}"


def composed_dropout(
    shape: Sequence[int],
    blocks: Sequence[tuple[Tensor, Tensor, int, int]],
    keep_prob: float,
    dtype: torch.dtype,
) -> Tensor:
    """The dropout mask of a whole that was computed in blocks, each with random bits of its own.

    Args:
        shape: [B, N, Sq, Skv] of the whole.
        blocks: (rows, columns, seed, offset) of each block.
        keep_prob: of all blocks.
        dtype: of query.

    Returns:
        One bit a score, least significant first.
    """
    keep = torch.zeros(*shape, dtype=torch.bool)
    for rows, columns, seed, offset in blocks:
        size = (*shape[:2], len(rows), len(columns))
        elements = torch.Size(size).numel()
        bits = keep_mask(seed, offset, elements, keep_prob, dtype).reshape(size)
        keep[:, :, rows[:, None], columns] = bits
    bits = torch.nn.functional.pad(keep.flatten(), (0, -keep.numel() % 8)).reshape(-1, 8)
    return (bits * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)
