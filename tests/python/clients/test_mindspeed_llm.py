"""Language models as MindSpeed-LLM trains them: windows, sinks, ALiBi, latent attention, masks.

Most of them call npu_fusion_attention_v2, which spells pre_tokens correctly and knows slopes, start
indices and rotary parts.
"""

import math
from typing import Any

import pytest
import torch
import torch_npu
from checking import assert_exact, causal_mask, future, leaf, meant, trained
from torch import Tensor, nn

B, S, N, D = 2, 60, 4, 32


def alibi_slopes(heads: int) -> Tensor:
    """2^(-8/N), 2^(-16/N), ... for a number of heads that is a power of two."""
    start = 2 ** (-8 / heads)
    return torch.tensor([start * start**i for i in range(heads)], dtype=torch.float32)


def distance(tokens: int) -> Tensor:
    """How far a query at the row's place is from a key at the column's."""
    place = torch.arange(tokens)
    return (place[:, None] - place).abs()


class SinkAttention(nn.Module):
    """gpt-oss: a learned logit for each head, and a sliding window in every other layer."""

    def __init__(self, sliding_window: int | None) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.randn(N, dtype=torch.bfloat16))
        self.sliding_window, self.scaling = sliding_window, D**-0.5

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        atten_mask = torch.triu(
            torch.ones((2048, 2048), device=query.device, dtype=torch.bool), diagonal=1
        )
        return torch_npu.npu_fusion_attention_v2(
            query,
            key,
            value,
            head_num=query.shape[1],
            input_layout="BNSD",
            keep_prob=1.0,
            scale=self.scaling,
            pre_tokens=self.sliding_window or 1048576,
            next_tokens=0,
            sparse_mode=4,
            atten_mask=atten_mask,
            sink=self.sinks.float(),
        )[0]


@pytest.mark.parametrize("window", [None, 16])
def test_sinks_and_windows(window: int | None) -> None:
    module = SinkAttention(window).npu()
    query = leaf(B, N, S, D, dtype=torch.bfloat16)
    key, value = (leaf(B, 2, S, D, dtype=torch.bfloat16) for _ in range(2))
    dy = torch.randn_like(query)
    results = trained(module, {"q": query, "k": key, "v": value}, dy)
    results["dsink"] = module.sinks.grad
    hidden = future(S, S)
    if window is not None:
        hidden = hidden | torch.ones(S, S, dtype=torch.bool).tril(-window - 1)
    sink = module.sinks.float()
    meaning = meant(
        query, key, value, N, "BNSD", scale=D**-0.5, atten_mask=hidden, sparse_mode=1, sink=sink
    )
    assert_exact(results, meaning, dy)


