"""Two ways to compute a case, as users call them: this project's operator and torch's attention.

Both get the same tensors in the layout of the case. Knows no clock.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_attention import npu_fusion_attention
from fusion_attention._masks import Structure
from fusion_attention.benchmark.cases import Case, Direction
from fusion_attention.benchmark.layouts import from_layout, to_layout
from fusion_attention.benchmark.masks import Mask


class Inputs:
    """Random tensors of a case: query, key, value and output gradient as [B, N, S, D], the bias."""

    def __init__(self, case: Case) -> None:
        """Draws the tensors from a fixed seed."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(case.dtype)

        self.query = draw(case.batch, case.q_heads, case.q_len, case.head_dim)
        self.key = draw(case.batch, case.kv_heads, case.kv_len, case.head_dim)
        self.value = draw(case.batch, case.kv_heads, case.kv_len, case.out_dim)
        self.dy = draw(case.batch, case.q_heads, case.q_len, case.out_dim)
        self.bias = None
        if case.bias != "none":
            self.bias = draw(1, case.q_heads, case.q_len, case.kv_len)


def dense_mask(case: Case) -> Tensor | None:
    """The [Sq, Skv] bool mask of a case, True where a key is visible; None where every key is."""
    if not case.lengths:
        return case.mask.visible(case.q_len, case.kv_len)
    blocks = []
    for length in case.lengths:
        visible = case.mask.visible(length, length)
        blocks.append(torch.ones(length, length) if visible is None else visible)
    return torch.block_diag(*blocks).bool()


class Contestant:
    """A case made ready to run: call `run` any number of times."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        """Brings the inputs into the layout."""
        self.case = case
        self.leaves = [
            to_layout(x, case.layout).contiguous().requires_grad_()
            for x in (inputs.query, inputs.key, inputs.value)
        ]
        self.dy = to_layout(inputs.dy, case.layout).contiguous()
        self.bias = self.make_bias(inputs.bias)
        if case.bias == "learned":
            self.leaves.append(self.bias.requires_grad_())

    def make_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias of the inputs in the form that this contestant reads, a tensor of its own."""
        raise NotImplementedError

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output in the layout of the case, recorded for autograd unless that is off."""
        raise NotImplementedError

    @functools.cached_property
    def out(self) -> Tensor:
        """A recorded output: what backward starts from."""
        return self.attention(*self.leaves[:3])

    def forward(self) -> Tensor:
        """One forward call, as in inference."""
        with torch.no_grad():
            return self.attention(*self.leaves[:3])

    def backward(self) -> tuple[Tensor, ...]:
        """The gradients of query, key, value and of a learned bias."""
        return torch.autograd.grad(self.out, self.leaves, self.dy, retain_graph=True)

    def training(self) -> tuple[Tensor, ...]:
        """Output and gradients, as in a training step."""
        return torch.autograd.grad(self.attention(*self.leaves[:3]), self.leaves, self.dy)

    def run(self, direction: Direction) -> object:
        """One slice of work."""
        return {"forward": self.forward, "backward": self.backward, "training": self.training}[
            direction
        ]()

    def results(self) -> list[Tensor]:
        """Output and gradients, [B, N, S, D] and the bias's own shape, in double, to compare."""
        dq, dk, dv, *dbias = self.backward()
        case = self.case
        of_query = [from_layout(x, case.layout, case.q_heads) for x in (self.forward(), dq)]
        of_key = [from_layout(x, case.layout, case.kv_heads) for x in (dk, dv)]
        return [x.double() for x in (*of_query, *of_key, *dbias)]


class Ours(Contestant):
    """npu_fusion_attention."""

    def make_bias(self, bias: Tensor | None) -> Tensor | None:
        """A copy: it is added before scaling."""
        return None if bias is None else bias.clone()

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments but the tensors."""
        case, mask = self.case, self.case.mask
        arguments = {"scale": case.head_dim**-0.5, "keep_prob": case.keep_prob, "pse": self.bias}
        arguments |= structure(mask, case.batch).arguments()
        if mask.is_dense:
            hidden = ~mask.visible(case.q_len, case.kv_len)
            arguments |= {"atten_mask": hidden, "sparse_mode": 1}
        if case.lengths:
            ends = list(accumulate(case.lengths))
            arguments |= {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
        if case.keep_prob < 1:
            arguments["seed"] = 1  # every call drops the same weights, so that they can be checked
        return arguments

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One call."""
        case = self.case
        return npu_fusion_attention(query, key, value, case.q_heads, case.layout, **self.arguments)[
            0
        ]


def structure(mask: Mask, batch: int) -> Structure:
    """The sparse mode that computes a mask by itself; mode 0, which hides nothing, for the others.

    Example:
        >>> structure(Mask("band", 512), 1)
        Structure(sparse_mode=4, pre_tockens=511, next_tockens=0, prefix=None)
    """
    match mask.kind:
        case "causal":
            return Structure(3)
        case "band":
            return Structure(4, pre_tockens=mask.size - 1, next_tockens=0)
        case "prefix":
            return Structure(6, prefix=(mask.size,) * batch)
        case _:
            return Structure(0)


class Torch(Contestant):
    """scaled_dot_product_attention on views of the same memory, in one call.

    What `is_causal` cannot say is a dense mask: bands, prefixes, packed sequences.
    """

    def make_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias as torch's mask, which is added after scaling."""
        return None if bias is None else bias * self.case.head_dim**-0.5

    @functools.cached_property
    def is_causal(self) -> bool:
        """Whether torch's own causal mask, which counts from the top left, says it."""
        case = self.case
        square = case.q_len == case.kv_len and not case.lengths
        return case.mask.kind == "causal" and square and self.bias is None

    @functools.cached_property
    def visible(self) -> Tensor | None:
        """The dense mask, None where none is needed."""
        return None if self.is_causal else dense_mask(self.case)

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One call."""
        case, mask = self.case, self.visible
        if self.bias is not None:
            mask = self.bias if mask is None else self.bias.masked_fill(~mask, float("-inf"))
        out = F.scaled_dot_product_attention(
            from_layout(query, case.layout, case.q_heads),
            from_layout(key, case.layout, case.kv_heads),
            from_layout(value, case.layout, case.kv_heads),
            attn_mask=mask,
            dropout_p=1 - case.keep_prob,
            is_causal=self.is_causal,
            enable_gqa=case.q_heads != case.kv_heads,
        )
        return to_layout(out, case.layout)


class TorchLoop(Torch):
    """scaled_dot_product_attention on packed sequences, one call for each."""

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All calls."""
        case = self.case
        outs = [
            F.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in tensors), is_causal=case.mask.kind == "causal"
            )[0].transpose(0, 1)
            for tensors in zip(*(x.split(case.lengths) for x in (query, key, value)), strict=True)
        ]
        return torch.cat(outs)
