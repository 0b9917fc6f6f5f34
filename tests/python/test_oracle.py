"""The oracle itself, against autograd, torch's attention, the page's pictures, known bits."""

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from oracle.bias import stored_elements
from oracle.dropout import dropped_below
from torch.nn import functional

CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _bnsd(
    batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, dim: int, v_dim: int
) -> dict:
    return {
        "query": _random(batch, heads, q_len, dim, seed=1),
        "key": _random(batch, kv_heads, kv_len, dim, seed=2),
        "value": _random(batch, kv_heads, kv_len, v_dim, seed=3),
        "head_num": heads,
        "input_layout": "BNSD",
        "scale": 1 / math.sqrt(dim),
    }


@pytest.mark.parametrize(
    ("seed", "offset", "words"),
    [
        (2, 0, "6cea1ec5 7f4dbfff f99450e5 664593ce 12e48da7 3b20d6d5 f6b9713a 7ec43907"),
        (2, 12, "4548d952 366038b0 5a3e6dd1 0695755c 506d6f7e ee2d9504 00ea171d 80554f6c"),
    ],
)
def test_philox_words(seed: int, offset: int, words: str) -> None:
    assert [f"{word:08x}" for word in oracle.philox_words(seed, offset, 8)] == words.split()


@pytest.mark.parametrize(
    ("seed", "offset", "dtype", "expected"),
    [
        (2, 0, torch.float16, "ffefffffffdfffbbffdbfdffffffbfff"),
        (2, 0, torch.bfloat16, "7f7fbf9dddfeeb7bffff67ffffffffff"),
        (2, 0, torch.float32, "fffbfb7fffffff93edff79eefefcffff"),
        (2, 12, torch.float16, "ffffefffffffff3ef7feffeffffeff7b"),
        (2, 12, torch.bfloat16, "dfffffd7fdef9fbf5fbe7ffffffff67f"),
        (2, 12, torch.float32, "ff7ddef7fefdffffffbbffffefffeff7"),
        (0x123456789, 0, torch.float16, "ffe7ff7ffdfffecffbdfefbfffffffbf"),
        (0x123456789, 0, torch.bfloat16, "ffefffeffb7dffffffffbffdfffffddf"),
        (0x123456789, 0, torch.float32, "fffdffffdebafeffefefdffffffff3fb"),
    ],
)
def test_dropout_bits(seed: int, offset: int, dtype: torch.dtype, expected: str) -> None:
    bits = oracle.keep_mask(seed, offset, 128, 0.9, dtype)
    packed = sum(int(bit) << k for k, bit in enumerate(bits))
    assert packed.to_bytes(16, "little").hex() == expected


@pytest.mark.parametrize(
    ("keep_prob", "half", "bfloat", "single"),
    [
        (0.9, 103, 13, 838861),
        (0.8, 205, 26, 1677722),
        (0.75, 256, 32, 2097152),
        (0.5, 512, 64, 4194304),
        (0.999, 2, 1, 8389),
    ],
)
def test_drop_rates(keep_prob: float, half: int, bfloat: int, single: int) -> None:
    assert dropped_below(keep_prob, torch.float16) == half
    assert dropped_below(keep_prob, torch.bfloat16) == bfloat
    assert dropped_below(keep_prob, torch.float32) == single


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("mode", ["full", "causal", "mask", "bias"])
def test_agrees_with_scaled_dot_product_attention(heads: int, kv_heads: int, mode: str) -> None:
    call = _bnsd(2, heads, kv_heads, 9, 9 if mode == "causal" else 13, 8, 5)
    mask = None
    if mode == "causal":
        call |= {"sparse_mode": 2, "atten_mask": CAUSAL}
        mask = ~CAUSAL[:9, :9]
    elif mode == "mask":
        drops = _random(2, heads, 9, 13, seed=5) > 0.5
        drops[..., 0] = False
        call |= {"sparse_mode": 1, "atten_mask": drops}
        mask = ~drops
    elif mode == "bias":
        call["pse"] = _random(2, heads, 9, 13, seed=6)
        mask = call["pse"] * call["scale"]
    leaves = [call[name].clone().requires_grad_() for name in ("query", "key", "value")]
    expected = functional.scaled_dot_product_attention(*leaves, attn_mask=mask, enable_gqa=True)
    dy = _random(*expected.shape, seed=7)
    result = oracle.attention(call, dy)
    torch.testing.assert_close(result.out.value, expected.detach(), rtol=1e-12, atol=1e-13)
    gradients = torch.autograd.grad(expected, leaves, dy)
    for actual, gradient in zip((result.dq, result.dk, result.dv), gradients, strict=True):
        torch.testing.assert_close(actual.value, gradient, rtol=1e-11, atol=1e-12)


