"""flash-attn's documented semantics and the calls they are converted to agree, both ways.

flash-attn runs on GPUs alone, so its formulas are written out here from its documentation: causal
and windows count from the bottom right, rows that see no key are 0, ALiBi is -slope * |i + Skv - Sq
- j| after scaling.
"""

import contextlib
import random
from typing import Any

import cases
import pytest
import torch
from conversions import assert_same, call_of, plain_specs, tensors

from fusion_attention.convert import (
    ConversionError,
    bind,
    causal_mask,
    from_flash_attn,
    from_flash_attn_varlen,
    from_varlen_attn,
    to_flash_attn,
    to_flash_attn_varlen,
    to_varlen_attn,
)

Tensor = torch.Tensor


def flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """flash_attn_func in float64 without dropout."""
    assert dropout_p == 0.0
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    q_len, kv_len = scores.shape[-2:]
    distance = torch.arange(kv_len) - (torch.arange(q_len)[:, None] + kv_len - q_len)
    if alibi_slopes is not None:
        slopes = alibi_slopes.double().view(-1, q.shape[1], 1, 1)
        scores = scores - slopes * distance.abs()
    left, right = window_size
    hidden = torch.zeros(q_len, kv_len, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if causal:
        right = 0
    if right >= 0:
        hidden |= distance > right
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0)
    return (weights @ v).transpose(1, 2)


def flash_attn_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """flash_attn_varlen_func in float64: one call a sequence; rows after the last are 0."""
    parts = []
    starts = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    ends = zip(cu_seqlens_q[1:].tolist(), cu_seqlens_k[1:].tolist(), strict=True)
    for index, ((q0, k0), (q1, k1)) in enumerate(zip(starts, ends, strict=False)):
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[index if len(slopes) > 1 else 0]
        parts.append(
            flash_attn(
                q[None, q0:q1], k[None, k0:k1], v[None, k0:k1], alibi_slopes=slopes, **options
            )[0]
        )
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    rest = len(q) - int(cu_seqlens_q[-1])
    return torch.cat([*parts, torch.zeros(rest, q.shape[1], v.shape[2], dtype=q.dtype)])


def draw_options(rng: random.Random) -> dict[str, Any]:
    """Window, causal and scale as flash-attn takes them."""
    sides = [-1, -1, 0, 1, 3, 30]
    options: dict[str, Any] = {"causal": rng.random() < 0.4}
    if rng.random() < 0.6:
        options["window_size"] = (rng.choice(sides), rng.choice(sides))
    if rng.random() < 0.5:
        options["softmax_scale"] = rng.choice([1.0, 0.3])
    return options


@pytest.mark.parametrize("seed", range(60))
def test_batches(seed: int) -> None:
    rng = random.Random(seed)
    batch, kv_heads, group = rng.randint(1, 3), rng.randint(1, 2), rng.randint(1, 3)
    q_len, kv_len, heads = rng.randint(1, 12), rng.randint(1, 12), kv_heads * group
    q, k, v = tensors(rng, (batch, q_len, heads, 8), (batch, kv_len, kv_heads, 8), 8)
    options = draw_options(rng)
    call = from_flash_attn(q, k, v, **options)
    assert_same(lambda: call.run()[0], lambda: flash_attn(q, k, v, **options), q, k, v)
    assert_same(lambda: call.run()[0], lambda: flash_attn(**to_flash_attn(call)), q, k, v)


@pytest.mark.parametrize("seed", range(60))
def test_packed(seed: int) -> None:
    rng = random.Random(seed)
    kv_heads, group = rng.randint(1, 2), rng.randint(1, 3)
    q_lens = [rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
    kv_lens = [n + rng.choice([0, 0, 2, 5]) for n in q_lens]
    q, k, v = tensors(rng, (sum(q_lens), kv_heads * group, 8), (sum(kv_lens), kv_heads, 8), 8)
    cu = [torch.tensor([0, *x]).cumsum(0).int() for x in (q_lens, kv_lens)]
    longest = max(q_lens), max(kv_lens)
    options = draw_options(rng)
    call = from_flash_attn_varlen(q, k, v, *cu, *longest, **options)
    assert_same(
        lambda: call.run()[0],
        lambda: flash_attn_varlen(q, k, v, *cu, *longest, **options),
        q, k, v,
    )  # fmt: skip
    back = to_flash_attn_varlen(call)
    assert_same(lambda: call.run()[0], lambda: flash_attn_varlen(**back), q, k, v)
    theirs = to_varlen_attn(call)
    again = from_varlen_attn(**theirs)
    assert torch.equal(again.run()[0], call.run()[0])


@pytest.mark.parametrize("per_batch", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_alibi(per_batch: bool, causal: bool) -> None:
    q, k, v = tensors(random.Random(1), (2, 7, 4, 8), (2, 7, 2, 8), 8)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    slopes = torch.stack([slopes, slopes / 2]) if per_batch else slopes
    call = from_flash_attn(q, k, v, alibi_slopes=slopes, causal=causal)
    assert call.arguments["pse_type"] == 2
    assert torch.equal(to_flash_attn(call)["alibi_slopes"], slopes)
    expected = {"alibi_slopes": slopes, "causal": causal}
    assert_same(lambda: call.run()[0], lambda: flash_attn(q, k, v, **expected), q, k, v)
    assert_same(lambda: call.run()[0], lambda: flash_attn(**to_flash_attn(call)), q, k, v)


def test_alibi_counts_from_the_bottom_right_for_other_lengths_too() -> None:
    q, k, v = tensors(random.Random(2), (2, 5, 4, 8), (2, 9, 2, 8), 8)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.3])
    call = from_flash_attn(q, k, v, alibi_slopes=slopes, causal=True)
    expected = {"alibi_slopes": slopes, "causal": True}
    assert_same(lambda: call.run()[0], lambda: flash_attn(q, k, v, **expected), q, k, v)
    half = [x.detach().bfloat16() for x in (q, k, v)]
    from_flash_attn(*half, alibi_slopes=torch.tensor([0.5, 0.25, 0.125, 1.0])).run()
    with pytest.raises(ConversionError, match="rounds some of its elements"):
        from_flash_attn(*half, alibi_slopes=slopes)


