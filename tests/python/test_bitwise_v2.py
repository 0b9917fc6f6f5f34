"""Laws to the last bit of what only npu_fusion_attention_v2 has: slopes, start indices, ropes."""

from typing import Any

import pytest
import torch
from calls import Results, assert_same_bits, forward_and_backward
from case_tensors import compressed_mask
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEADS, KV_HEADS, DIM, V_DIM = 6, 2, 40, 24


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _bnsd(tokens: int, dtype: torch.dtype, batch: int = 2) -> tuple[dict[str, Any], Tensor]:
    """A BNSD call of as many keys as rows, with sink and dropout; a gradient of its result."""
    call = {
        "query": _random(batch, HEADS, tokens, DIM, dtype=dtype, seed=1),
        "key": _random(batch, KV_HEADS, tokens, DIM, dtype=dtype, seed=2),
        "value": _random(batch, KV_HEADS, tokens, V_DIM, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "BNSD",
        "sink": _random(HEADS, seed=5),
        "scale": 0.2,
        "keep_prob": 0.8,
        "seed": 31,
        "offset": 4,
    }
    return call, _random(batch, HEADS, tokens, V_DIM, dtype=dtype, seed=6)


def _slopes(*shape: int) -> dict[str, Any]:
    return {"pse": _random(*shape, seed=7) * 0.1, "q_start_idx": [9], "kv_start_idx": [2]}


LENGTHS = [(5, 9), (64, 64), (1, 130), (97, 101), (48, 49)]


def _packed(dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """A packed causal call without dropout, and a gradient of its result."""
    q_tokens, kv_tokens = (sum(pair[side] for pair in LENGTHS) for side in (0, 1))
    call = {
        "query": _random(q_tokens, HEADS, DIM, dtype=dtype, seed=1),
        "key": _random(kv_tokens, KV_HEADS, DIM, dtype=dtype, seed=2),
        "value": _random(kv_tokens, KV_HEADS, V_DIM, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "TND",
        "scale": 0.2,
        "softmax_layout": "TND",
        "sparse_mode": 3,
        "atten_mask": compressed_mask(3),
        "actual_seq_qlen": [sum(q for q, _ in LENGTHS[: i + 1]) for i in range(len(LENGTHS))],
        "actual_seq_kvlen": [sum(k for _, k in LENGTHS[: i + 1]) for i in range(len(LENGTHS))],
    }
    return call, _random(q_tokens, HEADS, V_DIM, dtype=dtype, seed=6)


def _ropes(call: dict[str, Any], rope_dim: int) -> dict[str, Tensor]:
    return {
        f"{name}_rope": _random(*call[name].shape[:-1], rope_dim, dtype=call[name].dtype, seed=seed)
        for name, seed in (("query", 11), ("key", 12))
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pse_type", [2, 3])
@pytest.mark.parametrize("tokens", [1, 49, 130])
def test_slopes_in_any_layout(tokens: int, pse_type: int, dtype: torch.dtype) -> None:
    call, dy = _bnsd(tokens, dtype)
    call |= _slopes(2, HEADS) | {"pse_type": pse_type}
    expected = forward_and_backward(call, dy)

    def to(layout: str, tensor: Tensor) -> Tensor:
        if layout == "SBH":
            return tensor.permute(2, 0, 1, 3).flatten(2)
        by_token = tensor.transpose(1, 2).contiguous()
        return {"BSND": by_token, "BSH": by_token.flatten(2), "TND": by_token.flatten(0, 1)}[layout]

    for layout in ("BSH", "SBH", "BSND", "TND"):
        other = call | {"input_layout": layout}
        other |= {name: to(layout, call[name]) for name in ("query", "key", "value")}
        if layout == "TND":
            ends = (tokens, 2 * tokens)
            other |= {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
        actual = forward_and_backward(other, to(layout, dy))
        wanted = expected | {n: to(layout, expected[n]) for n in ("out", "dq", "dk", "dv")}
        if layout == "TND":  # in memory both are one [N, Sq, 8] block after another
            for name in ("softmax_max", "softmax_sum"):
                wanted[name] = expected[name].reshape(2 * tokens, HEADS, 8)
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["slopes", "square roots", "ropes"])
def test_packed_sequences_against_a_loop(kind: str, dtype: torch.dtype) -> None:
    call, dy = _packed(dtype)
    if kind == "ropes":
        call |= _ropes(call, 19)
    else:
        call |= _slopes(len(LENGTHS), HEADS) | {"pse_type": 2 if kind == "slopes" else 3}
    packed = forward_and_backward(call, dy)
    parts: dict[str, list[Tensor]] = {name: [] for name in packed}
    q_begin = kv_begin = 0
    for index, (q_len, kv_len) in enumerate(LENGTHS):
        rows, keys = slice(q_begin, q_begin + q_len), slice(kv_begin, kv_begin + kv_len)
        q_begin, kv_begin = rows.stop, keys.stop
        single = call | {"actual_seq_qlen": [q_len], "actual_seq_kvlen": [kv_len]}
        single |= {name: call[name][rows] for name in ("query", "query_rope") if name in call}
        single |= {n: call[n][keys] for n in ("key", "value", "key_rope") if n in call}
        if "pse" in call:
            single["pse"] = call["pse"][index : index + 1]
        for name, tensor in forward_and_backward(single, dy[rows]).items():
            parts[name].append(tensor)
    assert_same_bits(packed, {name: torch.cat(found) for name, found in parts.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rope_dim", [1, 16, 31, 40])
def test_ropes_are_more_channels(rope_dim: int, dtype: torch.dtype) -> None:
    """The same as one query and one key of both, though then value is narrower than they are."""
    call, dy = _packed(dtype)
    call["sink"] = _random(HEADS, seed=5)
    ropes = _ropes(call, rope_dim)
    split = forward_and_backward(call | ropes, dy)
    wide = {name: torch.cat([call[name], ropes[f"{name}_rope"]], -1) for name in ("query", "key")}
    whole = forward_and_backward(call | wide, dy)
    joined: Results = {name: split[name] for name in whole}
    joined |= {name: torch.cat([split[name], split[f"{name}_rope"]], -1) for name in ("dq", "dk")}
    assert_same_bits(joined, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_start_indices_count_by_their_difference(dtype: torch.dtype) -> None:
    call, dy = _bnsd(70, dtype)
    call |= _slopes(HEADS) | {"pse_type": 2}
    expected = forward_and_backward(call, dy)
    for q_start, kv_start in ((7, 0), (0, -7), (2**62, 2**62 - 7)):
        moved = {"q_start_idx": [q_start, 5], "kv_start_idx": [kv_start]}
        assert_same_bits(forward_and_backward(call | moved, dy), expected)
    unmoved = forward_and_backward(call | {"q_start_idx": None, "kv_start_idx": []}, dy)
    for one in ("q_start_idx", "kv_start_idx"):  # only where both are given
        assert_same_bits(forward_and_backward(call | {one: None}, dy), unmoved)
    equal = {"q_start_idx": [3], "kv_start_idx": [3]}
    assert_same_bits(forward_and_backward(call | equal, dy), unmoved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pse_type", [2, 3])
def test_slopes_of_zero_and_a_bias_of_zeros_are_none(pse_type: int, dtype: torch.dtype) -> None:
    call, dy = _bnsd(70, dtype)
    expected = forward_and_backward(call, dy)
    neutral: list[dict[str, Any]] = [
        {"pse": torch.zeros(HEADS), "pse_type": pse_type, "q_start_idx": [1], "kv_start_idx": [50]},
        {"pse": torch.zeros(1, HEADS, 1, 70, dtype=dtype), "pse_type": 0},
        {"pse_type": 1},
    ]
    for more in neutral:
        assert_same_bits(forward_and_backward(call | more, dy), expected, *expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_against_the_bias_that_they_stand_for(dtype: torch.dtype) -> None:
    """Powers of two times whole distances: both ways the same numbers are added."""
    call, dy = _bnsd(97, dtype)
    call |= {"pse": 2.0 ** -torch.arange(1.0, HEADS + 1), "pse_type": 2}
    call |= {"q_start_idx": [9], "kv_start_idx": [2]}
    expected = forward_and_backward(call, dy)
    distance = (torch.arange(97) - 7 - torch.arange(97)[:, None]).abs()
    bias = -call["pse"][None, :, None, None] * distance
    given = forward_and_backward(call | {"pse": bias.to(dtype), "pse_type": 0}, dy)
    names = [name for name in expected if name != "dpse"]
    assert_same_bits(given, expected, *names)
