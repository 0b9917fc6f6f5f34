"""The operator in servers and in libraries below the models: vllm-ascend, xLLM, PyTorch itself.

They use its statistics, its masks of bytes, and shapes with a few queries and many keys.
"""

from typing import Any

import pytest
import torch
import torch_npu
from checking import assert_exact, causal_mask, future, leaf, meant, trained
from torch import Tensor

N, D = 4, 32


# A batch padded to the sizes that were captured: the unused places of the list hold 0.
@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_prefill_of_a_server(dtype: torch.dtype, padding: int) -> None:
    lengths = [5, 31, 1, 12]
    tokens = sum(lengths)
    seq_lens = torch.tensor(lengths).cumsum(0).tolist()
    actual = seq_lens + [0] * bool(padding)
    query = torch.randn(tokens + padding, N, D, dtype=dtype, device="npu")
    key, value = (torch.randn(tokens + padding, 1, D, dtype=dtype, device="npu") for _ in range(2))
    attn_out = torch_npu.npu_fusion_attention(
        query=query,
        key=key,
        value=value,
        head_num=N,
        input_layout="TND",
        pse=None,
        padding_mask=None,
        atten_mask=causal_mask(),
        scale=D**-0.5,
        keep_prob=1.0,
        pre_tockens=2147483647,
        next_tockens=2147483647,
        inner_precise=0,
        prefix=None,
        actual_seq_qlen=actual,
        actual_seq_kvlen=actual,
        sparse_mode=3,
        gen_mask_parallel=True,
        sync=False,
    )[0]
    assert not attn_out[tokens:].any()
    document = torch.arange(4).repeat_interleave(torch.tensor(lengths))
    hidden = (document[:, None] != document) | future(tokens, tokens)
    meaning = meant(
        *(x[None, :tokens] for x in (query, key, value)),
        N,
        "BSND",
        scale=D**-0.5,
        atten_mask=hidden,
        sparse_mode=1,
    )
    assert_exact({"out": attn_out[None, :tokens]}, meaning)


def test_large_heads_of_a_server() -> None:
    """Heads of 512 channels; a mask of 0 and 1 in a number type, made bool for the call."""
    query, key, value = (
        torch.randn(40, heads, 512, dtype=torch.bfloat16, device="npu") for heads in (2, 1, 1)
    )
    mask = torch.triu(torch.ones(2048, 2048, device="npu"), diagonal=1).to(torch.int8)
    out = torch_npu.npu_fusion_attention(
        query=query, key=key, value=value, head_num=2, input_layout="TND",
        atten_mask=mask.bool(), scale=512**-0.5, sparse_mode=3,
        actual_seq_qlen=[16, 40], actual_seq_kvlen=[16, 40],
    )[0]  # fmt: skip
    meaning = meant(
        query, key, value, 2, "TND", scale=512**-0.5, sparse_mode=3, atten_mask=causal_mask(),
        actual_seq_qlen=[16, 40], actual_seq_kvlen=[16, 40],
    )  # fmt: skip
    assert_exact({"out": out}, meaning)


def test_tiles_of_a_c_plus_plus_server() -> None:
    """Defaults up to keep_prob and the windows, all by position; tiles of keys merged by weight."""
    query, key, value = (
        torch.randn(2, tokens, N, D, dtype=torch.float32, device="npu") for tokens in (3, 90, 90)
    )
    tiles = []
    for begin in range(0, 90, 30):
        k, v = (x[:, begin : begin + 30] for x in (key, value))
        results = torch_npu.npu_fusion_attention(
            query, k, v, N, "BSND", None, None, None, D**-0.5, 1.0, 65535, 65535
        )
        tiles.append(results[:3])
    outs, maxima, sums = (torch.stack(x) for x in zip(*tiles, strict=True))
    maximum = maxima.amax(0)
    weights = sums * torch.exp(maxima - maximum)
    shares = (weights / weights.sum(0))[..., :1].transpose(2, 3)
    out = (outs * shares).sum(0)
    results = {"out": out, "softmax_max": maximum, "softmax_sum": weights.sum(0)}
    assert_exact(results, meant(query, key, value, N, "BSND", scale=D**-0.5), parts=2 * len(tiles))


