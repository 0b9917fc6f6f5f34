"""Ulysses attention on processes that talk over "hccl", as a launcher starts them on a device each.

Every rank holds some tokens of all heads, exchanges them for all tokens of some heads, attends, and
exchanges back; so do the gradients.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch_npu
from checking import assert_exact, causal_mask, leaf, meant
from torch import Tensor

RANKS, S, B, N, D = 2, 24, 2, 4, 8


def exchange(x: Tensor, scatter: int, gather: int) -> Tensor:
    """Cuts along one axis, and joins what the ranks have for this one along the other."""
    parts = [part.contiguous() for part in x.chunk(RANKS, dim=scatter)]
    received = torch.empty_like(torch.stack(parts))
    dist.all_to_all_single(received, torch.stack(parts))
    return torch.cat(list(received), dim=gather).contiguous()


class SeqAllToAll(torch.autograd.Function):
    """An exchange whose gradient is the exchange back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scatter: int, gather: int) -> Tensor:
        ctx.scatter, ctx.gather = scatter, gather
        return exchange(x, scatter, gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return exchange(grad, ctx.gather, ctx.scatter), None, None


def work(rank: int, folder: Path) -> None:
    """One rank: [s / ranks, b, n, d] in, the same out."""
    torch.npu.set_device(rank % torch.npu.device_count())
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("hccl", init_method=rendezvous, rank=rank, world_size=RANKS)
    inputs = torch.load(folder / "inputs.pt", map_location="npu")
    query, key, value, dy = (x.chunk(RANKS)[rank].clone() for x in inputs)
    tensors = [x.requires_grad_() for x in (query, key, value)]
    q, k, v = (SeqAllToAll.apply(x, 2, 0).flatten(2) for x in tensors)
    out = torch_npu.npu_fusion_attention(
        q, k, v, N // RANKS, "SBH", atten_mask=causal_mask(), scale=D**-0.5, sparse_mode=2
    )[0]
    out = SeqAllToAll.apply(out.unflatten(-1, (-1, D)), 0, 2)
    out.backward(dy)
    torch.save([out.detach(), *(x.grad for x in tensors)], folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ulysses_on_two_ranks(tmp_path: Path) -> None:
    inputs = [leaf(S, B, heads, D).detach() for heads in (N, 2, 2, N)]
    torch.save(inputs, tmp_path / "inputs.pt")
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(RANKS)]
    gathered = [torch.cat(shards).flatten(2) for shards in zip(*ranks, strict=True)]
    query, key, value, dy = (x.flatten(2) for x in inputs)
    meaning = meant(
        query, key, value, N, "SBH", scale=D**-0.5, atten_mask=causal_mask(), sparse_mode=2
    )
    names = ("out", "dq", "dk", "dv")
    assert_exact(dict(zip(names, gathered, strict=True)), meaning, dy)
