"""Trains a small GPT on an Ascend NPU with torch_npu's fused attention; written for the device.

    python examples/npu_training.py                             # where there is an Ascend
    python -m fusion_attention run examples/npu_training.py     # everywhere else, unmodified

The text is this file, a byte a token. Batches are rows of one length and packed documents in turn;
the layers look at whole prefixes (sparse_mode 2 and 3) and at a window (4), with dropout. Seconds
on a CPU. Nothing in here knows that it may run anywhere but on the device.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_npu
from torch import Tensor, nn

END = 0  # a byte that no text contains ends a document
WINDOW = 24


@dataclass
class Batch:
    """Tokens [batch, length], or [tokens] of documents that end where `ends` says, [3, 8, 12]."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    ends: list[int] | None = None


class SavedStatistics(torch.autograd.Function):
    """The operator with its gradient called by hand, as context-parallel training has to do."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_num: int,
        input_layout: str,
        scale: float,
        keep_prob: float,
        options: dict[str, Any],
    ) -> Tensor:
        out, softmax_max, softmax_sum, _, seed, offset, numels = torch_npu.npu_fusion_attention(
            query, key, value, head_num, input_layout, scale=scale, keep_prob=keep_prob, **options
        )
        ctx.save_for_backward(query, key, value, out, softmax_max, softmax_sum)
        ctx.head_num, ctx.input_layout, ctx.scale = head_num, input_layout, scale
        ctx.keep_prob, ctx.options, ctx.random = keep_prob, options, (seed, offset, numels)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, softmax_max, softmax_sum = ctx.saved_tensors
        seed, offset, numels = ctx.random
        grads = torch_npu.npu_fusion_attention_grad(
            query,
            key,
            value,
            d_out,
            ctx.head_num,
            ctx.input_layout,
            softmax_max=softmax_max,
            softmax_sum=softmax_sum,
            attention_in=out,
            scale_value=ctx.scale,
            keep_prob=ctx.keep_prob,
            seed=seed,
            offset=offset,
            numels=numels,
            **ctx.options,
        )
        return *grads[:3], None, None, None, None, None


class Attention(nn.Module):
    """Grouped-query attention in one of the operator's causal modes."""

    def __init__(self, width: int, heads: int, sparse_mode: int, keep_prob: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, heads // 2, width // heads
        self.sparse_mode, self.keep_prob = sparse_mode, keep_prob
        channels = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(width, channels, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        # True is where the operator must not look; 2048 x 2048 whatever the length.
        mask = torch.ones(2048, 2048, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("atten_mask", mask, persistent=False)

    def forward(self, x: Tensor, ends: list[int] | None) -> Tensor:
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        query, key, value = heads.split(sizes, dim=-2)
        options: dict[str, Any] = {"atten_mask": self.atten_mask, "sparse_mode": self.sparse_mode}
        if self.sparse_mode == 4:
            options |= {"pre_tockens": WINDOW, "next_tockens": 0}
        layout = "BSND"
        if ends is not None:
            layout = "TND"
            options |= {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
        keep_prob = self.keep_prob if self.training else 1.0
        scale = self.head_dim**-0.5
        if self.sparse_mode == 3:
            out = SavedStatistics.apply(
                query, key, value, self.heads, layout, scale, keep_prob, options
            )
        else:
            out = torch_npu.npu_fusion_attention(
                query, key, value, self.heads, layout, scale=scale, keep_prob=keep_prob, **options
            )[0]
        return self.proj(out.flatten(-2))


class GPT(nn.Module):
    """One layer for each of `modes`."""

    def __init__(self, width: int, heads: int, length: int, modes: list[int], drop: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.positions = nn.Embedding(length, width)
        self.attentions = nn.ModuleList(Attention(width, heads, m, 1 - drop) for m in modes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in modes)
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            for _ in modes
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, batch: Batch) -> Tensor:
        """Returns the mean loss in nats per byte."""
        x = self.tokens(batch.tokens) + self.positions(batch.positions)
        for attention, norm, mlp in zip(self.attentions, self.norms, self.mlps, strict=True):
            x = x + attention(norm(x), batch.ends)
            x = x + mlp(x)
        return F.cross_entropy(self.head(x).flatten(0, -2), batch.targets.flatten())


def rows(text: Tensor, count: int, length: int) -> Batch:
    """Pieces of the text that all have one length."""
    starts = torch.randint(len(text) - length - 1, (count, 1))
    index = starts + torch.arange(length)
    positions = torch.arange(length, device="npu").expand(count, length)
    return Batch(text[index].npu(), text[index + 1].npu(), positions)


def packed(text: Tensor, documents: int, length: int) -> Batch:
    """Pieces of many lengths, one after the other, without padding."""
    lengths = torch.randint(length // 8, length, (documents,)).tolist()
    starts = torch.randint(len(text) - length - 1, (documents,)).tolist()
    pieces = [text[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    end = torch.tensor([END])
    targets = torch.cat([torch.cat([piece[1:], end]) for piece in pieces])
    positions = torch.cat([torch.arange(n) for n in lengths])
    ends = torch.tensor(lengths).cumsum(0).tolist()
    tokens = torch.cat(pieces)
    return Batch(tokens.npu(), targets.npu(), positions.to("npu:0"), ends)


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains a small GPT on an Ascend NPU.")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--modes", type=int, nargs="+", default=[2, 4, 3])
    parser.add_argument("--drop", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Trains, and prints how it goes."""
    options = parse_options()
    torch.npu.set_device(options.device)
    torch.npu.set_compile_mode(jit_compile=False)
    torch.manual_seed(options.seed)
    torch.npu.manual_seed_all(options.seed)
    print(f"training on {torch.npu.get_device_name(options.device)}")

    text = torch.tensor(list(Path(__file__).read_bytes()))
    model = GPT(options.width, options.heads, options.length, options.modes, options.drop).npu()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    begin, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    losses, tokens = [], 0
    begin.record()
    for step in range(1, options.steps + 1):
        make = rows if step % 2 else packed
        batch = make(text, options.batch, options.length)
        with torch.autocast("npu", dtype=torch.bfloat16, enabled=options.bf16):
            loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        tokens += batch.tokens.numel()
        if step == 1 or step % 10 == 0 or step == options.steps:
            print(f"step {step:4d}  {make.__name__:6s}  loss {losses[-1]:.4f}", flush=True)
    end.record()
    torch.npu.synchronize()
    rate = tokens / begin.elapsed_time(end) * 1e3
    memory = torch.npu.max_memory_allocated() / 2**20
    print(f"{rate:,.0f} tokens/s, {memory:,.0f} MiB, loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
