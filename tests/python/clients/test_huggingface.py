"""The operator as Hugging Face's libraries and DeepSpeed call it.

transformers: wrappers with flash-attn's signature. diffusers: an attention backend and a processor.
DeepSpeed: layers whose heads are merged with the channels.
"""

import math
from typing import Any

import pytest
import torch
import torch_npu
from checking import assert_exact, causal_mask, future, leaf, meant, trained
from torch import Tensor, nn

# A backend imports the name by itself.
from torch_npu import npu_fusion_attention

B, S, N, D = 2, 50, 4, 24
MAX_TOKEN = 2147483647


class PaddedBatch:
    """Texts of different lengths side by side, the wrappers' other form being one after another."""

    def __init__(self, attention_mask: Tensor) -> None:
        lengths = attention_mask.sum(-1, dtype=torch.int32)
        self.indices = attention_mask.flatten().nonzero().flatten()
        self.cu_seqlens = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        self.max_seqlen = lengths.max().item()

    def unpad(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self.indices]

    def pad(self, x: Tensor) -> Tensor:
        padded = torch.zeros(B * S, *x.shape[1:], dtype=x.dtype, device=x.device)
        return padded.index_copy(0, self.indices, x).unflatten(0, (B, S))


def npu_flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    sparse_mode: int = 3,
    **kwargs: Any,
) -> Tensor:
    """Takes [batch, tokens, heads, channels] as flash_attn_func does."""
    keep_prob = 1.0 - dropout_p
    if softmax_scale is None:
        softmax_scale = 1.0 / math.sqrt(q.shape[-1])
    head_num = q.shape[2]
    if not causal:
        return torch_npu.npu_fusion_attention(
            q, k, v, head_num, "BSND", keep_prob=keep_prob, scale=softmax_scale
        )[0]
    attn_mask_npu = torch.triu(torch.ones([2048, 2048]), diagonal=1).bool().to(q.device)
    return torch_npu.npu_fusion_attention(
        q, k, v, head_num, "BSND", keep_prob=keep_prob, scale=softmax_scale,
        atten_mask=attn_mask_npu, sparse_mode=sparse_mode,
    )[0]  # fmt: skip


