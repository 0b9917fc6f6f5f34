"""scaled_dot_product_attention and the call that it is converted to compute the same, both ways."""

import random
from typing import Any

import cases
import pytest
import torch
from conversions import assert_same, call_of, plain_specs, tensors
from oracle import Geometry
from torch.nn.functional import scaled_dot_product_attention

from fusion_attention.convert import Call, ConversionError, bind, causal_mask, from_sdpa, to_sdpa


def draw_mask(rng: random.Random, shape: tuple[int, ...]) -> torch.Tensor | None:
    """None, or a boolean or additive mask of some shape that broadcasts to `shape`."""
    kind = rng.choice(["none", "bool", "bias", "bias and -inf", "finfo.min"])
    if kind == "none":
        return None
    axes = list(shape[rng.choice([0, 0, 1, 2]) :])
    for axis in range(len(axes) - 1):
        if rng.random() < 0.4:
            axes[axis] = 1
    kept = torch.rand(axes) < rng.choice([0.2, 0.8])
    if kind == "bool":
        return kept
    if kind == "finfo.min":
        kept[..., 0] |= ~kept.any(-1)  # rows of nothing else are refused
        return torch.zeros(axes, dtype=torch.float64).masked_fill(
            ~kept, torch.finfo(torch.float64).min
        )
    bias = torch.randn(axes, dtype=torch.float64)
    if kind == "bias and -inf":
        bias = bias.masked_fill(~kept, -torch.inf)
    return bias.requires_grad_()


