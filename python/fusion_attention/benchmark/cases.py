"""What benchmarks measure: shapes, masks and types as plain values. Knows no operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fusion_attention.benchmark.masks import FULL, Mask

#: What is timed: the forward pass as in inference, the backward pass of a recorded call, or both as
#: in a training step.
Direction = Literal["forward", "backward", "training"]
Layout = Literal["BNSD", "BSND", "BSH", "SBH", "TND"]
#: A dense bias on the scores (pse): none, one without a gradient, one that is learned.
Bias = Literal["none", "constant", "learned"]

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

# The products of the definition by their depth, D or Dv channels; a multiply-add counts two.
# Forward: Q K^T (D) and P V (Dv). Backward: S, dQ, dK (D) and dP, dV (Dv).
_PRODUCTS = {"forward": (1, 1), "backward": (3, 2), "training": (4, 3)}


@dataclass(frozen=True)
class Case:
    """One attention problem.

    Attributes:
        head_dim: D, the channels of query and key.
        value_dim: Dv, the channels of value, if they are not D.
        mask: Which keys a row sees; in TND, of each sequence.
        lengths: TND only: the lengths of the packed sequences. `q_len` and `kv_len` are their sum.
        bias: Whether a dense bias of [1, N, Sq, Skv] is added, and whether it has a gradient.
        keep_prob: Below 1, weights are dropped.
    """

    head_dim: int
    mask: Mask = FULL
    dtype: torch.dtype = torch.float32
    batch: int = 1
    q_heads: int = 4
    kv_heads: int = 4
    q_len: int = 2048
    kv_len: int = 2048
    value_dim: int | None = None
    layout: Layout = "BNSD"
    lengths: tuple[int, ...] = ()
    bias: Bias = "none"
    keep_prob: float = 1.0

    @property
    def name(self) -> str:
        """A short text that tells this case from every other one."""
        heads = f"{self.q_heads}" + (f"/{self.kv_heads}" if self.kv_heads != self.q_heads else "")
        tokens = f"{self.q_len}" + (f"/{self.kv_len}" if self.kv_len != self.q_len else "")
        channels = f"{self.head_dim}" + (f"/{self.value_dim}" if self.value_dim else "")
        parts = [f"{self.layout} {self.batch}x{heads}x{tokens}x{channels}"]
        if self.lengths:
            parts.append(f"{len(self.lengths)} sequences")
        if self.keep_prob < 1:
            parts.append(f"keep {self.keep_prob}")
        if self.bias != "none":
            parts.append(f"{self.bias} bias")
        return " ".join([*parts, self.dtype_name, self.mask.name])

    @property
    def dtype_name(self) -> str:
        """The dtype as tables show it."""
        return DTYPE_NAMES[self.dtype]

    @property
    def out_dim(self) -> int:
        """Dv: the channels of value and of the output."""
        return self.value_dim or self.head_dim

    def with_tokens(self, tokens: int) -> Case:
        """The same problem with so many tokens of query and key."""
        return replace(self, q_len=tokens, kv_len=tokens)

    def with_heads(self, heads: int) -> Case:
        """The same problem with so many heads of query, key and value."""
        return replace(self, q_heads=heads, kv_heads=heads)

    def shortened(self, longest: int) -> Case:
        """The same kind of problem with at most about so many tokens.

        Example:
            >>> Case(64, Mask("band", 512), q_len=8192, kv_len=8192).shortened(256).name
            'BNSD 1x4x256x64 fp32 band 16'
        """
        factor = longest / max(self.q_len, self.kv_len)
        if factor >= 1:
            return self
        lengths = tuple(max(1, int(length * factor)) for length in self.lengths)
        return replace(
            self,
            q_len=sum(lengths) or max(1, int(self.q_len * factor)),
            kv_len=sum(lengths) or max(1, int(self.kv_len * factor)),
            lengths=lengths,
            mask=self.mask.shortened(factor),
        )

    def pairs(self) -> int:
        """The number of (query, key) pairs that see each other, over all heads."""
        sequences = [(n, n) for n in self.lengths] or [(self.q_len, self.kv_len)]
        return self.batch * self.q_heads * sum(self.mask.pairs(*lengths) for lengths in sequences)

    def flops(self, direction: Direction) -> int:
        """The floating-point operations that the visible pairs cost."""
        with_head_dim, with_value_dim = _PRODUCTS[direction]
        channels = with_head_dim * self.head_dim + with_value_dim * self.out_dim
        return 2 * channels * self.pairs()
