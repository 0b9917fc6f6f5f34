"""Sequence parallelism outside of MindSpeed: ms-swift, yunchang, torchtitan.

They keep a logsumexp instead of two statistics, use the v2 and v3 operators, and reach the third
one through torch.ops.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from checking import assert_exact, causal_mask, future, leaf, meant, trained
from torch import Tensor

N, D = 4, 16
NPU_MAX_TOKENS = 2**31 - 1


def block_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, mode: int, window: int
) -> tuple[Tensor, Tensor]:
    """Packed tokens to (out, logsumexp [heads, tokens]), as flash-attn's varlen function."""
    out, softmax_max, softmax_sum, *_ = torch_npu.npu_fusion_attention(
        q, k, v, q.shape[1], "TND",
        atten_mask=causal_mask() if mode else None,
        scale=q.shape[-1] ** -0.5,
        keep_prob=1.0,
        pre_tockens=window,
        next_tockens=0 if mode else NPU_MAX_TOKENS,
        actual_seq_qlen=tuple(int(x) for x in cu_q[1:].cpu().tolist()),
        actual_seq_kvlen=tuple(int(x) for x in cu_k[1:].cpu().tolist()),
        sparse_mode=mode,
        sync=False,
        softmax_layout="TND",
    )  # fmt: skip
    lse = softmax_max[..., 0] + torch.log(softmax_sum[..., 0])
    return out, lse.transpose(0, 1).contiguous()


def block_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    mode: int,
    window: int,
) -> tuple[Tensor, ...]:
    """The merged logsumexp stands for both statistics: as the maximum, with a sum of 1."""
    softmax_max = lse.transpose(0, 1).unsqueeze(-1).expand(*q.shape[:2], 8).contiguous()
    return torch_npu.npu_fusion_attention_grad(
        q, k, v, dout, q.shape[1], "TND",
        atten_mask=causal_mask() if mode else None,
        softmax_max=softmax_max,
        softmax_sum=torch.ones_like(softmax_max),
        attention_in=out,
        scale_value=q.shape[-1] ** -0.5,
        keep_prob=1.0,
        pre_tockens=window,
        next_tockens=0 if mode else NPU_MAX_TOKENS,
        actual_seq_qlen=tuple(int(x) for x in cu_q[1:].cpu().tolist()),
        actual_seq_kvlen=tuple(int(x) for x in cu_k[1:].cpu().tolist()),
        sparse_mode=mode,
        softmax_layout="TND",
    )[:3]  # fmt: skip


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Adds the result over more keys, by logsumexp alone."""
    share = torch.sigmoid(part_lse - lse).transpose(0, 1).unsqueeze(-1)
    return out - share * (out - part), lse - F.logsigmoid(lse - part_lse)


def test_zigzag_ring() -> None:
    """Documents in 2P pieces each; rank r has the pieces r and 2P-1-r of every document."""
    ranks, pieces = 2, [3, 8, 5]  # tokens in one piece of each document
    documents, spans, begin = len(pieces), [], 0
    for size in pieces:
        spans.append([torch.arange(begin + i * size, begin + (i + 1) * size) for i in range(4)])
        begin += 4 * size
    q, k, v = (leaf(begin, N, D).detach() for _ in range(3))
    dout = torch.randn_like(q)
    whole = torch.tensor([0, *(2 * x for x in pieces)]).cumsum(0)
    half = whole // 2

    def tokens(rank: int, part: str) -> Tensor:
        """Places of a rank's tokens: both pieces of each document, the front one or the back."""
        wanted = {"both": (rank, 3 - rank), "front": (rank,), "back": (3 - rank,)}[part]
        return torch.cat([spans[d][p] for d in range(documents) for p in wanted])

    def step(rank: int, kv_rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Places of queries and of keys, their cumulative lengths, and the mode."""
        if rank == kv_rank:
            return tokens(rank, "both"), tokens(rank, "both"), whole, whole, 3
        if kv_rank < rank:
            return tokens(rank, "both"), tokens(kv_rank, "front"), whole, half, 0
        return tokens(rank, "back"), tokens(kv_rank, "both"), half, whole, 0

    out, lse = torch.empty_like(q), torch.empty(N, len(q), device="npu")
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    steps = [(rank, (rank - i) % ranks) for rank in range(ranks) for i in range(ranks)]
    for rank, kv_rank in steps:
        rows, columns, cu_q, cu_k, mode = step(rank, kv_rank)
        part, part_lse = block_forward(
            q[rows], k[columns], v[columns], cu_q, cu_k, mode, NPU_MAX_TOKENS
        )
        if rank == kv_rank:
            out[rows], lse[:, rows] = part, part_lse
        else:
            out[rows], lse[:, rows] = merge(out[rows], lse[:, rows], part, part_lse)
    for rank, kv_rank in steps:
        rows, columns, cu_q, cu_k, mode = step(rank, kv_rank)
        grads = block_backward(
            dout[rows], q[rows], k[columns], v[columns], out[rows], lse[:, rows],
            cu_q, cu_k, mode, NPU_MAX_TOKENS,
        )  # fmt: skip
        for total, places, grad in zip((dq, dk, dv), (rows, columns, columns), grads, strict=True):
            total[places] += grad
    ends = (2 * whole[1:]).tolist()
    meaning = meant(
        q, k, v, N, "TND", scale=D**-0.5, atten_mask=causal_mask(), sparse_mode=3,
        actual_seq_qlen=ends, actual_seq_kvlen=ends,
    )  # fmt: skip
    results = {"out": out, "dq": dq, "dk": dk, "dv": dv}
    assert_exact(results, meaning, dout, parts=2 * ranks)


def test_window_of_a_packed_rank() -> None:
    q, k, v = (leaf(40, N, D).detach() for _ in range(3))
    dout = torch.randn_like(q)
    cu = torch.tensor([0, 15, 40], dtype=torch.int32, device="npu")
    out, lse = block_forward(q, k, v, cu, cu, mode=4, window=6)
    dq, dk, dv = block_backward(dout, q, k, v, out, lse, cu, cu, mode=4, window=6)
    document = torch.bucketize(torch.arange(40), cu[1:].cpu(), right=True)
    hidden = (document[:, None] != document) | future(40, 40)
    hidden |= torch.ones(40, 40, dtype=torch.bool).tril(-7)
    meaning = meant(
        *(x[None] for x in (q, k, v)), N, "BSND", scale=D**-0.5, atten_mask=hidden, sparse_mode=1
    )
    results = {"out": out, "dq": dq, "dk": dk, "dv": dv}
    assert_exact({name: x[None] for name, x in results.items()}, meaning, dout[None])


class UnifiedAttention(torch.autograd.Function):
    """yunchang: the second operator and its gradient, whole blocks, windows of 65535."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        res = torch_npu.npu_fusion_attention_v2(
            q, k, v,
            head_num=q.shape[-2],
            input_layout="BSND",
            scale=softmax_scale,
            pre_tokens=65535,
            next_tokens=65535,
        )  # fmt: skip
        block_out, softmax_max, softmax_sum = res[0], res[1], res[2]
        ctx.save_for_backward(q, k, v, block_out, softmax_max, softmax_sum)
        ctx.softmax_scale = softmax_scale
        return block_out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, softmax_max, softmax_sum = ctx.saved_tensors
        grads = torch_npu.npu_fusion_attention_grad_v2(
            q, k, v, dout,
            head_num=q.shape[-2],
            input_layout="BSND",
            softmax_max=softmax_max,
            softmax_sum=softmax_sum,
            attention_in=out,
            scale_value=ctx.softmax_scale,
            pre_tokens=65535,
            next_tokens=65535,
        )  # fmt: skip
        return grads[0], grads[1], grads[2], None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unified_sequence_parallelism(dtype: torch.dtype) -> None:
    q = leaf(2, 24, N, D, dtype=dtype)
    k, v = (leaf(2, 48, N, D, dtype=dtype) for _ in range(2))
    dy = torch.randn_like(q)
    scale = q.shape[-1] ** -0.5
    results = trained(
        lambda *qkv: UnifiedAttention.apply(*qkv, scale), {"q": q, "k": k, "v": v}, dy
    )
    assert_exact(results, meant(q, k, v, N, "BSND", scale=scale), dy)


