"""Ring attention written by hand with the family's functions equals one call, gradients included.

One call's exact results come from the float64 oracle. A rank's result is put together from as many
parts as there are ranks, each of which rounds as one call does, and so does each merge.
"""

import itertools
from typing import Any

import pytest
import torch
from bounds import excess
from case_tensors import compressed_mask
from oracle import attention
from rings import Ring
from torch import Tensor

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

HEADS, KV_HEADS, DIM, BATCH = 4, 2, 16, 2
DTYPES = (torch.float32, torch.bfloat16)


def tensors(ring: Ring, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """query, key, value and dy of the whole."""
    tokens = sum(ring.lengths)
    if ring.layout == "SBH":
        shapes = [(tokens, BATCH, n * DIM) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    else:
        shapes = [(tokens, n, DIM) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def one_call(ring: Ring, query: Tensor, key: Tensor, value: Tensor) -> dict[str, Any]:
    """The call that the ring stands for."""
    call = {"query": query, "key": key, "value": value, "head_num": HEADS, "scale": ring.scale}
    call |= {"input_layout": ring.layout, "atten_mask": compressed_mask(3), "sparse_mode": 3}
    if ring.mask is not None:
        call |= {"atten_mask": ring.mask, "sparse_mode": 1}
    if ring.layout == "TND":
        ends = list(itertools.accumulate(ring.lengths))
        call |= {"actual_seq_qlen": ends, "actual_seq_kvlen": ends, "softmax_layout": "TND"}
    return call


def in_token_order(ring: Ring, statistics: Tensor) -> Tensor:
    """A rank's statistics with tokens along axis 0."""
    if ring.layout == "SBH":
        return statistics.permute(2, 0, 1, 3)
    if ring.softmax_layout == "TND":
        return statistics
    blocks, rows = [], statistics.reshape(-1, 8)
    for length in ring.lengths:
        local = length // ring.ranks
        block, rows = rows[: local * HEADS], rows[local * HEADS :]
        blocks.append(block.view(HEADS, local, 8).transpose(0, 1))
    return torch.cat(blocks)


def assert_equals_one_call(ring: Ring, dtype: torch.dtype) -> dict[str, Tensor]:
    """The ring's results are those of one call within rounding; returns them."""
    query, key, value, dy = tensors(ring, dtype)
    parts = ring.forward(query, key, value)
    found = {"out": ring.gathered([out for out, _, _ in parts])}
    for index, name in ((1, "softmax_max"), (2, "softmax_sum")):
        found[name] = ring.gathered([in_token_order(ring, part[index]) for part in parts])
        if ring.layout == "SBH":
            found[name] = found[name].permute(1, 2, 0, 3)
    gradients = ring.backward(query, key, value, dy, parts)
    found |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    exact = attention(one_call(ring, query, key, value), dy, found["out"]).quantities()
    for name, result in found.items():
        # Shares of the parts' own roundings add up to one, and each merge adds one.
        ratio = excess(name, result, exact[name], dtype)
        assert ratio <= ring.ranks, f"{name}: {ratio}"
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_causal_head_tail_balanced(ranks: int, dtype: torch.dtype) -> None:
    assert_equals_one_call(Ring(ranks, HEADS, "SBH", [24 * ranks]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softmax_layout", ["", "TND"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_causal_per_document(ranks: int, softmax_layout: str, dtype: torch.dtype) -> None:
    lengths = [2 * ranks * n for n in (1, 9, 4)]
    assert_equals_one_call(Ring(ranks, HEADS, "TND", lengths, softmax_layout), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["causal", "random", "rows without keys"])
def test_general_masks_whose_blocks_may_be_masked_wholly(kind: str, dtype: torch.dtype) -> None:
    tokens = 60
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    if kind == "random":
        mask = torch.rand(tokens, tokens) < 0.7
        mask[:15, :15] = mask[45:, 15:45] = True
    if kind == "rows without keys":
        mask[20:31] = True
    ring = Ring(4, HEADS, "SBH", [tokens], mask=mask)
    found = assert_equals_one_call(ring, dtype)
    assert ring.masked_blocks > 0
    assert all(result.isfinite().all() for result in found.values())
    if kind == "rows without keys":
        for name in ("out", "dq"):
            assert not found[name][20:31].any(), name


@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_one_number_for_the_normaliser_does_for_the_gradient(layout: str) -> None:
    """(logsumexp, 1) states what (max, sum) does; rows without keys included."""
    ring = Ring(1, HEADS, layout, [12, 30] if layout == "TND" else [42])
    query, key, value, dy = tensors(ring, torch.float32)
    mask = torch.rand(42, 42) < 0.5
    mask[7] = True
    more: dict[str, Any] = {"atten_mask": mask[:30, :30] if layout == "TND" else mask}
    call = one_call(ring, query, key, value) | more | {"sparse_mode": 1}
    for inner_precise in (0, 2):  # both ways to report a row without keys
        call["inner_precise"] = inner_precise
        out, row_max, row_sum, *_ = npu_fusion_attention(**call)
        exact = attention(call, dy, out)
        settings = {
            name: setting
            for name, setting in call.items()
            if name not in ("query", "key", "value", "head_num", "input_layout", "scale")
        }
        gradients = npu_fusion_attention_grad(
            query,
            key,
            value,
            dy,
            HEADS,
            layout,
            softmax_max=row_max + row_sum.log(),
            softmax_sum=torch.ones_like(row_sum),
            attention_in=out,
            scale_value=call["scale"],
            **settings,
        )
        for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=False):
            assert excess(name, gradient, getattr(exact, name), torch.float32) <= 1, name
