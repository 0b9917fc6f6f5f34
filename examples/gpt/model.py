"""A small GPT whose attention is one call, with torch's own attention beside it for comparison.

Everything but `Attention.forward` is what any decoder has. The model works on packed documents:
[T] tokens in, [T, 256] logits out, no batch axis and no padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_attention import npu_fusion_attention
from gpt.data import MARK

VOCABULARY = 256  # bytes
AttentionKind = Literal["fusion", "sdpa"]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model; `keep_prob` is the share of attention weights that dropout keeps."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    context: int = 512
    keep_prob: float = 0.9

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Packing:
    """What attention needs to know about packed documents, made once a batch for all layers.

    Args:
        ends: cumulative lengths of the documents.
        positions: int64 [T], the index of each token within its document.
        kind: which attention will run.
    """

    # Modes 2, 3, 4, 7 and 8 take this one mask for every length: 1 above the diagonal.
    causal = torch.ones(2048, 2048, dtype=torch.bool).triu(1)

    def __init__(self, ends: list[int], positions: Tensor, kind: AttentionKind = "fusion") -> None:
        self.ends = ends
        self.positions = positions
        self.kind = kind
        if kind == "sdpa":  # [T, T]: same document and not in the future
            begin = torch.arange(len(positions)) - positions
            self.dense = (begin[:, None] == begin[None, :]).tril()


class Attention(nn.Module):
    """Causal self-attention within each document."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, packing: Packing) -> Tensor:
        heads, head_dim = self.config.heads, self.config.head_dim
        keep_prob = self.config.keep_prob if self.training else 1.0
        scale = 1 / math.sqrt(head_dim)
        # query, key, value: [T, N, D], the layout TND
        query, key, value = self.qkv(x).view(-1, 3, heads, head_dim).unbind(1)
        query, key = rotate(query, rotation), rotate(key, rotation)

        if packing.kind == "fusion":
            out = npu_fusion_attention(
                query,
                key,
                value,
                heads,
                "TND",
                atten_mask=packing.causal,
                sparse_mode=3,
                actual_seq_qlen=packing.ends,
                actual_seq_kvlen=packing.ends,
                scale=scale,
                keep_prob=keep_prob,
            )[0]
        else:
            query, key, value = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
            out = F.scaled_dot_product_attention(
                query, key, value, packing.dense, dropout_p=1 - keep_prob, scale=scale
            )
            out = out.squeeze(0).transpose(0, 1)

        return self.out(out.reshape(x.shape))


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to its own input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, packing: Packing) -> Tensor:
        x = x + self.attention(self.norm1(x), rotation, packing)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Predicts the next byte."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        self.register_buffer("rotations", rotations(config.context, config.head_dim), False)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "down.weight", "head.weight")):
                nn.init.zeros_(weight)  # blocks start as the identity, bytes as equally likely
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=1 / math.sqrt(config.width))

    def forward(self, tokens: Tensor, packing: Packing) -> Tensor:
        """Returns the logits [T, 256] of the byte that follows each token."""
        rotation = self.rotations[packing.positions].unsqueeze(1)  # [T, 1, D / 2]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation, packing)
        return self.head(self.norm(x))

    def loss(self, tokens: Tensor, targets: Tensor, packing: Packing) -> Tensor:
        """Mean cross entropy in nats per byte."""
        return F.cross_entropy(self(tokens, packing), targets)


def rotations(context: int, head_dim: int) -> Tensor:
    """Rotary positions as unit complex numbers: complex64 [context, head_dim / 2]."""
    frequency = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.arange(context)[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair of channels of x, [T, N, D], by its position's angle."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


@torch.no_grad()
def generate(model: GPT, texts: list[str], length: int, temperature: float, seed: int) -> list[str]:
    """Continues several texts at once: they are packed, so no text waits for or sees another.

    Args:
        model: a trained model, in evaluation mode.
        texts: the beginnings; each is the start of a document.
        length: how many bytes a text may grow to; a text also stops where the model ends it.
        temperature: below 1 the likelier bytes are preferred.
        seed: of the draws.
    """
    draws = torch.Generator().manual_seed(seed)
    rows = [[MARK, *text.encode()] for text in texts]
    growing = list(range(len(rows)))
    while growing:
        ends = list(accumulate(len(rows[index]) for index in growing))
        tokens = torch.tensor([token for index in growing for token in rows[index]])
        positions = torch.cat([torch.arange(len(rows[index])) for index in growing])
        logits = model(tokens, Packing(ends, positions))
        last = torch.tensor(ends) - 1
        chances = F.softmax(logits[last] / temperature, dim=-1)
        drawn = torch.multinomial(chances, 1, generator=draws).flatten().tolist()
        for index, token in zip(growing, drawn, strict=True):
            rows[index].append(token)
        growing = [i for i in growing if rows[i][-1] != MARK and len(rows[i]) <= length]
    return [bytes(t for t in row if t != MARK).decode(errors="replace") for row in rows]