def test_converter_of_torchtitan() -> None:
    """SDPA replaced by one causal call that may be captured: the mask is built in it, sync=True."""
    q = leaf(2, N, 45, D, dtype=torch.bfloat16)
    k, v = (leaf(2, 2, 45, D, dtype=torch.bfloat16) for _ in range(2))
    dy = torch.randn_like(q)

    def attend(*qkv: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(
            *qkv,
            head_num=N,
            input_layout="BNSD",
            pse=None,
            atten_mask=torch.triu(torch.ones([2048, 2048], device="npu"), diagonal=1).bool(),
            scale=D**-0.5,
            keep_prob=1.0,
            sparse_mode=2,
            sync=True,
        )[0]

    results = trained(attend, {"q": q, "k": k, "v": v}, dy)
    hidden = future(45, 45)
    meaning = meant(q, k, v, N, "BNSD", scale=D**-0.5, atten_mask=hidden, sparse_mode=1)
    assert_exact(results, meaning, dy)


# On the host they cost no copy; models that keep them on the device pay one and get the same.
@pytest.mark.parametrize("device", ["cpu", "npu"])
@pytest.mark.parametrize("mode", [3, 7])
def test_variable_lengths_of_torchtitan(mode: int, device: str) -> None:
    """The third operator takes lengths as a tensor and returns no numels."""
    cu_seq = torch.tensor([0, 11, 12, 40], dtype=torch.int64, device=device)
    q = leaf(40, N, D, dtype=torch.bfloat16)
    k, v = (leaf(40, 2, D, dtype=torch.bfloat16) for _ in range(2))
    dy = torch.randn_like(q)

    def attend(*qkv: Tensor) -> Tensor:
        outputs = torch.ops.npu.npu_fusion_attention_v3(
            *qkv, N, "TND",
            atten_mask=causal_mask(),
            scale=D**-0.5,
            keep_prob=1.0,
            pre_tockens=40,
            next_tockens=0,
            actual_seq_qlen=cu_seq[1:],
            actual_seq_kvlen=cu_seq[1:],
            sparse_mode=mode,
        )  # fmt: skip
        assert len(outputs) == 6
        return outputs[0]

    results = trained(attend, {"q": q, "k": k, "v": v}, dy)
    ends = cu_seq[1:].tolist()
    meaning = meant(
        q, k, v, N, "TND", scale=D**-0.5, atten_mask=causal_mask(), sparse_mode=3,
        actual_seq_qlen=ends, actual_seq_kvlen=ends,
    )  # fmt: skip
    assert_exact(results, meaning, dy)