def test_lengths_in_tensors() -> None:
    """npu_fusion_attention_v3 has its lengths in tensors, and no dropout_mask."""
    q, k, v = tensors(random.Random(4), (9, 4, 8), (9, 2, 8), 8)
    ends = torch.tensor([4, 9])
    call = bind(
        "npu_fusion_attention_v3", q, k, v, 4, "TND", atten_mask=causal_mask(), sparse_mode=3,
        actual_seq_qlen=ends, actual_seq_kvlen=ends,
    )  # fmt: skip
    theirs = to_flash_attn_varlen(call)
    assert_same(lambda: call.run()[0], lambda: flash_attn_varlen(**theirs), q, k, v)


@pytest.mark.parametrize("delta", [-2, 0, 3])
def test_packed_alibi(delta: int) -> None:
    q_lens = [5, 3, 7]
    kv_lens = [n + delta for n in q_lens]
    q, k, v = tensors(random.Random(3), (sum(q_lens), 4, 8), (sum(kv_lens), 2, 8), 8)
    cu = [torch.tensor([0, *x]).cumsum(0) for x in (q_lens, kv_lens)]
    options = {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])}
    call = from_flash_attn_varlen(q, k, v, *cu, **options)
    longest = max(q_lens), max(kv_lens)
    assert_same(
        lambda: call.run()[0],
        lambda: flash_attn_varlen(q, k, v, *cu, *longest, **options),
        q, k, v,
    )  # fmt: skip
    back = to_flash_attn_varlen(call)
    assert_same(lambda: call.run()[0], lambda: flash_attn_varlen(**back), q, k, v)


@pytest.mark.parametrize("spec", plain_specs(60), ids=lambda spec: str(spec.seed))
def test_a_call_goes_to_flash_attn_or_is_refused(spec: cases.Spec) -> None:
    call = call_of(spec)
    packed = spec.layout == "TND"
    convert, reference = (
        (to_flash_attn_varlen, flash_attn_varlen) if packed else (to_flash_attn, flash_attn)
    )
    dense = spec.mask not in ("none", "compressed")
    other_bias = spec.pse != "none" and spec.pse_type != 2
    if other_bias or spec.value_dim != spec.head_dim + spec.rope_dim or dense:
        with pytest.raises(ConversionError):
            convert(call)
        return
    arguments = None
    with contextlib.suppress(ConversionError):
        arguments = convert(call)
    if arguments is None:
        # These modes are sometimes no window from the bottom right, and slopes may count from
        # another corner.
        assert spec.has_slopes or (spec.sparse_mode in (0, 2, 4, 6, 7, 8) and spec.mask != "none")
        return
    out = call.run()[0]
    expected = reference(**arguments)
    if spec.layout == "BNSD":
        expected = expected.transpose(1, 2)
    elif spec.layout in ("BSH", "SBH"):
        expected = expected.flatten(2)
        expected = expected.transpose(0, 1) if spec.layout == "SBH" else expected
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_unused_sequences_are_no_sequences_of_flash_attn() -> None:
    query = torch.randn(9, 2, 8, dtype=torch.float64)
    slopes = torch.tensor([[0.5, 0.25], [1.0, 2.0], [9.0, 9.0]])
    call = bind(
        "npu_fusion_attention_v2", query, query, query, 2, "TND", pse=slopes, pse_type=2,
        actual_seq_qlen=[4, 9, 0], actual_seq_kvlen=[4, 9, 0],
    )  # fmt: skip
    arguments = to_flash_attn_varlen(call)
    assert arguments["cu_seqlens_q"].tolist() == [0, 4, 9]
    assert torch.equal(arguments["alibi_slopes"], slopes[:2])
    torch.testing.assert_close(call.run()[0], flash_attn_varlen(**arguments), rtol=0, atol=1e-6)