@pytest.mark.parametrize("seed", range(80))
def test_from_sdpa(seed: int) -> None:
    rng = random.Random(seed)
    batch, kv_heads, group = rng.randint(1, 3), rng.randint(1, 2), rng.randint(1, 3)
    q_len, kv_len, head_dim = rng.randint(1, 12), rng.randint(1, 12), rng.choice([4, 8])
    heads = kv_heads * group
    query, key, value = tensors(
        rng,
        (batch, heads, q_len, head_dim),
        (batch, kv_heads, kv_len, head_dim),
        rng.choice([head_dim, head_dim // 2]),
    )
    options: dict[str, Any] = {"is_causal": rng.random() < 0.3, "enable_gqa": True}
    if not options["is_causal"]:
        options["attn_mask"] = draw_mask(rng, (batch, heads, q_len, kv_len))
    if rng.random() < 0.5:
        options["scale"] = rng.choice([1.0, 0.3])
    mask = options.get("attn_mask")
    inputs = [query, key, value] + ([mask] if mask is not None and mask.requires_grad else [])
    assert_same(
        lambda: from_sdpa(query, key, value, **options).run()[0],
        lambda: scaled_dot_product_attention(query, key, value, **options),
        *inputs,
    )


@pytest.mark.parametrize("spec", plain_specs(50), ids=lambda spec: str(spec.seed))
def test_to_sdpa(spec: cases.Spec) -> None:
    call = call_of(spec)
    names = ("query", "key", "value", "pse", "query_rope", "key_rope")
    inputs = [call.arguments[n] for n in names if call.arguments.get(n) is not None]
    for tensor in inputs:
        tensor.requires_grad_()
    geometry = Geometry.of(call.arguments)
    assert_same(
        lambda: geometry.heads_first(call.run()[0], geometry.heads),
        lambda: scaled_dot_product_attention(**to_sdpa(call)),
        *inputs,
    )


def test_one_mask_of_each_kind_names_its_mode() -> None:
    query = torch.randn(2, 4, 6, 8)
    square = torch.ones(6, 6, dtype=torch.bool)
    modes = {
        0: None,
        1: torch.rand(2, 1, 6, 6) < 0.5,
        2: square.tril(),
        4: square.tril(1).triu(-2),
        6: square.tril() | (torch.arange(6) < 3),
    }
    for mode, mask in modes.items():
        assert from_sdpa(query, query, query, mask).arguments["sparse_mode"] == mode
    causal = from_sdpa(query, query, query, is_causal=True)
    assert causal.arguments["sparse_mode"] == 2
    assert to_sdpa(causal)["is_causal"]


def test_padding_masks_are_expanded_without_memory() -> None:
    query = torch.randn(2, 4, 6, 8)
    call = from_sdpa(
        query, query, query, torch.tensor([[True] * 4 + [False] * 2] * 2)[:, None, None]
    )
    mask = call.arguments["atten_mask"]
    assert mask.shape == (1, 1, 6, 6) or mask.shape == (2, 1, 6, 6)
    assert mask.stride(2) == 0


def test_rows_that_see_no_key_are_zero_on_both_sides() -> None:
    query = torch.randn(1, 1, 3, 8)
    mask = torch.tensor([[False] * 3, [True] * 3, [True, False, True]])
    ours = from_sdpa(query, query, query, mask).run()[0]
    assert not ours[0, 0, 0].any()
    assert not scaled_dot_product_attention(query, query, query, mask)[0, 0, 0].any()


def test_dropout_keeps_its_probability() -> None:
    query = torch.randn(1, 2, 64, 8)
    call = from_sdpa(query, query, query, dropout_p=0.25)
    assert call.arguments["keep_prob"] == 0.75
    assert to_sdpa(call)["dropout_p"] == 0.25


def test_probabilities_can_be_read() -> None:
    query = torch.randn(1, 2, 6, 8)
    for p in (0.1, 0.2, 0.3):
        call = from_sdpa(query, query, query, dropout_p=p)
        assert str(call.arguments["keep_prob"]) == f"0.{10 - round(10 * p)}"
        assert to_sdpa(call)["dropout_p"] == p


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_bias_is_scaled_without_rounding(dtype: torch.dtype) -> None:
    """ALiBi of 300 tokens: rounded to bfloat16, biases of 60 are off by up to 0.25."""
    query = torch.randn(1, 2, 300, 16).to(dtype)
    bias = (-(torch.arange(300) - torch.arange(300)[:, None]).abs() * 0.25).to(dtype)
    pse = bias.expand(1, 2, 300, 300)
    call = bind("npu_fusion_attention", query, query, query, 2, "BNSD", pse=pse, scale=0.83)
    arguments = to_sdpa(call)
    assert torch.equal(arguments["attn_mask"], pse.float() * 0.83)
    actual = scaled_dot_product_attention(**arguments).double()
    double = {name: arguments[name].double() for name in ("query", "key", "value")}
    exact = scaled_dot_product_attention(**double, attn_mask=pse.double() * 0.83, scale=0.83)
    # Results and weights are rounded to the dtype; both are at most the largest value.
    bound = 2 * torch.finfo(dtype).eps * query.abs().max().item()
    assert (call.run()[0].double() - exact).abs().max() < bound
    assert (actual - exact).abs().max() < bound


FLOOR = torch.finfo(torch.float32).min
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "all finfo.min": ("finfo.min for all keys", {"attn_mask": torch.full((6, 6), FLOOR)}),
    "dropout of everything": ("dropout_p=1", {"dropout_p": 1.0}),
    "both": ("either attn_mask or is_causal", {"attn_mask": torch.ones(6, 6), "is_causal": True}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_from_sdpa_refuses(case: str) -> None:
    text, options = REFUSED[case]
    query = torch.randn(1, 2, 6, 8)
    with pytest.raises(ConversionError, match=text):
        from_sdpa(query, query, query, **options)


def test_from_sdpa_refuses_shapes_and_dtypes_it_cannot_keep() -> None:
    query, half = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8).half()
    with pytest.raises(ConversionError, match="unsqueeze"):
        from_sdpa(query[0], query[0], query[0])
    with pytest.raises(ConversionError, match="enable_gqa=True"):
        from_sdpa(torch.randn(1, 4, 6, 8), query, query)
    with pytest.raises(ConversionError, match="Pad query and key"):
        from_sdpa(query, query, torch.randn(1, 2, 6, 9))
    with pytest.raises(ConversionError, match="rounds some of its elements"):
        from_sdpa(half, half, half, torch.full((6, 6), 0.1))
    assert from_sdpa(half, half, half, torch.full((6, 6), 0.5)).arguments["pse"].dtype == half.dtype


def test_to_sdpa_refuses_what_sdpa_has_not() -> None:
    query = torch.randn(1, 2, 6, 8)
    sink = bind("npu_fusion_attention", query, query, query, 2, "BNSD", sink=torch.zeros(2))
    with pytest.raises(ConversionError, match="sink"):
        to_sdpa(sink)
    long, rows = torch.randn(1, 2, 1100, 8), torch.randn(1, 2, 1024, 1100)
    alibi = bind(
        "npu_fusion_attention", long, long, long, 2, "BNSD", pse=rows,
        atten_mask=causal_mask(), sparse_mode=2,
    )  # fmt: skip
    with pytest.raises(ConversionError, match="last 1024 rows"):
        to_sdpa(alibi)
    with pytest.raises(ConversionError, match="npu_fusion_attention_grad"):
        to_sdpa(Call("npu_fusion_attention_grad", {}))


@pytest.mark.parametrize("pse_type", [2, 3])
def test_slopes_go_to_sdpa(pse_type: int) -> None:
    query = torch.randn(1, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    call = bind(
        "npu_fusion_attention_v2", query, query, query, 2, "BNSD", scale=0.3,
        pse=torch.tensor([0.5, 0.25]), pse_type=pse_type, q_start_idx=[3], kv_start_idx=[1],
    )  # fmt: skip
    expected = scaled_dot_product_attention(**to_sdpa(call))
    # Slopes times distances are float32 numbers on both sides.
    torch.testing.assert_close(call.run()[0], expected, rtol=0, atol=1e-6)
