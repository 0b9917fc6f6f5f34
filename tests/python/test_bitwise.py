"""Laws that hold to the last bit: what must not change a result does not change one bit of it."""

import math
from typing import Any

import pytest
import torch
from calls import Results, assert_same_bits, forward_and_backward
from case_tensors import case, compressed_mask

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEADS, KV_HEADS = 6, 2


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _bnsd(
    batch: int, q_len: int, kv_len: int, dtype: torch.dtype, *, dim: int = 40, v_dim: int = 24
) -> tuple[dict[str, Any], torch.Tensor]:
    """A BNSD call with grouped heads, bias, sink and dropout, and a gradient of its result."""
    call = {
        "query": _random(batch, HEADS, q_len, dim, dtype=dtype, seed=1),
        "key": _random(batch, KV_HEADS, kv_len, dim, dtype=dtype, seed=2),
        "value": _random(batch, KV_HEADS, kv_len, v_dim, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "BNSD",
        "pse": _random(batch, HEADS, q_len, kv_len, dtype=dtype, seed=4),
        "sink": _random(HEADS, seed=5),
        "scale": 1 / math.sqrt(dim),
        "keep_prob": 0.8,
        "seed": 31,
        "offset": 4,
    }
    return call, _random(batch, HEADS, q_len, v_dim, dtype=dtype, seed=6)


def _assert_same_bits_for_any_threads(call: dict[str, Any], dy: torch.Tensor) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = forward_and_backward(call, dy)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert_same_bits(forward_and_backward(call, dy), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", range(500_000, 500_060))
def test_any_number_of_threads(seed: int) -> None:
    sample = case(seed)
    _assert_same_bits_for_any_threads(sample.call, sample.dy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_any_number_of_threads_on_many_tiles(causal: bool, dtype: torch.dtype) -> None:
    call, dy = _bnsd(1, 700, 900, dtype, dim=64, v_dim=64)
    if causal:
        call |= {"sparse_mode": 3, "atten_mask": compressed_mask(3)}
    _assert_same_bits_for_any_threads(call, dy)


# More keys than one column of the backward pass has room for, so that dQ is handed on from several
# workers to several: within a half of the keys, from one half to the other, and to the next column.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [0, 3, 4])
def test_any_number_of_threads_on_one_head_with_many_keys(mode: int, dtype: torch.dtype) -> None:
    call = {
        "query": _random(1, 1, 300, 64, dtype=dtype, seed=1),
        "key": _random(1, 1, 4800, 64, dtype=dtype, seed=2),
        "value": _random(1, 1, 4800, 64, dtype=dtype, seed=3),
        "head_num": 1,
        "input_layout": "BNSD",
        "scale": 0.125,
    }
    if mode > 0:
        call |= {"sparse_mode": mode, "atten_mask": compressed_mask(mode)}
    if mode == 4:
        call |= {"pre_tockens": 1500, "next_tockens": -300}
    _assert_same_bits_for_any_threads(call, _random(1, 1, 300, 64, dtype=dtype, seed=4))


@pytest.mark.parametrize("seed", range(510_000, 510_040))
def test_any_run(seed: int) -> None:
    sample = case(seed)
    first = forward_and_backward(sample.call, sample.dy)
    assert_same_bits(forward_and_backward(sample.call, sample.dy), first)


def _to_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A [B, N, S, D] tensor in another layout; TND packs the batch entries one after another."""
    match layout:
        case "BSH":
            return tensor.permute(0, 2, 1, 3).flatten(2)
        case "SBH":
            return tensor.permute(2, 0, 1, 3).flatten(2)
        case "BSND":
            return tensor.permute(0, 2, 1, 3).contiguous()
        case "TND":
            return tensor.permute(0, 2, 1, 3).flatten(0, 1).contiguous()
        case _:
            return tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "TND"])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 5), (49, 65), (130, 130)])
def test_layouts(layout: str, dtype: torch.dtype, q_len: int, kv_len: int) -> None:
    batch = 3
    call, dy = _bnsd(batch, q_len, kv_len, dtype)
    call |= {"sparse_mode": 3, "atten_mask": compressed_mask(3)}
    del call["pse"]  # TND has no dense bias
    expected = forward_and_backward(call, dy)
    other = call | {"input_layout": layout}
    for name in ("query", "key", "value"):
        other[name] = _to_layout(call[name], layout)
    if layout == "TND":
        other["actual_seq_qlen"] = [q_len * (b + 1) for b in range(batch)]
        other["actual_seq_kvlen"] = [kv_len * (b + 1) for b in range(batch)]
    actual = forward_and_backward(other, _to_layout(dy, layout))
    wanted = dict(expected)
    for name in ("out", "dq", "dk", "dv"):
        wanted[name] = _to_layout(expected[name], layout)
    if layout == "TND":
        # In memory both are one [N, Sq, 8] block after another.
        for name in ("softmax_max", "softmax_sum"):
            wanted[name] = expected[name].reshape(batch * q_len, HEADS, 8)
    assert_same_bits(actual, wanted)


def _packed_call(lengths: list[tuple[int, int]], dtype: torch.dtype, **more: object) -> dict:
    q_tokens, kv_tokens = (sum(pair[side] for pair in lengths) for side in (0, 1))
    return {
        "query": _random(q_tokens, HEADS, 40, dtype=dtype, seed=1),
        "key": _random(kv_tokens, KV_HEADS, 40, dtype=dtype, seed=2),
        "value": _random(kv_tokens, KV_HEADS, 24, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "TND",
        "scale": 0.2,
        "actual_seq_qlen": [sum(q for q, _ in lengths[: i + 1]) for i in range(len(lengths))],
        "actual_seq_kvlen": [sum(k for _, k in lengths[: i + 1]) for i in range(len(lengths))],
    } | more


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [None, 2, 3, 4])
@pytest.mark.parametrize("sink", [False, True])
def test_packed_sequences_against_a_loop(mode: int | None, sink: bool, dtype: torch.dtype) -> None:
    lengths = [(5, 9), (64, 64), (1, 130), (0, 7), (97, 101), (48, 49)]
    call = _packed_call(lengths, dtype, softmax_layout="TND")
    if mode is not None:
        call |= {"sparse_mode": mode, "atten_mask": compressed_mask(mode)}
        call |= {"pre_tockens": 20, "next_tockens": 3}
    if sink:
        call["sink"] = _random(HEADS, seed=5)
    dy = _random(call["query"].shape[0], HEADS, 24, dtype=dtype, seed=6)
    packed = forward_and_backward(call, dy)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in packed if name != "dsink"}
    q_begin = kv_begin = 0
    for q_len, kv_len in lengths:
        rows, keys = slice(q_begin, q_begin + q_len), slice(kv_begin, kv_begin + kv_len)
        q_begin, kv_begin = rows.stop, keys.stop
        if q_len == 0:
            parts["dk"].append(torch.zeros_like(call["key"][keys]))
            parts["dv"].append(torch.zeros_like(call["value"][keys]))
            continue
        single = call | {
            "query": call["query"][rows],
            "key": call["key"][keys],
            "value": call["value"][keys],
            "actual_seq_qlen": [q_len],
            "actual_seq_kvlen": [kv_len],
        }
        for name, tensor in forward_and_backward(single, dy[rows]).items():
            if name != "dsink":
                parts[name].append(tensor)
    assert_same_bits(packed, {name: torch.cat(found) for name, found in parts.items()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_order(dtype: torch.dtype) -> None:
    """Each batch entry's results do not depend on its neighbours. No dropout: its bits would."""
    call, dy = _bnsd(4, 70, 83, dtype)
    call["keep_prob"] = 1.0
    expected = forward_and_backward(call, dy)
    order = torch.tensor([2, 0, 3, 1])
    turned = call | {name: call[name][order] for name in ("query", "key", "value", "pse")}
    actual = forward_and_backward(turned, dy[order])
    wanted = {name: tensor[order] for name, tensor in expected.items() if name != "dsink"}
    assert_same_bits(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (3, 70), (96, 96), (150, 131)])
def test_grouped_heads_against_repeated_ones(q_len: int, kv_len: int, dtype: torch.dtype) -> None:
    call, dy = _bnsd(2, q_len, kv_len, dtype)
    grouped = forward_and_backward(call, dy)
    repeated = dict(call)
    for name in ("key", "value"):
        repeated[name] = call[name].repeat_interleave(HEADS // KV_HEADS, 1)
    names = ("out", "softmax_max", "softmax_sum", "dq", "dpse")
    assert_same_bits(forward_and_backward(repeated, dy), grouped, *names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_prob_one_is_no_dropout(dtype: torch.dtype) -> None:
    call, dy = _bnsd(2, 65, 80, dtype)
    call["keep_prob"] = 1.0
    expected = forward_and_backward(call, dy)
    for keep_prob in (1, 1 - 1e-10):
        assert_same_bits(forward_and_backward(call | {"keep_prob": keep_prob}, dy), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_absent_arguments_against_neutral_ones(dtype: torch.dtype) -> None:
    """A bias of zeros, a mask of zeros and arguments that say nothing change nothing."""
    call, dy = _bnsd(2, 50, 60, dtype)
    del call["pse"], call["sink"]
    expected = forward_and_backward(call, dy)
    neutral = [
        {"pse": torch.zeros(1, HEADS, 1, 60, dtype=dtype)},
        {"atten_mask": torch.zeros(50, 60, dtype=torch.uint8), "sparse_mode": 1},
        {"gen_mask_parallel": False, "sync": True},
        {"inner_precise": 2},
        {"sparse_mode": 2, "pre_tockens": 3, "next_tockens": 4},
    ]
    for more in neutral:
        actual = forward_and_backward(call | more, dy)
        assert_same_bits({name: actual[name] for name in expected}, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_zero_is_the_mean(dtype: torch.dtype) -> None:
    """Equal weights, 64 keys: the mean of small integers is exact in every type."""
    query = _random(2, 3, 33, 16, dtype=dtype, seed=1) * 100
    value = torch.randint(-8, 8, (2, 3, 64, 16), generator=torch.Generator().manual_seed(2))
    call = {
        "query": query,
        "key": _random(2, 3, 64, 16, dtype=dtype, seed=3),
        "value": value.to(dtype),
        "head_num": 3,
        "input_layout": "BNSD",
        "scale": 0.0,
    }
    results = forward_and_backward(call, torch.ones(2, 3, 33, 16, dtype=dtype))
    mean = value.double().mean(2, keepdim=True).to(dtype)
    assert torch.equal(results["out"], mean.expand(2, 3, 33, 16))
    assert torch.all(results["softmax_max"] == 0)
    assert torch.all(results["softmax_sum"] == 64)
    assert torch.all(results["dq"] == 0)
    assert torch.all(results["dk"] == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_attention_copies_values(dtype: torch.dtype) -> None:
    """Scores so far apart that each row takes one key: attention_out is that key's value."""
    length = 100
    query = torch.zeros(1, 2, length, 128, dtype=dtype)
    query[..., torch.arange(length), torch.arange(length).flip(0)] = 64
    key = torch.zeros(1, 2, length, 128, dtype=dtype)
    key[..., torch.arange(length), torch.arange(length)] = 64
    value = _random(1, 2, length, 128, dtype=dtype, seed=3)
    call = {"query": query, "key": key, "value": value, "head_num": 2, "input_layout": "BNSD"}
    results: Results = forward_and_backward(call, value)
    assert_same_bits(results, {"out": value.flip(2), "dv": value.flip(2)})
    assert torch.all(results["softmax_max"] == 4096)
    assert torch.all(results["softmax_sum"] == 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_values_show_the_weights(dtype: torch.dtype) -> None:
    """An identity as value returns the weights: equal ones over the keys of a causal row."""
    length = 128
    zeros = torch.zeros(1, 1, length, length, dtype=dtype)
    identity = torch.eye(length, dtype=dtype)[None, None]
    call = {
        "query": zeros,
        "key": zeros,
        "value": identity,
        "head_num": 1,
        "input_layout": "BNSD",
        "sparse_mode": 2,
        "atten_mask": compressed_mask(2),
    }
    weights = forward_and_backward(call, zeros)["out"][0, 0]
    seen = torch.ones(length, length).tril() > 0
    assert torch.equal(weights != 0, seen)
    for row in (0, 1, 3, 7, 15, 31, 63, 127):
        assert torch.all(weights[row, : row + 1] == 1 / (row + 1))