def test_a_causal_mask_from_the_top_left_is_a_window_when_there_are_fewer_keys() -> None:
    query, key = torch.randn(1, 7, 2, 8), torch.randn(1, 4, 2, 8)
    options = {"atten_mask": causal_mask(), "sparse_mode": 2}
    call = bind("npu_fusion_attention", query, key, key, 2, "BSND", **options)
    assert to_flash_attn(call)["window_size"] == (-1, 3)
    call = bind("npu_fusion_attention", key, query, query, 2, "BSND", **options)
    with pytest.raises(ConversionError, match="windows from the bottom right"):
        to_flash_attn(call)


def test_ropes_make_query_wider_than_value() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(9, n, 128).bfloat16() for n in (4, 2, 2))
    ropes = {"query_rope": torch.randn(9, 4, 64), "key_rope": torch.randn(9, 2, 64)}
    ropes = {name: rope.bfloat16() for name, rope in ropes.items()}
    call = bind(
        "npu_fusion_attention_v2", query, key, value, 4, "TND", atten_mask=causal_mask(),
        sparse_mode=3, actual_seq_qlen=[4, 9], actual_seq_kvlen=[4, 9], scale=0.1, **ropes,
    )  # fmt: skip
    with pytest.raises(ConversionError, match="one head dimension"):
        to_flash_attn_varlen(call)


REFUSED: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 30.0},
    "return_attn_probs": {"return_attn_probs": True},
    "dropout_p=1": {"dropout_p": 1.0},
}


@pytest.mark.parametrize("text", REFUSED)
def test_flash_attn_refusals(text: str) -> None:
    q, cu_seqlens = torch.randn(2, 6, 4, 8), torch.tensor([0, 6])
    with pytest.raises(ConversionError, match=text):
        from_flash_attn(q, q, q, **REFUSED[text])
    with pytest.raises(ConversionError, match=text):
        from_flash_attn_varlen(q[0], q[0], q[0], cu_seqlens, cu_seqlens, **REFUSED[text])


def test_packed_refusals() -> None:
    q = torch.randn(6, 4, 8)
    cu, other = torch.tensor([0, 2, 6]), torch.tensor([0, 3, 6])
    tables = torch.zeros(2, 1, dtype=torch.int32)
    for text, arguments in {
        "block_table": (
            q,
            q,
            q,
            cu,
            cu,
            4,
            4,
            0.0,
            None,
            False,
            (-1, -1),
            0.0,
            None,
            False,
            False,
            tables,
        ),
        "begin with 0": (q, q, q, cu[1:], cu[1:]),
        "must be alike": (q, q, q, cu, cu[[0, 2]]),
    }.items():
        with pytest.raises(ConversionError, match=text):
            from_flash_attn_varlen(*arguments)
    with pytest.raises(ConversionError, match="sequence 1 with 4 rows and 3 keys"):
        from_flash_attn_varlen(q, q, q, cu, other, causal=True)
    with pytest.raises(ConversionError, match="Skv - Sq differ"):
        from_flash_attn_varlen(q, q, q, cu, other, alibi_slopes=torch.ones(4))
    with pytest.raises(ConversionError, match="seqused_k"):
        from_varlen_attn(q, q, q, cu, cu, seqused_k=torch.tensor([1, 2]))
    with pytest.raises(ConversionError, match="enable_gqa=True"):
        from_varlen_attn(q, q[:, :2], q[:, :2], cu, cu)


def test_what_varlen_attn_has_not_is_refused() -> None:
    q, ends = torch.randn(6, 4, 8), {"actual_seq_qlen": [2, 6], "actual_seq_kvlen": [2, 6]}
    dropout = bind("npu_fusion_attention", q, q, q, 4, "TND", keep_prob=0.5, **ends)
    assert to_flash_attn_varlen(dropout)["dropout_p"] == 0.5
    with pytest.raises(ConversionError, match="dropout"):
        to_varlen_attn(dropout)
    slopes = {"pse": torch.ones(4), "pse_type": 2}
    with pytest.raises(ConversionError, match="pse"):
        to_varlen_attn(bind("npu_fusion_attention_v2", q, q, q, 4, "TND", **ends, **slopes))
    with pytest.raises(ConversionError, match="layout BSND"):
        to_varlen_attn(bind("npu_fusion_attention", q[None], q[None], q[None], 4, "BSND"))
    with pytest.raises(ConversionError, match="layout TND"):
        to_flash_attn(dropout)
