"""Models of images and video as MindSpeed-MM and its relatives train them.

Many layouts, views of larger tensors, cumulative lists as they come, and masks that are left out.
"""

import math
from typing import Any

import pytest
import torch
import torch_npu
from checking import assert_exact, causal_mask, future, leaf, meant, trained
from torch import Tensor

N, D = 4, 16


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: str,
    causal: bool,
    **kwargs: Any,
) -> Tensor:
    """Any layout; "1TND" and "1NTD" are packed tokens behind a batch axis of one."""
    transposed = layout == "1NTD"
    if layout in ("1TND", "1NTD"):
        query, key, value = (x.squeeze(0) for x in (query, key, value))
        if transposed:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    packed = "T" in layout
    head_num = query.shape[{"BNSD": 1, "BSND": 2}.get(layout, 1)]
    attention_mask = None
    if causal:
        attention_mask = torch.triu(
            torch.ones([2048, 2048], dtype=torch.bool, device=query.device), diagonal=1
        )
    output = torch_npu.npu_fusion_attention(
        query,
        key,
        value,
        head_num,
        "TND" if packed else layout,
        atten_mask=attention_mask,
        scale=1.0 / math.sqrt(query.shape[-1]),
        sparse_mode=3 if causal else 0,
        **kwargs,
    )[0]
    if transposed:
        output = output.transpose(0, 1)
    return output.unsqueeze(0) if packed else output


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_dense_layouts(layout: str, causal: bool) -> None:
    def shape(tokens: int) -> tuple[int, ...]:
        return (2, N, tokens, D) if layout == "BNSD" else (2, tokens, N, D)

    sizes = {"q": 30, "k": 41, "v": 41}
    inputs = {name: leaf(*shape(n), dtype=torch.bfloat16) for name, n in sizes.items()}
    dy = torch.randn_like(inputs["q"])
    results = trained(
        lambda *qkv: flash_attention(*qkv, layout, causal, keep_prob=1), inputs, dy
    )  # fmt: skip
    hidden = future(30, 41) if causal else torch.zeros(30, 41, dtype=torch.bool)
    meaning = meant(
        *inputs.values(), N, layout, scale=D**-0.5, atten_mask=hidden, sparse_mode=1
    )  # fmt: skip
    assert_exact(results, meaning, dy)


# Lists as cumsum gives them with a 0 in front, without it, and as tuples.
@pytest.mark.parametrize("form", ["leading zero", "ends", "tuple"])
@pytest.mark.parametrize("layout", ["1TND", "1NTD"])
def test_packed_views(layout: str, form: str) -> None:
    lengths, tokens = [7, 1, 25], 33
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    lists: list[int] | tuple[int, ...] = cu_seqlens.tolist()
    if form != "leading zero":
        lists = cu_seqlens[1:].tolist()
    if form == "tuple":
        lists = tuple(lists)
    by_token = layout == "1TND"
    shape = (1, tokens, N, D) if by_token else (1, N, tokens, D)
    inputs = {name: leaf(*shape, dtype=torch.bfloat16) for name in "qkv"}
    dy = torch.randn_like(inputs["q"])
    results = trained(
        lambda *qkv: flash_attention(
            *qkv, layout, causal=True, actual_seq_qlen=lists, actual_seq_kvlen=lists
        ),
        inputs,
        dy,
    )
    document = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    hidden = (document[:, None] != document) | future(tokens, tokens)
    dense = "BSND" if by_token else "BNSD"
    meaning = meant(
        *inputs.values(), N, dense, scale=D**-0.5, atten_mask=hidden, sparse_mode=1
    )  # fmt: skip
    assert_exact(results, meaning, dy)