def npu_flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Takes [all tokens, heads, channels] as flash_attn_varlen_func does."""
    if softmax_scale is None:
        softmax_scale = 1.0 / math.sqrt(q.shape[-1])
    options: dict[str, Any] = {"atten_mask": None}
    if causal:
        attn_mask_npu = torch.triu(torch.ones([2048, 2048]), diagonal=1).bool().to(q.device)
        options = {"padding_mask": None, "atten_mask": attn_mask_npu, "sparse_mode": 3}
    return torch_npu.npu_fusion_attention(
        q, k, v, q.shape[1],
        pse=None,
        scale=softmax_scale,
        keep_prob=1.0 - dropout_p,
        input_layout="TND",
        actual_seq_qlen=tuple(cu_seqlens_q[1:].cpu().numpy().tolist()),
        actual_seq_kvlen=tuple(cu_seqlens_k[1:].cpu().numpy().tolist()),
        **options,
    )[0]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("causal", "sparse_mode", "keys"), [(False, 3, 60), (True, 3, 60), (True, 2, 60)]
)
def test_flash_attn_func(dtype: torch.dtype, causal: bool, sparse_mode: int, keys: int) -> None:
    q = leaf(B, S, N, D, dtype=dtype)
    k, v = (leaf(B, keys, 2, D, dtype=dtype) for _ in range(2))
    dy = torch.randn_like(q)
    results = trained(
        lambda *qkv: npu_flash_attn_func(*qkv, causal=causal, sparse_mode=sparse_mode),
        {"q": q, "k": k, "v": v},
        dy,
    )
    hidden = torch.zeros(S, keys, dtype=torch.bool)
    if causal:
        hidden = future(S, keys) if sparse_mode == 3 else torch.ones_like(hidden).triu(1)
    meaning = meant(q, k, v, N, "BSND", scale=D**-0.5, atten_mask=hidden, sparse_mode=1)
    assert_exact(results, meaning, dy)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_varlen_func(causal: bool) -> None:
    attention_mask = torch.ones(B, S, dtype=torch.int64, device="npu")
    attention_mask[0, 31:] = 0
    batch = PaddedBatch(attention_mask)
    assert batch.max_seqlen == S
    q, k, v = (leaf(B, S, N, D, dtype=torch.bfloat16) for _ in range(3))
    dy = torch.randn_like(q)

    def attend(*qkv: Tensor) -> Tensor:
        packed = [batch.unpad(x) for x in qkv]
        lists = (batch.cu_seqlens, batch.cu_seqlens)
        return batch.pad(npu_flash_attn_varlen_func(*packed, *lists, causal=causal))

    results = trained(attend, {"q": q, "k": k, "v": v}, dy)
    padding = attention_mask.cpu() == 0
    hidden = padding[:, None, None, :] | padding[:, None, :, None]
    hidden = hidden | (future(S, S) if causal else False)
    meaning = meant(q, k, v, N, "BSND", scale=D**-0.5, atten_mask=hidden, sparse_mode=1)
    assert_exact(results, meaning, dy)


def maybe_modify_attn_mask(query: Tensor, key: Tensor, attn_mask: Tensor | None) -> Tensor | None:
    """Makes a mask of keys to keep, [batch, keys], one of scores to hide, [batch, 1, Sq, Skv]."""
    if attn_mask is not None and torch.all(attn_mask != 0):
        return None
    if attn_mask is not None and attn_mask.ndim == 2:
        size = (attn_mask.shape[0], query.shape[1], key.shape[1])
        attn_mask = ~attn_mask.to(torch.bool)
        attn_mask = attn_mask.unsqueeze(1).expand(size).unsqueeze(1).contiguous()
    return attn_mask


def native_npu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """A backend of diffusers' dispatcher: [batch, tokens, heads, channels]."""
    attn_mask = maybe_modify_attn_mask(query, key, attn_mask)
    return npu_fusion_attention(
        query,
        key,
        value,
        query.size(2),  # num_heads
        input_layout="BSND",
        pse=None,
        atten_mask=attn_mask,
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        pre_tockens=MAX_TOKEN,
        next_tockens=MAX_TOKEN,
        keep_prob=1.0 - dropout_p,
        sync=False,
        inner_precise=0,
    )[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", [[37, 20], [37, 37], None])
def test_backend_of_diffusers(dtype: torch.dtype, kept: list[int] | None) -> None:
    keys = 37
    query = leaf(B, S, N, D, dtype=dtype)
    key, value = (leaf(B, keys, N, D, dtype=dtype) for _ in range(2))
    dy = torch.randn_like(query)
    hidden = torch.zeros(B, 1, S, keys, dtype=torch.bool)
    mask = None
    if kept is not None:
        mask = torch.arange(keys, device="npu") < torch.tensor(kept, device="npu")[:, None]
        hidden |= ~mask.cpu()[:, None, None, :]
    inputs = {"q": query, "k": key, "v": value}
    results = trained(lambda *qkv: native_npu_attention(*qkv, attn_mask=mask), inputs, dy)
    meaning = meant(
        query, key, value, N, "BSND", scale=D**-0.5, atten_mask=hidden, sparse_mode=1
    )  # fmt: skip
    assert_exact(results, meaning, dy)


class AttnProcessorNPU:
    """A processor of diffusers' Attention: projections outside, heads split and joined inside."""

    def __call__(
        self,
        attn: nn.ModuleDict,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        batch_size, query_length, _ = hidden_states.shape
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            attention_mask = attention_mask.view(batch_size, 1, 1, -1)
            attention_mask = attention_mask.repeat(1, 1, query_length, 1)
            attention_mask = ~attention_mask.bool()
        query, key, value = attn["q"](hidden_states), attn["k"](source), attn["v"](source)
        head_dim = key.shape[-1] // N
        query, key, value = (
            x.view(batch_size, -1, N, head_dim).transpose(1, 2) for x in (query, key, value)
        )
        assert query.dtype in (torch.float16, torch.bfloat16)
        hidden_states = torch_npu.npu_fusion_attention(
            query,
            key,
            value,
            N,
            input_layout="BNSD",
            pse=None,
            atten_mask=attention_mask,
            scale=1.0 / math.sqrt(query.shape[-1]),
            pre_tockens=65536,
            next_tockens=65536,
            keep_prob=1.0,
            sync=False,
            inner_precise=0,
        )[0]
        return hidden_states.transpose(1, 2).reshape(batch_size, -1, N * head_dim)


def test_processor_of_diffusers() -> None:
    """Gradients reach the projections through the strided heads."""
    texts = 20
    attn = nn.ModuleDict({name: nn.Linear(N * D, N * D, bias=False) for name in "qkv"})
    attn = attn.to("npu", torch.bfloat16)
    image = leaf(B, S, N * D, dtype=torch.bfloat16)
    prompt = torch.randn(B, texts, N * D, dtype=torch.bfloat16, device="npu")
    keep = torch.ones(B, texts, dtype=torch.bool, device="npu")
    keep[1, 9:] = False
    projected = {}
    for name, layer in attn.items():
        layer.register_forward_hook(lambda _, __, out, name=name: projected.__setitem__(name, out))
    out = AttnProcessorNPU()(attn, image, prompt, keep)
    for tensor in projected.values():
        tensor.retain_grad()
    dy = torch.randn_like(out)
    out.backward(dy)
    results = {f"d{name}": x.grad for name, x in projected.items()} | {"out": out}
    hidden = ~keep.cpu()[:, None, None, :].expand(B, 1, S, texts)
    meaning = meant(
        *(projected[name] for name in "qkv"),
        N,
        "BSH",
        scale=D**-0.5,
        atten_mask=hidden,
        sparse_mode=1,
    )
    assert_exact(results, meaning, dy)
    assert all(x.grad.abs().max() > 0 for x in [image, *attn.parameters()])


@pytest.mark.parametrize("masked", [False, True])
def test_deepspeed_layer(masked: bool) -> None:
    """One projection for all three, [batch, tokens, heads * channels], a mask of integers."""
    mixed = leaf(B, S, 3 * N * D, dtype=torch.float16)
    attn_mask = torch.zeros(B, 1, S, S, dtype=torch.int64, device="npu")
    attn_mask[..., 40:] = int(masked)
    query, key, value = mixed.chunk(3, dim=-1)
    out = torch_npu.npu_fusion_attention(
        query, key, value, N, "BSH",
        pse=None,
        padding_mask=None,
        atten_mask=attn_mask.bool(),
        scale=D**-0.5,
        keep_prob=1,
        pre_tockens=65536,
        next_tockens=65536,
        inner_precise=0,
    )[0]  # fmt: skip
    dy = torch.randn_like(out)
    out.backward(dy)
    grads = dict(zip(("dq", "dk", "dv"), mixed.grad.chunk(3, dim=-1), strict=True))
    meaning = meant(
        query, key, value, N, "BSH", scale=D**-0.5, atten_mask=attn_mask.bool(), sparse_mode=1
    )
    assert_exact({"out": out, **grads}, meaning, dy)


def test_a_mask_per_call_is_the_same_mask() -> None:
    """Clients build triu(ones(2048, 2048)) in floats, in bool, or once for all layers."""
    q, k, v = (leaf(B, S, N, D, dtype=torch.bfloat16) for _ in range(3))
    built_here = npu_flash_attn_func(q, k, v, causal=True)
    options = {"scale": D**-0.5, "sparse_mode": 3}
    shared = npu_fusion_attention(q, k, v, N, "BSND", atten_mask=causal_mask(), **options)[0]
    assert torch.equal(built_here, shared)
