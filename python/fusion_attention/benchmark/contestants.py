"""Two ways to compute a case, as users call them: this project's operator and torch's attention.

Both get the same tensors in the layout of the case. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_attention import npu_fusion_attention
from fusion_attention._masks import causal_mask
from fusion_attention.benchmark.cases import Case, Direction

Tensors = tuple[Tensor, Tensor, Tensor]


class Inputs:
    """Random query, key, value and output gradient of a case, as [B, N, S, D]."""

    def __init__(self, case: Case) -> None:
        """Draws the tensors from a fixed seed."""
        generator = torch.Generator().manual_seed(0)

        def draw(heads: int, tokens: int) -> Tensor:
            shape = (case.batch, heads, tokens, case.head_dim)
            return torch.randn(shape, generator=generator).to(case.dtype)

        self.query = draw(case.q_heads, case.q_len)
        self.key = draw(case.kv_heads, case.kv_len)
        self.value = draw(case.kv_heads, case.kv_len)
        self.dy = draw(case.q_heads, case.q_len)

    def leaves(self, to_layout: Callable[[Tensor], Tensor]) -> Tensors:
        """Fresh leaf tensors of query, key and value in a layout."""
        return tuple(
            to_layout(x).contiguous().requires_grad_() for x in (self.query, self.key, self.value)
        )


def dense_mask(case: Case) -> Tensor | None:
    """The [Sq, Skv] bool mask of a case, True where a key is visible; None where every key is."""
    if not case.lengths:
        if not case.causal:
            return None
        ones = torch.ones(case.q_len, case.kv_len, dtype=torch.bool)
        return ones.tril(case.kv_len - case.q_len)
    blocks = [torch.ones(n, n, dtype=torch.bool) for n in case.lengths]
    mask = torch.block_diag(*blocks).bool()
    return mask.tril() if case.causal else mask


class Contestant:
    """A case made ready to run: call `run` any number of times."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        """Brings the inputs into the layout and runs forward once for the backward graph."""
        self.case = case
        self.leaves = inputs.leaves(self.to_layout)
        self.dy = self.to_layout(inputs.dy).contiguous()
        self.mask = self.make_mask()
        self.out = self.attention(*self.leaves)

    def make_mask(self) -> Tensor | None:
        """The mask in the form that costs this contestant least."""
        raise NotImplementedError

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output in the layout of the case, recorded for autograd unless that is off."""
        raise NotImplementedError

    def to_layout(self, x: Tensor) -> Tensor:
        """[B, N, S, D] -> the layout of the case."""
        if self.case.layout == "BNSD":
            return x
        x = x.transpose(1, 2)
        return x.flatten(2) if self.case.layout == "BSH" else x.flatten(0, 1)

    def from_layout(self, x: Tensor) -> Tensor:
        """The layout of the case -> [B, N, S, D], without a copy."""
        if self.case.layout == "BNSD":
            return x
        if self.case.layout == "BSH":
            return x.unflatten(2, (-1, self.case.head_dim)).transpose(1, 2)
        return x.unsqueeze(0).transpose(1, 2)

    def forward(self) -> Tensor:
        """One forward call, as in inference."""
        with torch.no_grad():
            return self.attention(*self.leaves)

    def backward(self) -> Tensors:
        """The gradients of query, key and value."""
        return torch.autograd.grad(self.out, self.leaves, self.dy, retain_graph=True)

    def training(self) -> Tensors:
        """Output and gradients, as in a training step."""
        return torch.autograd.grad(self.attention(*self.leaves), self.leaves, self.dy)

    def run(self, direction: Direction) -> object:
        """One slice of work."""
        return {"forward": self.forward, "backward": self.backward, "training": self.training}[
            direction
        ]()

    def results(self) -> list[Tensor]:
        """Output and gradients as [B, N, S, D] in double, to compare contestants."""
        return [self.from_layout(x).double() for x in (self.forward(), *self.backward())]


class Ours(Contestant):
    """npu_fusion_attention."""

    def make_mask(self) -> Tensor | None:
        """The compressed causal mask, which is never read per tile."""
        return causal_mask() if self.case.causal else None

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One call."""
        ends = list(accumulate(self.case.lengths)) or None
        return npu_fusion_attention(
            query,
            key,
            value,
            self.case.q_heads,
            self.case.layout,
            atten_mask=self.mask,
            scale=self.case.head_dim**-0.5,
            keep_prob=self.case.keep_prob,
            actual_seq_qlen=ends,
            actual_seq_kvlen=ends,
            sparse_mode=3 if self.case.causal else 0,
            seed=1,  # with dropout, every call drops the same weights, so that they can be checked
        )[0]


class Torch(Contestant):
    """scaled_dot_product_attention on views of the same memory."""

    def make_mask(self) -> Tensor | None:
        """None where `is_causal` says it, else a dense mask."""
        return dense_mask(self.case) if self.case.lengths else None

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One call."""
        out = F.scaled_dot_product_attention(
            self.from_layout(query),
            self.from_layout(key),
            self.from_layout(value),
            attn_mask=self.mask,
            dropout_p=1 - self.case.keep_prob,
            is_causal=self.case.causal and self.mask is None,
            enable_gqa=self.case.q_heads != self.case.kv_heads,
        )
        return self.to_layout(out)