def _traced(call: dict, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    """The formula once more, for autograd: BNSD, one score matrix, plain softmax."""
    geometry = oracle.Geometry.of(call)
    group = geometry.group
    key, value = (leaves[name].repeat_interleave(group, 1) for name in ("key", "value"))
    scores = leaves["query"] @ key.mT
    pse_type, scale = call.get("pse_type", 1), call["scale"]
    if pse_type == 1:
        scores = (scores + leaves.get("pse", 0.0)) * scale
    elif pse_type == 0:
        scores = scores * scale + leaves["pse"]
    else:
        position = torch.arange(scores.shape[-1])
        distance = position + call["kv_start_idx"][0] - position[:, None] - call["q_start_idx"][0]
        distance = distance.abs() if pse_type == 2 else distance.abs().double().sqrt()
        scores = scores * scale - leaves["pse"].double()[..., None, None] * distance
    seen = torch.stack([oracle.visible_keys(call, geometry, seq) for seq in geometry.sequences])
    scores = scores.masked_fill(~seen, -torch.inf)
    if "sink" in leaves:
        column = leaves["sink"].double()[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    keep_prob = call.get("keep_prob", 1.0)
    if keep_prob < 1:
        bits = oracle.keep_mask(
            call["seed"], call["offset"], geometry.numels, keep_prob, torch.float64
        )
        factor = (1 / torch.tensor(keep_prob)).double()
        weights = weights * bits.reshape(weights.shape) * factor
    return weights @ value


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("pse_batch", [1, 2])
@pytest.mark.parametrize("keep_prob", [1.0, 0.6])
@pytest.mark.parametrize("mode", [0, 3, 4, 6])
def test_gradients_agree_with_autograd(
    mode: int, keep_prob: float, pse_batch: int, rows: int
) -> None:
    call = _bnsd(2, 4, 2, 7, 11, 5, 3)
    call |= {
        "pse": _random(pse_batch, 4, rows, 11, seed=11),
        "sink": _random(4, seed=12).float(),
        "keep_prob": keep_prob,
        "seed": 99,
        "offset": 8,
        "sparse_mode": mode,
        "atten_mask": torch.zeros(7, 11, dtype=torch.bool) if mode == 0 else CAUSAL,
        "pre_tockens": 5,
        "next_tockens": 1,
        "prefix": [4, 7],
    }
    names = ("query", "key", "value", "pse", "sink")
    leaves = {name: call[name].clone().requires_grad_() for name in names}
    expected = _traced(call, leaves)
    dy = _random(*expected.shape, seed=13)
    result = oracle.attention(call, dy)
    torch.testing.assert_close(result.out.value, expected.detach(), rtol=1e-12, atol=1e-13)
    gradients = torch.autograd.grad(expected, list(leaves.values()), dy)
    results = (result.dq, result.dk, result.dv, result.dpse, result.dsink)
    for actual, gradient in zip(results, gradients, strict=True):
        tolerance = 1e-6 if gradient.dtype == torch.float32 else 1e-11
        torch.testing.assert_close(actual.value, gradient.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("pse_type", [0, 2, 3])
def test_gradients_of_other_biases_agree_with_autograd(pse_type: int, per_sequence: bool) -> None:
    call = _bnsd(2, 4, 2, 9, 9, 5, 3)
    shape = (2, 4) if per_sequence else (4,)
    bias_shape = (2, 4, 9, 9) if per_sequence else (1, 4, 1, 9)
    slopes = pse_type != 0
    pse = _random(*(shape if slopes else bias_shape), seed=11)
    call |= {
        "pse": pse.float() if slopes else pse,
        "pse_type": pse_type,
        "q_start_idx": [7],
        "kv_start_idx": [4],
        "sink": _random(4, seed=12).float(),
        "sparse_mode": 2,
        "atten_mask": CAUSAL,
    }
    leaves = {
        name: call[name].clone().requires_grad_() for name in ("query", "key", "value", "pse")
    }
    expected = _traced(call, leaves | {"sink": call["sink"]})
    dy = _random(*expected.shape, seed=13)
    result = oracle.attention(call, dy)
    torch.testing.assert_close(result.out.value, expected.detach(), rtol=1e-12, atol=1e-13)
    gradients = torch.autograd.grad(expected, list(leaves.values()), dy)
    for actual, gradient in zip(
        (result.dq, result.dk, result.dv, result.dpse), gradients, strict=True
    ):
        tolerance = 1e-6 if gradient.dtype == torch.float32 else 1e-11
        torch.testing.assert_close(actual.value, gradient.double(), rtol=tolerance, atol=tolerance)


def test_start_indices_move_the_line_without_distance() -> None:
    call = _bnsd(1, 2, 1, 5, 5, 4, 4)
    call |= {"pse": torch.tensor([1.0, 0.5]), "pse_type": 2, "q_start_idx": [2, 9]}
    unmoved = oracle.attention(call)  # both or none
    call["kv_start_idx"] = [4, 9]
    moved = oracle.attention(call)
    distance = (torch.arange(5) + 2 - torch.arange(5)[:, None]).abs()
    bias = -call["pse"].double()[None, :, None, None] * distance
    expected = oracle.attention({**call, "pse": bias, "pse_type": 0})
    assert torch.equal(moved.out.value, expected.out.value)
    del call["q_start_idx"], call["kv_start_idx"]
    assert torch.equal(unmoved.out.value, oracle.attention(call).out.value)
    assert not torch.allclose(unmoved.out.value, moved.out.value)


def test_ropes_are_more_channels_of_the_scores() -> None:
    call = _packed([3, 8], [5, 9], atten_mask=CAUSAL, sparse_mode=2)
    ropes = {"query_rope": _random(8, 1, 3, seed=5), "key_rope": _random(9, 1, 3, seed=6)}
    wide = {name: torch.cat([call[name], ropes[f"{name}_rope"]], -1) for name in ("query", "key")}
    dy = _random(8, 1, 4, seed=7)
    split, whole = oracle.attention(call | ropes, dy), oracle.attention(call | wide, dy)
    torch.testing.assert_close(split.out.value, whole.out.value)
    for part, rope, both in (("dq", "dq_rope", "dq"), ("dk", "dk_rope", "dk")):
        joined = torch.cat([getattr(split, part).value, getattr(split, rope).value], -1)
        torch.testing.assert_close(joined, getattr(whole, both).value)


def _packed(q_ends: list[int], kv_ends: list[int], **more: object) -> dict:
    return {
        "query": _random(q_ends[-1], 1, 4, seed=1),
        "key": _random(kv_ends[-1], 1, 4, seed=2),
        "value": _random(kv_ends[-1], 1, 4, seed=3),
        "head_num": 1,
        "input_layout": "TND",
        "actual_seq_qlen": q_ends,
        "actual_seq_kvlen": kv_ends,
        "atten_mask": CAUSAL,
    } | more


def _keys_seen(call: dict) -> list[list[int]]:
    """Number of visible keys of each row (all of them leading ones), per sequence."""
    geometry = oracle.Geometry.of(call)
    counts = []
    for seq in geometry.sequences:
        seen = oracle.visible_keys(call, geometry, seq)[0]
        counts.append(seen.sum(-1).tolist())
        leading = torch.arange(seq.kv_len)[None] < seen.sum(-1, keepdim=True)
        assert torch.equal(seen, leading)
    return counts


def test_mode_7_as_the_page_draws_it() -> None:
    card1 = _packed([3, 5], [3, 9], sparse_mode=7, pre_tockens=6, next_tockens=-2)
    assert _keys_seen(card1) == [[1, 2, 3], [3, 4]]
    card2 = _packed([2, 7, 11], [6, 11, 15], sparse_mode=3)
    assert _keys_seen(card2) == [[5, 6], [1, 2, 3, 4, 5], [1, 2, 3, 4]]


def test_mode_8_as_the_page_draws_it() -> None:
    card1 = _packed([3, 5], [3, 7], sparse_mode=2)
    assert _keys_seen(card1) == [[1, 2, 3], [1, 2]]
    card2 = _packed([3, 8, 12], [4, 9, 13], sparse_mode=8, pre_tockens=4, next_tockens=1)
    assert _keys_seen(card2) == [[3, 4, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("mode", "q_ends", "counts"),
    [
        (7, [2, 4, 4], [[2, 3], [2, 3], []]),
        (8, [0, 2, 4], [[], [2, 3], [1, 2]]),
    ],
)
def test_band_sequence_skips_those_without_queries(
    mode: int, q_ends: list[int], counts: list[list[int]]
) -> None:
    call = _packed(q_ends, [3, 7, 11], sparse_mode=mode, pre_tockens=4, next_tockens=-1)
    assert _keys_seen(call) == counts


def test_compressed_bias_reads_its_own_diagonal() -> None:
    length, slope = 2500, 0.25
    full = -slope * (torch.arange(length)[:, None] - torch.arange(length)[None, :]).double()
    call = {
        "query": _random(1, 1, length, 1, seed=1),
        "key": _random(1, 1, length, 1, seed=2),
        "value": _random(1, 1, length, 1, seed=3),
        "head_num": 1,
        "input_layout": "BNSD",
        "atten_mask": CAUSAL,
        "sparse_mode": 2,
        "pse": full[None, None, -1024:],
    }
    geometry = oracle.Geometry.of(call)
    rows, keys, batch = stored_elements(call["pse"], geometry, geometry.sequences[0])
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    assert torch.equal(call["pse"][batch, 0][rows, keys][seen], full[seen])


def test_statistics_order() -> None:
    call = _packed([2, 5], [2, 5], sparse_mode=2) | {"head_num": 2}
    for name in ("query", "key", "value"):
        call[name] = call[name].expand(-1, 2, -1)
    geometry = oracle.Geometry.of(call)
    rows = torch.tensor([[[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]]).double()
    per_sequence = geometry.statistics(rows, "")
    assert per_sequence.shape == (5, 2, 8)
    assert per_sequence[..., 0].flatten().tolist() == [0, 1, 10, 11, 2, 3, 4, 12, 13, 14]
    natural = geometry.statistics(rows, "TND")
    assert natural[..., 7].tolist() == [[0, 10], [1, 11], [2, 12], [3, 13], [4, 14]]


@pytest.mark.parametrize("layout", ["BSH", "SBH", "BNSD", "BSND"])
def test_layouts_are_one_another(layout: str) -> None:
    call = _bnsd(2, 4, 2, 3, 5, 6, 4)
    dy = _random(2, 4, 3, 4, seed=4)
    expected = oracle.attention(call, dy)
    to_layout: Callable[[torch.Tensor], torch.Tensor] = oracle.Geometry(
        layout, 4, 2, 6, 4, 3, 5, 2, ()
    ).as_layout
    other = call | {"input_layout": layout}
    for name in ("query", "key", "value"):
        other[name] = to_layout(call[name])
    actual = oracle.attention(other, to_layout(dy))
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(getattr(actual, name).value, to_layout(getattr(expected, name).value))
    assert torch.equal(actual.softmax_sum.value, expected.softmax_sum.value)


def test_rows_without_keys() -> None:
    call = _bnsd(1, 2, 2, 5, 3, 4, 4) | {"sparse_mode": 3, "atten_mask": CAUSAL}
    result = oracle.attention(call, _random(1, 2, 5, 4, seed=4))
    assert torch.all(result.out.value[:, :, :2] == 0)
    assert torch.all(result.dq.value[:, :, :2] == 0)
    assert torch.all(result.softmax_max.value[:, :, :2] == -oracle.FLT_MAX)
    assert torch.all(result.softmax_sum.value[:, :, :2] == oracle.FLT_MAX)
    drops = torch.zeros(5, 3, dtype=torch.bool)
    drops[1] = True
    call |= {"sparse_mode": 1, "atten_mask": drops}
    result = oracle.attention(call)
    assert torch.all(result.softmax_sum.value[:, :, 1] == 3)
    call["sink"] = torch.tensor([0.5, -1.0])
    result = oracle.attention(call)
    assert result.softmax_max.value[0, :, 1, 0].tolist() == [0.5, -1.0]
    assert torch.all(result.softmax_sum.value[:, :, 1] == 1)
