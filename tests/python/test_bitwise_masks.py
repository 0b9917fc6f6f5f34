"""Each structured mode against the dense mask that it stands for, given as mode 1: the same bits.

So the tiles that a mode skips, computes whole or masks in part are those that the predicate says.
"""

from typing import Any

import pytest
import torch
from calls import assert_same_bits, forward_and_backward
from case_tensors import compressed_mask
from oracle import Geometry, visible_keys

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEADS, KV_HEADS = 4, 2
# Around the corners of tiles, with more queries and with more keys.
SIZES = ((1, 1), (7, 70), (64, 64), (97, 49), (129, 160), (260, 250))


def _random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _call(q_len: int, kv_len: int, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    return {
        "query": _random(2, HEADS, q_len, 24, dtype=dtype, seed=1),
        "key": _random(2, KV_HEADS, kv_len, 24, dtype=dtype, seed=2),
        "value": _random(2, KV_HEADS, kv_len, 16, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "BNSD",
        "pse": _random(2, HEADS, q_len, kv_len, dtype=dtype, seed=4),
        "sink": _random(HEADS, dtype=torch.float32, seed=5),
        "scale": 0.2,
        "keep_prob": 0.9,
        "seed": 17,
        # Rows without keys report the same sum in every mode.
        "inner_precise": 2,
    } | more


def _as_dense_mask(call: dict[str, Any]) -> dict[str, Any]:
    geometry = Geometry.of(call)
    seen = torch.stack([visible_keys(call, geometry, seq) for seq in geometry.sequences])
    return call | {"sparse_mode": 1, "atten_mask": ~seen[:, :1], "prefix": None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("sink", [False, True])
def test_causal(mode: int, q_len: int, kv_len: int, dtype: torch.dtype, sink: bool) -> None:
    call = _call(q_len, kv_len, dtype, sparse_mode=mode, atten_mask=compressed_mask(mode))
    if not sink:
        del call["sink"]
    dy = _random(2, HEADS, q_len, 16, dtype=dtype, seed=6)
    expected = forward_and_backward(_as_dense_mask(call), dy)
    assert_same_bits(forward_and_backward(call, dy), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("pre", "following"), [(0, 0), (3, 5), (40, 0), (100, 31), (70, -9), (-20, 90)]
)
@pytest.mark.parametrize("mode", [0, 4])
def test_band(mode: int, pre: int, following: int, dtype: torch.dtype) -> None:
    for q_len, kv_len in ((97, 97), (130, 97), (97, 170)):
        shift = q_len - kv_len if mode == 4 else 0
        call = _call(q_len, kv_len, dtype, sparse_mode=mode)
        # The same band, measured from the mode's own corner.
        call |= {"pre_tockens": pre - shift, "next_tockens": following + shift}
        call["atten_mask"] = (
            torch.zeros(q_len, kv_len, dtype=torch.bool) if mode == 0 else compressed_mask(4)
        )
        dy = _random(2, HEADS, q_len, 16, dtype=dtype, seed=6)
        expected = forward_and_backward(_as_dense_mask(call), dy)
        assert_same_bits(forward_and_backward(call, dy), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
@pytest.mark.parametrize("mode", [5, 6])
def test_prefix(mode: int, q_len: int, kv_len: int, dtype: torch.dtype) -> None:
    lowest = max(kv_len - q_len, 0)
    for prefix in ([lowest, kv_len], [(lowest + kv_len) // 2, lowest]):
        mask = compressed_mask(6)
        if mode == 5:
            mask = torch.zeros(2, 1, q_len, kv_len, dtype=torch.uint8)
        call = _call(q_len, kv_len, dtype, sparse_mode=mode, atten_mask=mask, prefix=prefix)
        dy = _random(2, HEADS, q_len, 16, dtype=dtype, seed=6)
        expected = forward_and_backward(_as_dense_mask(call), dy)
        assert_same_bits(forward_and_backward(call, dy), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["SS", "11SS", "B1SS", "BNSS"])
def test_shapes_and_types_of_a_dense_mask(shape: str, dtype: torch.dtype) -> None:
    """One mask, expanded by hand to [B, N, Sq, Skv] or left to broadcast, bool or any bytes."""
    q_len, kv_len = 130, 67
    call = _call(q_len, kv_len, dtype, sparse_mode=1)
    dy = _random(2, HEADS, q_len, 16, dtype=dtype, seed=6)
    generator = torch.Generator().manual_seed(7)
    leading = {"SS": (), "11SS": (1, 1), "B1SS": (2, 1), "BNSS": (2, HEADS)}[shape]
    drops = torch.rand(*leading, q_len, kv_len, generator=generator) < 0.6
    full = drops.expand(2, HEADS, q_len, kv_len).contiguous()
    expected = forward_and_backward(call | {"atten_mask": full}, dy)
    any_byte = drops * torch.randint(1, 256, drops.shape, generator=generator, dtype=torch.uint8)
    for mask in (drops, drops.to(torch.uint8), any_byte):
        assert_same_bits(forward_and_backward(call | {"atten_mask": mask}, dy), expected)


def _packed_against_dense(lengths: list[tuple[int, int]], dtype: torch.dtype, **more: Any) -> None:
    """A packed call against one call for each sequence, its mask given as a dense one."""
    q_ends = [sum(q for q, _ in lengths[: i + 1]) for i in range(len(lengths))]
    kv_ends = [sum(k for _, k in lengths[: i + 1]) for i in range(len(lengths))]
    call = {
        "query": _random(q_ends[-1], HEADS, 24, dtype=dtype, seed=1),
        "key": _random(kv_ends[-1], KV_HEADS, 24, dtype=dtype, seed=2),
        "value": _random(kv_ends[-1], KV_HEADS, 16, dtype=dtype, seed=3),
        "head_num": HEADS,
        "input_layout": "TND",
        "scale": 0.2,
        "actual_seq_qlen": q_ends,
        "actual_seq_kvlen": kv_ends,
        "softmax_layout": "TND",
    } | more
    dy = _random(q_ends[-1], HEADS, 16, dtype=dtype, seed=6)
    packed = forward_and_backward(call, dy)
    geometry = Geometry.of(call)
    for seq in geometry.sequences:
        rows = slice(seq.q_begin, seq.q_begin + seq.q_len)
        keys = slice(seq.kv_begin, seq.kv_begin + seq.kv_len)
        if seq.q_len == 0:
            assert not packed["dk"][keys].any()
            assert not packed["dv"][keys].any()
            continue
        single = call | {
            "query": call["query"][rows],
            "key": call["key"][keys],
            "value": call["value"][keys],
            "actual_seq_qlen": [seq.q_len],
            "actual_seq_kvlen": [seq.kv_len],
            "sparse_mode": 1,
            "atten_mask": ~visible_keys(call, geometry, seq)[0],
            "prefix": None,
        }
        expected = forward_and_backward(single, dy[rows])
        actual = {
            name: tensor[keys if name in ("dk", "dv") else rows] for name, tensor in packed.items()
        }
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [2, 3, 4, 6])
def test_packed(mode: int, dtype: torch.dtype) -> None:
    lengths = [(5, 9), (64, 64), (0, 3), (1, 130), (97, 101), (129, 170)]
    more: dict[str, Any] = {"pre_tockens": 30, "next_tockens": 2}
    if mode == 6:
        more = {"prefix": [6, 31, 3, 130, 4, 41]}
    mask = compressed_mask(mode)
    _packed_against_dense(lengths, dtype, sparse_mode=mode, atten_mask=mask, **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("following", [-60, -1, 0])
def test_packed_and_cut_at_the_end(following: int, dtype: torch.dtype) -> None:
    lengths = [(5, 9), (64, 64), (40, 130), (0, 8)]
    mask = compressed_mask(7)
    tockens = {"pre_tockens": 130, "next_tockens": following}
    _packed_against_dense(lengths, dtype, sparse_mode=7, atten_mask=mask, **tockens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("following", [-60, 0, 7, 300])
def test_packed_and_cut_at_the_start(following: int, dtype: torch.dtype) -> None:
    lengths = [(0, 8), (40, 130), (64, 64), (30, 9), (5, 70)]
    mask = compressed_mask(8)
    tockens = {"pre_tockens": 130, "next_tockens": following}
    _packed_against_dense(lengths, dtype, sparse_mode=8, atten_mask=mask, **tockens)
