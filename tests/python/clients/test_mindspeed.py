"""Megatron-LM's core attention as MindSpeed puts the operator into it, and what surrounds it.

Written from the callers' side: the arguments, their spelling, order and forms are those of
training code for the device.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_npu
from checking import assert_exact, causal_mask, leaf, meant, trained
from torch import Tensor, nn

B, S, N, D = 2, 70, 4, 32


class DotProductAttention(nn.Module):
    """[s, b, n, d] in, [s, b, n * d] out; packed samples come as [t, 1, n, d] with cu_seqlens."""

    def __init__(self, head_dim: int, attention_dropout: float, sparse_mode: int) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(head_dim)
        self.attention_dropout = attention_dropout
        self.sparse_mode = sparse_mode
        self.pre_tockens, self.next_tockens = 65536, 0

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        seq_length, bsz, n_head, head_dim = query.shape
        actual_seq_qlen = actual_seq_kvlen = None
        if packed_seq_params is not None:
            query, key, value = (x.squeeze(1) for x in (query, key, value))
            actual_seq_qlen = packed_seq_params.cu_seqlens_q.tolist()
            actual_seq_kvlen = packed_seq_params.cu_seqlens_kv.tolist()
            shape_order = "TND"
        else:
            query, key, value = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
            shape_order = "SBH"
        output = torch_npu.npu_fusion_attention(
            query,
            key,
            value,
            n_head,
            shape_order,
            pse=None,
            padding_mask=None,
            atten_mask=attention_mask,
            scale=self.scale,
            pre_tockens=self.pre_tockens,
            next_tockens=self.next_tockens,
            keep_prob=1 - self.attention_dropout if self.training else 1.0,
            inner_precise=0,
            sparse_mode=self.sparse_mode if attention_mask is not None else 0,
            actual_seq_qlen=actual_seq_qlen,
            actual_seq_kvlen=actual_seq_kvlen,
        )[0]
        return output.reshape(seq_length, bsz, n_head * head_dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", [0, 2])
def test_core_attention_of_megatron(dtype: torch.dtype, mode: int) -> None:
    query = leaf(S, B, N, D, dtype=dtype)
    key, value = leaf(S, B, 2, D, dtype=dtype), leaf(S, B, 2, D, dtype=dtype)
    dy = torch.randn(S, B, N * D, dtype=dtype, device="npu")
    mask = causal_mask() if mode == 2 else torch.triu(torch.ones(S, S, device="npu"), 1).bool()
    core = DotProductAttention(D, attention_dropout=0.0, sparse_mode=mode)
    results = trained(lambda q, k, v: core(q, k, v, mask), {"q": query, "k": key, "v": value}, dy)
    meaning = meant(
        query.flatten(2),
        key.flatten(2),
        value.flatten(2),
        N,
        "SBH",
        scale=D**-0.5,
        sparse_mode=2,
        atten_mask=causal_mask(),
    )
    results = {name: x if name == "out" else x.flatten(2) for name, x in results.items()}
    assert_exact(results, meaning, dy)


def test_dropout_starts_from_the_seed() -> None:
    query, key, value = (leaf(S, B, N, D) for _ in range(3))
    dy = torch.randn(S, B, N * D, device="npu")
    core, mask = DotProductAttention(D, attention_dropout=0.1, sparse_mode=2), causal_mask()
    torch.npu.manual_seed(1234)
    results = trained(lambda q, k, v: core(q, k, v, mask), {"q": query, "k": key, "v": value}, dy)
    meaning = meant(
        query.flatten(2),
        key.flatten(2),
        value.flatten(2),
        N,
        "SBH",
        scale=D**-0.5,
        sparse_mode=2,
        atten_mask=mask,
        keep_prob=0.9,
        seed=1234,
        offset=0,
    )
    results = {name: x if name == "out" else x.flatten(2) for name, x in results.items()}
    assert_exact(results, meaning, dy)
    core.eval()
    assert not torch.equal(core(query, key, value, mask), results["out"])


# Reset attention masks pass where documents end; samples packed for fine-tuning start with a 0.
@pytest.mark.parametrize("cu_seqlens", [[13, 40, 70], [0, 13, 40, 70]])
def test_core_attention_of_packed_samples(cu_seqlens: list[int]) -> None:
    query = leaf(S, 1, N, D, dtype=torch.bfloat16)
    key, value = (leaf(S, 1, 2, D, dtype=torch.bfloat16) for _ in range(2))
    dy = torch.randn(S, 1, N * D, dtype=torch.bfloat16, device="npu")
    ends = torch.tensor(cu_seqlens, dtype=torch.int32, device="npu")
    params = SimpleNamespace(cu_seqlens_q=ends, cu_seqlens_kv=ends)
    core, mask = DotProductAttention(D, 0.0, sparse_mode=2), causal_mask()
    results = trained(
        lambda q, k, v: core(q, k, v, mask, params), {"q": query, "k": key, "v": value}, dy
    )
    meaning = meant(
        query.squeeze(1),
        key.squeeze(1),
        value.squeeze(1),
        N,
        "TND",
        scale=D**-0.5,
        sparse_mode=3,
        atten_mask=mask,
        actual_seq_qlen=[13, 40, 70],
        actual_seq_kvlen=[13, 40, 70],
    )
    results = {name: x.reshape(S, -1, D) for name, x in results.items()}
    assert_exact(results, meaning, dy.reshape(S, N, D))


class AttnFuncWithUlysses(torch.autograd.Function):
    """Between two all-to-alls: every token, some heads, and a gradient that is called by hand."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_para: dict[str, Any]) -> Tensor:
        n, keep_prob = attn_para["n"], 1.0 - attn_para["dropout_p"]
        res = torch_npu.npu_fusion_attention(
            q, k, v, n, attn_para["layout"],
            pse=None,
            padding_mask=None,
            atten_mask=attn_para["attn_mask"],
            scale=attn_para["softmax_scale"],
            pre_tockens=attn_para["pre_tokens"],
            next_tockens=attn_para["next_tokens"],
            keep_prob=keep_prob,
            inner_precise=0,
            sparse_mode=attn_para["sparse_mode"],
            actual_seq_qlen=attn_para["actual_seq_qlen"],
            actual_seq_kvlen=attn_para["actual_seq_kvlen"],
        )  # fmt: skip
        output, softmax_max, softmax_sum = res[0], res[1], res[2]
        ctx.save_for_backward(q, k, v, output, softmax_max, softmax_sum)
        ctx.attn_para, ctx.keep_prob = attn_para, keep_prob
        return output

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, softmax_max, softmax_sum = ctx.saved_tensors
        para = ctx.attn_para
        grads = torch_npu.npu_fusion_attention_grad(
            q, k, v, dout, para["n"], para["layout"],
            pse=None,
            padding_mask=None,
            atten_mask=para["attn_mask"],
            softmax_max=softmax_max,
            softmax_sum=softmax_sum,
            attention_in=output,
            scale_value=para["softmax_scale"],
            pre_tockens=para["pre_tokens"],
            next_tockens=para["next_tokens"],
            sparse_mode=para["sparse_mode"],
            keep_prob=ctx.keep_prob,
            actual_seq_qlen=para["actual_seq_qlen"],
            actual_seq_kvlen=para["actual_seq_kvlen"],
        )  # fmt: skip
        return grads[0], grads[1], grads[2], None


