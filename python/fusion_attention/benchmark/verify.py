"""Holds our results to the definition of attention, computed by torch in double precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_attention._errors import FeatureError
from fusion_attention.benchmark.cases import Case
from fusion_attention.benchmark.contestants import Inputs, Ours, dense_mask
from fusion_attention.benchmark.layouts import from_layout, to_layout

RESULT_NAMES = ("out", "dq", "dk", "dv", "dpse")


def exact_results(case: Case, inputs: Inputs, kept: Tensor | None) -> list[Tensor]:
    """Output and gradients in double, straight from the definition; `kept` are the kept weights."""
    tensors = [inputs.query, inputs.key, inputs.value]
    if case.bias == "learned":
        tensors.append(inputs.bias)
    leaves = [x.double().requires_grad_() for x in tensors]
    group = case.q_heads // case.kv_heads
    query, key, value = leaves[0], *(x.repeat_interleave(group, 1) for x in leaves[1:3])
    scores = query @ key.mT
    if inputs.bias is not None:
        scores = scores + (leaves[3] if case.bias == "learned" else inputs.bias.double())
    scores = scores * case.head_dim**-0.5
    if (visible := dense_mask(case)) is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1)
    if kept is not None:
        weights = weights * kept / case.keep_prob
    out = weights @ value
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.dy.double())]


def kept_weights(case: Case, ours: Ours) -> Tensor:
    """Which weights our dropout keeps, [B, N, Sq, Skv]: read off with unit vectors as values."""
    query, key, value = ours.leaves[:3]
    columns = []
    for begin in range(0, case.kv_len, case.out_dim):
        unit = torch.eye(case.kv_len, dtype=case.dtype)[:, begin : begin + case.out_dim]
        unit = F.pad(unit, (0, case.out_dim - unit.shape[1]))
        values = unit.expand(case.batch, case.kv_heads, -1, -1)
        values = to_layout(values, case.layout).contiguous()
        assert values.shape == value.shape
        with torch.no_grad():
            out = ours.attention(query, key, values)
            columns.append(from_layout(out, case.layout, case.q_heads))
    return torch.cat(columns, -1)[..., : case.kv_len] > 0


def verify(case: Case, inputs: Inputs, ours: Ours) -> None:
    """Raises if our results are wrong: a fast wrong answer is no result.

    Rounding the output costs at most eps/2 of each element, rounding the weights where products are
    native bf16 as much again; the rest is rounding of sums in fp32.

    Raises:
        FeatureError: They are, or dropout keeps another share of the weights than it should.
    """
    kept = kept_weights(case, ours) if case.keep_prob < 1 else None
    if kept is not None:
        rate = kept.sum().item() / case.pairs()
        spread = (case.keep_prob * (1 - case.keep_prob) / case.pairs()) ** 0.5
        # A device draws as many bits as the dtype has for a fraction and rounds the rate to them.
        if abs(rate - case.keep_prob) > 6 * spread + torch.finfo(case.dtype).eps:
            raise FeatureError(f"{case.name}: {rate:.5f} of the weights are kept")
    bound = torch.finfo(case.dtype).eps + 16 * torch.finfo(torch.float32).eps
    tensors = zip(ours.results(), exact_results(case, inputs, kept), strict=True)
    for name, (result, exact) in zip(RESULT_NAMES, tensors, strict=False):  # dpse may be missing
        error = ((result - exact).square().mean() / exact.square().mean()).sqrt().item()
        if not error <= bound:
            raise FeatureError(
                f"{case.name}: {name} is off by {error:.2e} (rms), allowed {bound:.2e}"
            )