@pytest.mark.parametrize("is_causal", [False, True])
def test_context_parallel_of_pytorch(is_causal: bool) -> None:
    """The template for rings calls with every keyword a mask of bytes, and keeps all results."""
    tokens = 45
    q, k, v = (leaf(2, N, tokens, D, dtype=torch.bfloat16) for _ in range(3))
    atten_mask, sparse_mode = None, 0
    if is_causal:
        ones = torch.ones(tokens, tokens, dtype=torch.uint8, device="npu")
        atten_mask = torch.triu(ones, diagonal=1).unsqueeze(0).unsqueeze(0)
        sparse_mode = 1
    common: dict[str, Any] = {
        "pse": None,
        "padding_mask": None,
        "atten_mask": atten_mask,
        "keep_prob": 1.0,
        "pre_tockens": 2147483647,
        "next_tockens": 2147483647,
        "inner_precise": 0,
        "prefix": None,
        "actual_seq_qlen": None,
        "actual_seq_kvlen": None,
        "sparse_mode": sparse_mode,
        "gen_mask_parallel": True,
        "sync": False,
        "softmax_layout": "",
        "sink": None,
    }
    forward = torch_npu.npu_fusion_attention(
        q, k, v, head_num=N, input_layout="BNSD", scale=D**-0.5, **common
    )
    out, softmax_max, softmax_sum, softmax_in, seed, offset, numels = forward
    assert softmax_in.numel() == 0
    assert (seed, offset, numels) == (0, 0, 2 * N * tokens * tokens)
    lse = softmax_max[..., 0] + torch.log(softmax_sum[..., 0])
    dy = torch.randn_like(out)
    grads = torch_npu.npu_fusion_attention_grad(
        q, k, v, dy, N, "BNSD",
        softmax_max=lse.unsqueeze(-1).expand(*lse.shape, 8).contiguous(),
        softmax_sum=torch.ones(*lse.shape, 8, device="npu"),
        softmax_in=softmax_in,
        attention_in=out,
        scale_value=D**-0.5,
        seed=seed,
        offset=offset,
        numels=numels,
        **common,
    )  # fmt: skip
    hidden = future(tokens, tokens) & is_causal
    meaning = meant(q, k, v, N, "BNSD", scale=D**-0.5, atten_mask=hidden, sparse_mode=1)
    names = ("out", "softmax_max", "softmax_sum")
    assert_exact(dict(zip(names, forward[:3], strict=True)), meaning)
    assert_exact(dict(zip(("dq", "dk", "dv"), grads[:3], strict=True)) | {"out": out}, meaning, dy)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """What PyTorch's own function becomes on the device: keep-masks turned round and expanded."""
    atten_mask, next_tockens, sparse_mode = None, 2147483647, 0
    if is_causal:
        atten_mask = torch.ones((2048, 2048), device=query.device).triu(1).to(torch.bool)
        next_tockens, sparse_mode = 0, 2
    elif attn_mask is not None:
        size = (query.size(0), 1, query.size(2), key.size(2))
        atten_mask = torch.logical_not(attn_mask).expand(size)
    return torch_npu.npu_fusion_attention(
        query, key, value, query.size(1), "BNSD", None, None, atten_mask,
        query.size(-1) ** -0.5 if scale is None else scale,
        1.0, 2147483647, next_tockens,
        2 if attn_mask is not None and query.size(2) > 1 else 0,
        None, None, None, sparse_mode, True, False,
    )[0]  # fmt: skip


@pytest.mark.parametrize("masked", ["no", "causal", "keys", "scores"])
def test_scaled_dot_product_attention_of_the_device(masked: str) -> None:
    q = leaf(2, N, 20, D, dtype=torch.float16)
    k, v = (leaf(2, N, 28, D, dtype=torch.float16) for _ in range(2))
    dy = torch.randn_like(q)
    keep = None
    hidden = torch.zeros(2, 1, 20, 28, dtype=torch.bool)
    if masked == "keys":
        keep = torch.arange(28, device="npu") < torch.tensor([28, 6]).npu()[:, None, None, None]
    elif masked == "scores":  # some queries keep nothing
        keep = torch.rand(20, 28, device="npu") < 0.3
        keep[4] = keep[19] = False
    if keep is not None:
        hidden |= ~keep.cpu()
    if masked == "causal":
        hidden |= torch.ones(20, 28, dtype=torch.bool).triu(1)
    results = trained(
        lambda *qkv: scaled_dot_product_attention(*qkv, keep, masked == "causal"),
        {"q": q, "k": k, "v": v},
        dy,
    )
    meaning = meant(q, k, v, N, "BNSD", scale=D**-0.5, atten_mask=hidden, sparse_mode=1)
    assert_exact(results, meaning, dy)