# (queries, keys, cumulative lists, mode): a whole causal sequence; the queries of one rank at the
# end of the keys gathered so far; the same for packed documents; a cross-attention without a mask.
@pytest.mark.parametrize(
    ("tokens", "keys", "q_ends", "kv_ends", "mode"),
    [
        (S, S, None, None, 2),
        (20, 55, None, None, 3),
        (20, 55, [4, 20], [30, 55], 3),
        (20, 55, None, None, 0),
    ],
)
def test_gradients_called_by_hand(
    tokens: int, keys: int, q_ends: list[int] | None, kv_ends: list[int] | None, mode: int
) -> None:
    dense = q_ends is None
    q = leaf(*((tokens, B, N * D) if dense else (tokens, N, D)), dtype=torch.bfloat16)
    k, v = (
        leaf(*((keys, B, 2 * D) if dense else (keys, 2, D)), dtype=torch.bfloat16) for _ in range(2)
    )
    dy = torch.randn_like(q)
    mask = causal_mask() if mode else None
    para = {
        "n": N,
        "layout": "SBH" if dense else "TND",
        "attn_mask": mask,
        "softmax_scale": D**-0.5,
        "pre_tokens": 65536,
        "next_tokens": 0,
        "sparse_mode": mode,
        "dropout_p": 0.0,
        "actual_seq_qlen": q_ends,
        "actual_seq_kvlen": kv_ends,
    }
    results = trained(
        lambda *qkv: AttnFuncWithUlysses.apply(*qkv, para), {"q": q, "k": k, "v": v}, dy
    )
    meaning = meant(
        q,
        k,
        v,
        N,
        para["layout"],
        scale=D**-0.5,
        sparse_mode=mode,
        atten_mask=mask,
        actual_seq_qlen=q_ends,
        actual_seq_kvlen=kv_ends,
    )
    assert_exact(results, meaning, dy)