# A model that asks for causality but passes no mask gets full attention on the device, so here.
@pytest.mark.parametrize("sparse_mode", [2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_causal_mode_without_a_mask_sees_everything(sparse_mode: int, packed: bool) -> None:
    options: dict[str, Any] = {"scale": D**-0.5}
    if packed:
        layout, shape, ends = "TND", (20, N, D), (8, 20)
        options |= {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
    else:
        layout, shape = "BSND", (2, 20, N, D)
    q, k, v = (leaf(*shape, dtype=torch.bfloat16) for _ in range(3))
    dy = torch.randn_like(q)

    def attend(*qkv: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(
            *qkv, head_num=N, input_layout=layout, sparse_mode=sparse_mode, **options
        )[0]

    results = trained(attend, {"q": q, "k": k, "v": v}, dy)
    assert_exact(results, meant(q, k, v, N, layout, **options), dy)


@pytest.mark.parametrize("lens", [[], None])
def test_video_model_in_single_precision(lens: list[int] | None) -> None:
    """float32 in, empty lists for "no packed sequences", windows as large as they get."""
    q, k, v = leaf(1, N, 61, D), leaf(1, N, 18, D), leaf(1, N, 18, D)
    dy = torch.randn_like(q)

    def attend(*qkv: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(
            *qkv,
            N,
            input_layout="BNSD",
            pse=None,
            atten_mask=None,
            scale=1.0 / math.sqrt(D),
            pre_tockens=2147483647,
            next_tockens=2147483647,
            keep_prob=1.0,
            sparse_mode=0,
            actual_seq_qlen=lens,
            actual_seq_kvlen=lens,
        )[0]

    results = trained(attend, {"q": q, "k": k, "v": v}, dy)
    assert_exact(results, meant(q, k, v, N, "BNSD", scale=D**-0.5), dy)


def test_chunked_keys_are_merged() -> None:
    """Long video: five positional arguments, keys in chunks, merged by max and sum."""
    q, k, v = (leaf(2, 40, N, D).detach() for _ in range(3))
    dy = torch.randn_like(q)
    chunks = list(zip(k.chunk(4, dim=1), v.chunk(4, dim=1), strict=True))

    def by_row(statistic: Tensor) -> Tensor:  # [b, n, s, 8] -> [b, s, n, 1]
        return statistic[..., :1].transpose(1, 2)

    out = total_max = total_sum = None
    for key, value in chunks:
        part, part_max, part_sum = torch_npu.npu_fusion_attention(
            q, key, value, N, "BSND", scale=D**-0.5
        )[:3]
        if out is None:
            out, total_max, total_sum = part, part_max, part_sum
            continue
        new_max = torch.maximum(total_max, part_max)
        old, new = (
            s * torch.exp(m - new_max) for m, s in ((total_max, total_sum), (part_max, part_sum))
        )
        total_max, total_sum = new_max, old + new
        out = out * by_row(old / total_sum) + part * by_row(new / total_sum)
    results = {"out": out, "softmax_max": total_max, "dq": torch.zeros_like(q)}
    grads = []
    for key, value in chunks:
        dq, dk, dv, *_ = torch_npu.npu_fusion_attention_grad(
            q, key, value, dy, N, "BSND", softmax_max=total_max, softmax_sum=total_sum,
            attention_in=out, scale_value=D**-0.5,
        )  # fmt: skip
        results["dq"] += dq
        grads.append((dk, dv))
    results["dk"], results["dv"] = (torch.cat(x, dim=1) for x in zip(*grads, strict=True))
    assert_exact(results, meant(q, k, v, N, "BSND", scale=D**-0.5), dy, parts=2 * len(chunks))


def test_a_view_of_a_fused_projection() -> None:
    """query, key and value as strided thirds of one tensor, [tokens, 3, heads, channels]."""
    qkv = leaf(33, 3, N, D, dtype=torch.bfloat16)
    q, k, v = qkv.unbind(1)
    ends = [12, 33]
    mask = causal_mask()
    out = torch_npu.npu_fusion_attention(
        q, k, v, N, "TND", atten_mask=mask, scale=D**-0.5, sparse_mode=2,
        actual_seq_qlen=ends, actual_seq_kvlen=ends,
    )[0]  # fmt: skip
    dy = torch.randn_like(out)
    out.backward(dy)
    grads = dict(zip(("dq", "dk", "dv"), qkv.grad.unbind(1), strict=True))
    meaning = meant(
        q, k, v, N, "TND", scale=D**-0.5, atten_mask=mask, sparse_mode=3,
        actual_seq_qlen=ends, actual_seq_kvlen=ends,
    )  # fmt: skip
    assert_exact({"out": out, **grads}, meaning, dy)