# The bias of every pair, or one row of it, which a softmax over causal rows cannot tell apart.
@pytest.mark.parametrize("rows", [S, 1])
def test_dense_alibi(rows: int) -> None:
    query = leaf(B, N, S, D, dtype=torch.bfloat16)
    key, value = (leaf(B, N, S, D, dtype=torch.bfloat16) for _ in range(2))
    slopes, scale = alibi_slopes(N)[:, None, None], D**-0.5
    bias = -slopes * distance(S) if rows == S else slopes * torch.arange(S)
    pse = bias.expand(B, N, rows, S).to("npu", torch.bfloat16) / scale
    mask = torch.triu(torch.ones((S, S), device="npu"), 1).bool()
    dy = torch.randn_like(query)

    def attend(*qkv: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(
            *qkv, N, "BNSD",
            pse=pse,
            padding_mask=None,
            atten_mask=mask,
            scale=scale,
            pre_tockens=S,
            next_tockens=0,
            keep_prob=1.0,
            inner_precise=0,
            sparse_mode=0,
        )[0]  # fmt: skip

    results = trained(attend, {"q": query, "k": key, "v": value}, dy)
    meaning = meant(
        query, key, value, N, "BNSD", scale=scale, pse=pse, atten_mask=mask, sparse_mode=1
    )
    assert_exact(results, meaning, dy)


def exact_alibi(pse_type: int, tokens: int, scale: float) -> Tensor:
    """For the oracle: what slopes add to the scores, as a pse that is scaled like them."""
    far = distance(tokens).double()
    far = far.sqrt() if pse_type == 3 else far
    return (-alibi_slopes(N).double()[:, None, None] * far / scale)[None]


@pytest.mark.parametrize("pse_type", [2, 3])
def test_alibi_from_slopes(pse_type: int) -> None:
    query, key, value = (leaf(S, B, N * D, dtype=torch.bfloat16) for _ in range(3))
    pse, mask = alibi_slopes(N).npu(), causal_mask()
    dy = torch.randn_like(query)

    def attend(*qkv: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention_v2(
            *qkv, N, "SBH",
            pse=pse,
            padding_mask=None,
            atten_mask=mask,
            scale=D**-0.5,
            pse_type=pse_type,
            pre_tokens=65536,
            next_tokens=0,
            keep_prob=1.0,
            inner_precise=0,
            sparse_mode=2,
        )[0]  # fmt: skip

    results = trained(attend, {"q": query, "k": key, "v": value}, dy)
    meaning = meant(
        query, key, value, N, "SBH", scale=D**-0.5, pse=exact_alibi(pse_type, S, D**-0.5),
        atten_mask=mask, sparse_mode=2,
    )  # fmt: skip
    assert_exact(results, meaning, dy)


@pytest.mark.parametrize("pse_type", [2, 3])
def test_alibi_of_blocks_that_start_elsewhere(pse_type: int) -> None:
    """A ring passes where its block of queries and its block of keys begin in the sequence."""
    blocks, scale = 3, D**-0.5
    size = S // blocks
    query, key, value = (leaf(S, B, N * D).detach() for _ in range(3))
    dout = torch.randn_like(query)
    pse, mask = alibi_slopes(N).npu(), causal_mask()
    qs, ks, vs, douts = (x.split(size) for x in (query, key, value, dout))
    outs, dqs, dks, dvs = ([torch.zeros_like(x) for x in xs] for xs in (qs, qs, ks, vs))
    for i in range(blocks):

        def options(j: int, i: int = i) -> dict[str, Any]:
            return {
                "pse": pse,
                "pse_type": pse_type,
                "padding_mask": None,
                "atten_mask": mask if i == j else None,
                "pre_tokens": size,
                "next_tokens": 0 if i == j else size,
                "keep_prob": 1.0,
                "sparse_mode": 3 if i == j else 0,
                "q_start_idx": [i * size],
                "kv_start_idx": [j * size],
            }

        parts = [
            torch_npu.npu_fusion_attention_v2(
                qs[i], ks[j], vs[j], N, "SBH", scale=scale, **options(j)
            )[:3]
            for j in range(i + 1)
        ]
        part_outs, maxima, sums = (torch.stack(x) for x in zip(*parts, strict=True))
        softmax_max = maxima.amax(0)
        weights = sums * torch.exp(maxima - softmax_max)
        softmax_sum = weights.sum(0)
        shares = (weights / softmax_sum)[..., :1].permute(0, 3, 1, 2, 4)
        outs[i] = (part_outs.unflatten(-1, (N, D)) * shares).sum(0).flatten(-2)
        for j in range(i + 1):
            grads = torch_npu.npu_fusion_attention_grad_v2(
                qs[i], ks[j], vs[j], douts[i], N, "SBH",
                softmax_max=softmax_max,
                softmax_sum=softmax_sum,
                attention_in=outs[i],
                scale_value=scale,
                **options(j),
            )  # fmt: skip
            for total, grad in zip((dqs[i], dks[j], dvs[j]), grads[:3], strict=True):
                total += grad
    meaning = meant(
        query, key, value, N, "SBH", scale=scale, pse=exact_alibi(pse_type, S, scale),
        atten_mask=mask, sparse_mode=2,
    )  # fmt: skip
    names = ("out", "dq", "dk", "dv")
    results = dict(zip(names, map(torch.cat, (outs, dqs, dks, dvs)), strict=True))
    assert_exact(results, meaning, dout, parts=2 * blocks)


@pytest.mark.parametrize("sparse_mode", [2, 3])
def test_latent_attention(sparse_mode: int) -> None:
    """Queries and keys of two parts, values of one; all heads share one rotary key."""
    rope, tokens, ends = 16, 45, [20, 45]
    q, k, v = (leaf(tokens, N, D, dtype=torch.bfloat16) for _ in range(3))
    q_rope = leaf(tokens, N, rope, dtype=torch.bfloat16)
    k_rope = leaf(tokens, 1, rope, dtype=torch.bfloat16).expand(-1, N, -1)
    k_rope.retain_grad()
    scale = 1 / math.sqrt(D + rope)
    mask = causal_mask()
    out = torch_npu.npu_fusion_attention_v2(
        q, k, v, N, "TND",
        pse=None,
        padding_mask=None,
        atten_mask=mask,
        query_rope=q_rope,
        key_rope=k_rope,
        scale=scale,
        keep_prob=1.0,
        pre_tokens=65536,
        next_tokens=0,
        inner_precise=0,
        sparse_mode=sparse_mode,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
    )[0]  # fmt: skip
    dy = torch.randn_like(out)
    out.backward(dy)
    results = {
        "out": out,
        "dq": torch.cat([q.grad, q_rope.grad], -1),
        "dk": torch.cat([k.grad, k_rope.grad], -1),
        "dv": v.grad,
    }
    meaning = meant(
        torch.cat([q, q_rope], -1),
        torch.cat([k, k_rope], -1),
        v,
        N,
        "TND",
        scale=scale,
        atten_mask=mask,
        sparse_mode=3,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
    )
    assert_exact(results, meaning, dy)


def test_selected_keys() -> None:
    """Sparse attention as a mask: every query sees the few keys that an indexer picked for it."""
    query, key, value = (leaf(B, N, S, D, dtype=torch.bfloat16) for _ in range(3))
    scores = torch.rand(B, S, S, device="npu").masked_fill(future(S, S).npu(), -1)
    attention_mask = torch.ones(B, S, S, device="npu")
    attention_mask.scatter_(-1, scores.topk(8, dim=-1).indices, 0)
    attention_mask = torch.maximum(attention_mask, future(S, S).npu().float()).unsqueeze(1)
    dy = torch.randn_like(query)

    def attend(*qkv: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(
            *qkv, N, "BNSD", atten_mask=attention_mask.bool(), scale=D**-0.5, sparse_mode=1
        )[0]

    results = trained(attend, {"q": query, "k": key, "v": value}, dy)
    meaning = meant(
        query, key, value, N, "BNSD", scale=D**-0.5, atten_mask=attention_mask.bool(), sparse_mode=1
    )
    assert_exact(results, meaning, dy)
