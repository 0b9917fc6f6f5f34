"""What benchmarks measure: shapes, masks and types as plain values. Knows no operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

#: What is timed: the forward pass as in inference, the backward pass of a recorded call, or both as
#: in a training step.
Direction = Literal["forward", "backward", "training"]

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# Multiply-adds count two. Forward: Q K^T and P V. Backward: those of S, dP, dV, dQ and dK.
FLOPS_PER_PAIR_AND_CHANNEL = {"forward": 4, "backward": 10, "training": 14}


@dataclass(frozen=True)
class Case:
    """One attention problem.

    Attributes:
        lengths: TND only: the lengths of the packed sequences. `q_len` and `kv_len` are their sum.
    """

    head_dim: int
    causal: bool = False
    dtype: torch.dtype = torch.float32
    batch: int = 1
    q_heads: int = 4
    kv_heads: int = 4
    q_len: int = 2048
    kv_len: int = 2048
    layout: Literal["BNSD", "BSH", "TND"] = "BNSD"
    lengths: tuple[int, ...] = ()
    keep_prob: float = 1.0

    @property
    def name(self) -> str:
        """A short text that tells this case from every other one."""
        heads = f"{self.q_heads}" + (f"/{self.kv_heads}" if self.kv_heads != self.q_heads else "")
        parts = [f"{self.layout} {self.batch}x{heads}x{self.q_len}x{self.head_dim}"]
        if self.lengths:
            parts.append(f"{len(self.lengths)} sequences")
        if self.keep_prob < 1:
            parts.append(f"keep {self.keep_prob}")
        return " ".join([*parts, DTYPE_NAMES[self.dtype], "causal" if self.causal else "full"])

    def in_fp32(self) -> Case:
        """The same problem in fp32."""
        return replace(self, dtype=torch.float32)

    def pairs(self) -> int:
        """The number of (query, key) pairs that see each other, over all heads."""
        per_head = 0
        for q_len, kv_len in zip(
            self.lengths or (self.q_len,), self.lengths or (self.kv_len,), strict=True
        ):
            if self.causal:
                per_head += sum(max(0, kv_len - q_len + row + 1) for row in range(q_len))
            else:
                per_head += q_len * kv_len
        return self.batch * self.q_heads * per_head

    def flops(self, direction: Direction) -> int:
        """The floating-point operations that the unmasked pairs cost."""
        return FLOPS_PER_PAIR_AND_CHANNEL[direction] * self.pairs() * self.head_dim
