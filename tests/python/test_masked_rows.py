"""Rows that see no key, sequences without tokens, tensors without elements: zeros, never NaN."""

import itertools
from typing import Any

import pytest
import torch
from calls import Results, forward_and_backward, run
from case_tensors import compressed_mask
from oracle import FLT_MAX, Geometry, attention, visible_keys

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEADS, KV_HEADS, DIM, V_DIM = 4, 2, 16, 8


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _bnsd(q_len: int, kv_len: int, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    return {
        "query": _random(2, HEADS, q_len, DIM, dtype=dtype, seed=1),
        "key": _random(2, KV_HEADS, kv_len, DIM, dtype=dtype, seed=2),
        "value": _random(2, KV_HEADS, kv_len, V_DIM, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "BNSD",
        "scale": 0.25,
    } | more


def _tnd(q_ends: list[int], kv_ends: list[int], dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """A packed call with 5 tokens after the last sequence."""
    q_tokens, kv_tokens = max(q_ends, default=0) + 5, max(kv_ends, default=0) + 5
    return {
        "query": _random(q_tokens, HEADS, DIM, dtype=dtype, seed=1),
        "key": _random(kv_tokens, KV_HEADS, DIM, dtype=dtype, seed=2),
        "value": _random(kv_tokens, KV_HEADS, V_DIM, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "TND",
        "scale": 0.25,
        "actual_seq_qlen": q_ends,
        "actual_seq_kvlen": kv_ends,
        "softmax_layout": "TND",
    } | more


def _run(call: dict[str, Any]) -> Results:
    """Runs a call with a random gradient; nothing may be NaN or infinite."""
    geometry = Geometry.of(call)
    shape = geometry.as_layout(
        torch.empty(geometry.slots, geometry.heads, geometry.q_tokens, geometry.value_dim)
    ).shape
    results = forward_and_backward(call, _random(*shape, dtype=call["query"].dtype, seed=9))
    for name, tensor in results.items():
        assert tensor.isfinite().all(), name
    return results


def _dense_mask(rows: list[int], q_len: int, kv_len: int) -> torch.Tensor:
    drops = torch.zeros(2, 1, q_len, kv_len, dtype=torch.bool)
    drops[:, :, rows] = True
    return drops


# Each mode with rows that see no key, and whether the arguments alone say that there are some.
EMPTY_ROWS = {
    "0 by mask": (70, 40, {"sparse_mode": 0, "atten_mask": _dense_mask([0, 3, 69], 70, 40)}, False),
    "0 by next_tockens": (
        70,
        80,
        {
            "sparse_mode": 0,
            "atten_mask": torch.zeros(70, 80, dtype=torch.bool),
            "pre_tockens": 90,
            "next_tockens": -5,
        },
        True,
    ),
    "0 by pre_tockens": (
        70,
        40,
        {
            "sparse_mode": 0,
            "atten_mask": torch.zeros(70, 40, dtype=torch.bool),
            "pre_tockens": 10,
            "next_tockens": 0,
        },
        True,
    ),
    "1": (70, 40, {"sparse_mode": 1, "atten_mask": _dense_mask([5, 68], 70, 40)}, False),
    "3": (70, 40, {"sparse_mode": 3, "atten_mask": compressed_mask(3)}, True),
    "4 by next_tockens": (
        70,
        60,
        {
            "sparse_mode": 4,
            "atten_mask": compressed_mask(4),
            "pre_tockens": 60,
            "next_tockens": 2,
        },
        True,
    ),
    "4 by pre_tockens": (
        60,
        60,
        {
            "sparse_mode": 4,
            "atten_mask": compressed_mask(4),
            "pre_tockens": -3,
            "next_tockens": 30,
        },
        True,
    ),
    "5": (
        70,
        40,
        {"sparse_mode": 5, "atten_mask": _dense_mask([], 70, 40), "prefix": [0, 9]},
        True,
    ),
    "5 by mask": (
        70,
        40,
        {"sparse_mode": 5, "atten_mask": _dense_mask([1, 2], 70, 40), "prefix": [4, 9]},
        False,
    ),
    "6": (70, 40, {"sparse_mode": 6, "atten_mask": compressed_mask(6), "prefix": [0, 9]}, True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner_precise", [0, 1, 2])
@pytest.mark.parametrize("mode", EMPTY_ROWS)
def test_rows_that_see_no_key(mode: str, inner_precise: int, dtype: torch.dtype) -> None:
    q_len, kv_len, more, announced = EMPTY_ROWS[mode]
    call = _bnsd(q_len, kv_len, dtype, inner_precise=inner_precise, **more)
    geometry = Geometry.of(call)
    seen = torch.stack([visible_keys(call, geometry, seq) for seq in geometry.sequences])
    empty = ~seen.any(-1)
    assert empty.any()
    assert not empty.all()
    results = _run(call)
    assert not results["out"][empty].any()
    assert not results["dq"][empty].any()
    assert torch.all(results["softmax_max"][empty] == -FLT_MAX)
    expected_sum = FLT_MAX if announced or inner_precise == 2 else kv_len
    assert torch.all(results["softmax_sum"][empty] == expected_sum)
    # The rows beside them are as if those did not exist.
    assert torch.all(results["softmax_max"][~empty] > -FLT_MAX)
    assert torch.all(results["softmax_sum"][~empty] < kv_len + 1)
    unseen = ~seen.any(2).unflatten(1, (KV_HEADS, -1)).any(2)
    assert not results["dk"][unseen].any()
    assert not results["dv"][unseen].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", EMPTY_ROWS)
def test_a_sink_fills_rows_that_see_no_key(mode: str, dtype: torch.dtype) -> None:
    q_len, kv_len, more, _ = EMPTY_ROWS[mode]
    sink = torch.tensor([0.5, -3.0, 0.0, 40.0])
    call = _bnsd(q_len, kv_len, dtype, sink=sink, **more)
    geometry = Geometry.of(call)
    empty = ~torch.stack([visible_keys(call, geometry, s) for s in geometry.sequences]).any(-1)
    results = _run(call)
    assert not results["out"][empty].any()
    assert not results["dq"][empty].any()
    heads = empty.nonzero()[:, 1]
    assert torch.equal(results["softmax_max"][empty][:, 0], sink[heads])
    assert torch.all(results["softmax_sum"][empty] == 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sink", [False, True])
def test_rows_whose_scores_are_all_minus_infinity(sink: bool, dtype: torch.dtype) -> None:
    """A bias of -inf on every key that a row sees leaves it without weights, as a mask does."""
    bias = torch.zeros(2, HEADS, 70, 40, dtype=dtype)
    bias[:, :, 7] = -torch.inf
    bias[:, 1, 50, :20] = -torch.inf
    drops = torch.zeros(70, 40, dtype=torch.bool)
    drops[50, 20:] = True
    call = _bnsd(70, 40, dtype, pse=bias, sparse_mode=1, atten_mask=drops)
    if sink:
        call["sink"] = torch.tensor([0.5, -3.0, 0.0, 40.0])
    results = _run(call)
    for head in range(HEADS):
        for row in (7, 50) if head == 1 else (7,):
            assert not results["out"][:, head, row].any()
            assert not results["dq"][:, head, row].any()
            assert not results["dpse"][:, head, row].any()
            expected = (call["sink"][head], 1) if sink else (-FLT_MAX, 40)
            assert torch.all(results["softmax_max"][:, head, row] == expected[0])
            assert torch.all(results["softmax_sum"][:, head, row] == expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_masked(dtype: torch.dtype) -> None:
    drops = torch.ones(33, 65, dtype=torch.uint8)
    results = _run(_bnsd(33, 65, dtype, sparse_mode=1, atten_mask=drops))
    for name in ("out", "dq", "dk", "dv"):
        assert not results[name].any(), name
    assert torch.all(results["softmax_max"] == -FLT_MAX)
    assert torch.all(results["softmax_sum"] == 65)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner_precise", [0, 2])
def test_masked_rows_in_packed_sequences(inner_precise: int, dtype: torch.dtype) -> None:
    """The mask's rows are a sequence's own rows, and the sum is that sequence's Skv."""
    drops = torch.zeros(9, 30, dtype=torch.bool)
    drops[2] = True
    call = _tnd([7, 16], [9, 39], dtype, sparse_mode=1, atten_mask=drops)
    results = _run(call | {"inner_precise": inner_precise})
    for row, kv_len in ((2, 9), (9, 30)):
        assert not results["out"][row].any()
        assert not results["dq"][row].any()
        assert torch.all(results["softmax_max"][row] == -FLT_MAX)
        assert torch.all(results["softmax_sum"][row] == (FLT_MAX if inner_precise == 2 else kv_len))


# Cumulative lengths with leading, middle and trailing zeros, with one side empty and with both.
PACKED = {
    "leading": ([0, 4, 9], [0, 6, 8]),
    "leading queries": ([0, 4, 9], [3, 6, 8]),
    "leading keys": ([2, 4, 9], [0, 6, 8]),
    "middle": ([4, 4, 9], [6, 6, 8]),
    "middle queries": ([4, 4, 9], [6, 7, 8]),
    "middle keys": ([4, 7, 9], [6, 6, 8]),
    "trailing": ([4, 9, 0, 0], [6, 8, 0, 0]),
    "last queries": ([4, 9, 9], [6, 8, 11]),
    "last keys": ([4, 9, 12], [6, 8, 8]),
    "all": ([0, 0], [0, 0]),
    "no keys": ([3, 5], [0, 0]),
    "no queries": ([0, 0], [3, 5]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softmax_layout", ["", "TND"])
@pytest.mark.parametrize("lengths", PACKED)
@pytest.mark.parametrize("sink", [False, True])
def test_sequences_without_tokens(
    lengths: str, sink: bool, softmax_layout: str, dtype: torch.dtype
) -> None:
    q_ends, kv_ends = PACKED[lengths]
    call = _tnd(q_ends, kv_ends, dtype) | {"softmax_layout": softmax_layout}
    if sink:
        call["sink"] = _random(HEADS, seed=5)
    dy = _random(call["query"].shape[0], HEADS, V_DIM, dtype=dtype, seed=9)
    actual = run(call, dy)
    exact = attention(call, dy, actual["out"])
    assert actual["numels"] == exact.numels
    for name, quantity in exact.quantities().items():
        # Where nothing is added up the result is exactly that of the oracle: 0.
        nothing = quantity.magnitude == 0
        assert not quantity.value[nothing].any()
        assert not actual[name][nothing].any(), name
        assert actual[name].isfinite().all(), name
    no_keys = [
        range(begin, end)
        for begin, end, keys in zip(
            [0, *q_ends],
            q_ends,
            [b - a for a, b in itertools.pairwise([0, *kv_ends])],
            strict=False,
        )
        if keys <= 0
    ]
    for row in itertools.chain(*no_keys, range(max(q_ends), call["query"].shape[0])):
        assert not actual["out"][row].any()
        assert not actual["dq"][row].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BSH", "SBH", "BNSD", "BSND"])
@pytest.mark.parametrize(("batch", "q_len", "kv_len"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_tensors_without_elements(
    batch: int, q_len: int, kv_len: int, layout: str, dtype: torch.dtype
) -> None:
    geometry = Geometry(layout, HEADS, KV_HEADS, DIM, V_DIM, q_len, kv_len, batch, ())
    tensors = {
        "query": torch.ones(batch, HEADS, q_len, DIM, dtype=dtype),
        "key": torch.ones(batch, KV_HEADS, kv_len, DIM, dtype=dtype),
        "value": torch.ones(batch, KV_HEADS, kv_len, V_DIM, dtype=dtype),
    }
    call = {name: geometry.as_layout(tensor) for name, tensor in tensors.items()}
    call |= {"head_num": HEADS, "input_layout": layout, "keep_prob": 0.5, "seed": 3}
    dy = geometry.as_layout(torch.ones(batch, HEADS, q_len, V_DIM, dtype=dtype))
    actual = run(call, dy)
    assert actual["out"].shape == dy.shape
    assert actual["softmax_max"].shape == (batch, HEADS, q_len, 8)
    assert actual["numels"] == 0
    for name, source in (("dq", "query"), ("dk", "key"), ("dv", "value")):
        assert actual[name].shape == call[source].shape
    for name in ("out", "softmax_max", "softmax_sum", "dq", "dk", "dv"):
        assert not actual[name].any(), name


def test_packed_tensors_without_tokens() -> None:
    call = _tnd([0], [0], torch.float32)
    for name in ("query", "key", "value"):
        call[name] = call[name][:0]
    actual = run(call, torch.zeros(0, HEADS, V_DIM))
    assert actual["out"].shape == (0, HEADS, V_DIM)
    assert actual["softmax_max"].shape == (0, HEADS, 8)
    assert actual["dk"].shape == (0, KV_HEADS, DIM)
