"""Finite differences in float64 through the real kernels, in every mode, bare and with all on.

The analytic side starts from float32 statistics, so it is good to about 1e-7.
"""

from typing import Any

import pytest
import torch
from calls import as_v2
from case_tensors import compressed_mask
from torch.autograd import gradcheck

from fusion_attention import npu_fusion_attention, npu_fusion_attention_v2

HEADS, KV_HEADS, DIM, V_DIM = 4, 2, 3, 2
Q_LEN, KV_LEN = 5, 7
TOLERANCE = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-5}


def _leaf(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def _drops(*shape: int) -> torch.Tensor:
    """A mask with a row that sees nothing."""
    drops = torch.rand(shape, generator=torch.Generator().manual_seed(8)) < 0.3
    drops[..., 2, :] = True
    return drops


DENSE_MODES: dict[str, dict[str, Any]] = {
    "no mask": {},
    "0": {"sparse_mode": 0, "atten_mask": _drops(Q_LEN, KV_LEN)},
    "0 band": {
        "sparse_mode": 0,
        "atten_mask": torch.zeros(Q_LEN, KV_LEN, dtype=torch.uint8),
        "pre_tockens": 2,
        "next_tockens": 3,
    },
    "1": {"sparse_mode": 1, "atten_mask": _drops(2, HEADS, Q_LEN, KV_LEN)},
    "2": {"sparse_mode": 2, "atten_mask": compressed_mask(2)},
    "3": {"sparse_mode": 3, "atten_mask": compressed_mask(3)},
    "4": {
        "sparse_mode": 4,
        "atten_mask": compressed_mask(4),
        "pre_tockens": 3,
        "next_tockens": 1,
    },
    "5": {"sparse_mode": 5, "atten_mask": _drops(2, 1, Q_LEN, KV_LEN), "prefix": [2, 6]},
    "6": {"sparse_mode": 6, "atten_mask": compressed_mask(6), "prefix": [2, 6]},
}

Q_ENDS, KV_ENDS = [2, 2, 5, 9, 0], [4, 6, 11, 15, 0]
PACKED_MODES: dict[str, dict[str, Any]] = {
    "no mask": {},
    "0": {"sparse_mode": 0, "atten_mask": _drops(4, 5)},
    "1": {"sparse_mode": 1, "atten_mask": _drops(4, 5)},
    "2": {"sparse_mode": 2, "atten_mask": compressed_mask(2)},
    "3": {"sparse_mode": 3, "atten_mask": compressed_mask(3)},
    "4": {
        "sparse_mode": 4,
        "atten_mask": compressed_mask(4),
        "pre_tockens": 1,
        "next_tockens": 1,
    },
    "7": {
        "sparse_mode": 7,
        "atten_mask": compressed_mask(7),
        "pre_tockens": 4,
        "next_tockens": 0,
    },
    "8": {
        "sparse_mode": 8,
        "atten_mask": compressed_mask(8),
        "pre_tockens": 4,
        "next_tockens": -1,
    },
}


def _sinks() -> torch.Tensor:
    """Multiples of a step of which float32 holds the neighbours exactly."""
    return torch.tensor([0.5, -1.25, 0.0, 2.0], dtype=torch.float64, requires_grad=True)


def _check(call: dict[str, Any], *leaves: torch.Tensor, keep_prob: float) -> None:
    """Checks query, key, value and pse together, then the sinks, which are float32, alone."""
    call = call | {"keep_prob": keep_prob, "seed": 41, "offset": 4, "scale": 0.6}
    sinks = _sinks()

    def by_inputs(query, key, value, pse=None) -> torch.Tensor:  # noqa: ANN001
        return npu_fusion_attention(query, key, value, pse=pse, sink=sinks.float(), **call)[0]

    def by_sinks(sinks: torch.Tensor) -> torch.Tensor:
        query, key, value, *pse = (leaf.detach() for leaf in leaves)
        bias = pse[0] if pse else None
        return npu_fusion_attention(query, key, value, pse=bias, sink=sinks.float(), **call)[0]

    assert gradcheck(by_inputs, leaves, **TOLERANCE)
    assert gradcheck(by_sinks, (sinks,), eps=2.0**-10, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
@pytest.mark.parametrize("mode", DENSE_MODES)
def test_every_mode_with_everything(mode: str, keep_prob: float) -> None:
    leaves = (
        _leaf(2, HEADS, Q_LEN, DIM, seed=1),
        _leaf(2, KV_HEADS, KV_LEN, DIM, seed=2),
        _leaf(2, KV_HEADS, KV_LEN, V_DIM, seed=3),
        _leaf(2, HEADS, Q_LEN, KV_LEN, seed=4),
    )
    call = {"head_num": HEADS, "input_layout": "BNSD"} | DENSE_MODES[mode]
    _check(call, *leaves, keep_prob=keep_prob)


@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
@pytest.mark.parametrize("mode", DENSE_MODES)
def test_every_mode_alone(mode: str, keep_prob: float) -> None:
    """No bias, no sink, as many key heads as query heads, in the layout that strides most."""
    width = HEADS * DIM
    leaves = tuple(_leaf(n, 2, width, seed=n) for n in (Q_LEN, KV_LEN, KV_LEN))
    call = {"head_num": HEADS, "input_layout": "SBH", "scale": 0.6} | DENSE_MODES[mode]
    call |= {"keep_prob": keep_prob, "seed": 41, "offset": 4}
    assert gradcheck(lambda *qkv: npu_fusion_attention(*qkv, **call)[0], leaves, **TOLERANCE)


@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
@pytest.mark.parametrize("mode", PACKED_MODES)
def test_every_mode_packed(mode: str, keep_prob: float) -> None:
    leaves = (
        _leaf(Q_ENDS[-2] + 1, HEADS, DIM, seed=1),
        _leaf(KV_ENDS[-2] + 1, KV_HEADS, DIM, seed=2),
        _leaf(KV_ENDS[-2] + 1, KV_HEADS, V_DIM, seed=3),
    )
    call = {
        "head_num": HEADS,
        "input_layout": "TND",
        "actual_seq_qlen": Q_ENDS,
        "actual_seq_kvlen": KV_ENDS,
    } | PACKED_MODES[mode]
    _check(call, *leaves, keep_prob=keep_prob)


@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
def test_packed_prefix(keep_prob: float) -> None:
    leaves = (
        _leaf(9, HEADS, DIM, seed=1),
        _leaf(15, KV_HEADS, DIM, seed=2),
        _leaf(15, KV_HEADS, V_DIM, seed=3),
    )
    call = {
        "head_num": HEADS,
        "input_layout": "TND",
        "actual_seq_qlen": [2, 5, 9],
        "actual_seq_kvlen": [4, 11, 15],
        "sparse_mode": 6,
        "atten_mask": compressed_mask(6),
        "prefix": [2, 6, 3],
    }
    _check(call, *leaves, keep_prob=keep_prob)


@pytest.mark.parametrize(
    "shape", [(1, HEADS, Q_LEN, KV_LEN), (2, HEADS, 1, KV_LEN), (1, HEADS, 1, KV_LEN)]
)
def test_bias_that_broadcasts(shape: tuple[int, ...]) -> None:
    leaves = (
        _leaf(2, HEADS, Q_LEN, DIM, seed=1),
        _leaf(2, KV_HEADS, KV_LEN, DIM, seed=2),
        _leaf(2, KV_HEADS, KV_LEN, V_DIM, seed=3),
        _leaf(*shape, seed=4),
    )
    call = {"head_num": HEADS, "input_layout": "BNSD"} | DENSE_MODES["3"]
    _check(call, *leaves, keep_prob=0.7)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", [2, 3])
def test_compressed_bias_of_packed_sequences(mode: int, batch: int) -> None:
    """Only the bias's last rows are read here, so only they are checked."""
    ends, longest = [2, 6, 9], 4
    query, key = _leaf(9, HEADS, DIM, seed=1), _leaf(9, KV_HEADS, DIM, seed=2)
    last_rows = _leaf(batch, HEADS, longest, longest, seed=4)
    unread = torch.zeros(batch, HEADS, 1024 - longest, longest, dtype=torch.float64)

    def attend(query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return npu_fusion_attention(
            query,
            key,
            key,
            HEADS,
            "TND",
            pse=torch.cat([unread, rows], 2),
            atten_mask=compressed_mask(mode),
            sparse_mode=mode,
            actual_seq_qlen=ends,
            actual_seq_kvlen=ends,
            scale=0.6,
        )[0]

    assert gradcheck(attend, (query, key, last_rows), **TOLERANCE)


@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
@pytest.mark.parametrize("mode", ["no mask", "0 band", "1", "3", "6"])
def test_bias_after_scaling(mode: str, keep_prob: float) -> None:
    leaves = (
        _leaf(2, HEADS, Q_LEN, DIM, seed=1),
        _leaf(2, KV_HEADS, KV_LEN, DIM, seed=2),
        _leaf(2, KV_HEADS, KV_LEN, V_DIM, seed=3),
        _leaf(1, HEADS, 1 if mode == "3" else Q_LEN, KV_LEN, seed=4),
    )
    call = {"head_num": HEADS, "input_layout": "BNSD", "scale": 0.6, "seed": 41, "offset": 4}
    call |= {"pse_type": 0, "keep_prob": keep_prob, "sink": _sinks().float()}
    call |= DENSE_MODES[mode]

    def attend(query, key, value, pse) -> torch.Tensor:  # noqa: ANN001
        return npu_fusion_attention_v2(query, key, value, pse=pse, **as_v2(call))[0]

    assert gradcheck(attend, leaves, **TOLERANCE)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("pse_type", [2, 3])
@pytest.mark.parametrize("mode", ["no mask", "1", "2", "4", "8"])
def test_slopes(mode: str, pse_type: int, batch: int | None) -> None:
    """Slopes are float32: their values and steps are ones that it holds exactly."""
    shape = (HEADS,) if batch is None else (batch, HEADS)
    slopes = torch.randint(-16, 16, shape, generator=torch.Generator().manual_seed(5)) / 32
    slopes = slopes.double().requires_grad_()
    q_ends, kv_ends = [2, 2, 5, 9], [4, 6, 11, 15]
    if mode == "8":  # the first sequence alone is cut, and its rows start two keys late
        q_ends, kv_ends = [2, 2, 5, 9], [4, 4, 7, 11]
    leaves = (
        _leaf(10, HEADS, DIM, seed=1),
        _leaf(16, KV_HEADS, DIM, seed=2),
        _leaf(16, KV_HEADS, V_DIM, seed=3),
    )
    call = {"head_num": HEADS, "input_layout": "TND", "scale": 0.6, "keep_prob": 0.7, "seed": 41}
    call |= {"actual_seq_qlen": q_ends, "actual_seq_kvlen": kv_ends, "pse_type": pse_type}
    call |= {"q_start_idx": [5], "kv_start_idx": [3], "sink": _sinks().float()}
    call |= PACKED_MODES[mode]

    def by_inputs(*inputs: torch.Tensor) -> torch.Tensor:
        return npu_fusion_attention_v2(*inputs, pse=slopes.float(), **as_v2(call))[0]

    def by_slopes(slopes: torch.Tensor) -> torch.Tensor:
        inputs = [leaf.detach() for leaf in leaves]
        return npu_fusion_attention_v2(*inputs, pse=slopes.float(), **as_v2(call))[0]

    assert gradcheck(by_inputs, leaves, **TOLERANCE)
    assert gradcheck(by_slopes, (slopes,), eps=2.0**-12, atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", [mode for mode in PACKED_MODES if mode != "no mask"])
def test_ropes(mode: str) -> None:
    leaves = (
        _leaf(Q_ENDS[-2] + 1, HEADS, DIM, seed=1),
        _leaf(KV_ENDS[-2] + 1, KV_HEADS, DIM, seed=2),
        _leaf(KV_ENDS[-2] + 1, KV_HEADS, V_DIM, seed=3),
        _leaf(Q_ENDS[-2] + 1, HEADS, 2, seed=4),
        _leaf(KV_ENDS[-2] + 1, KV_HEADS, 2, seed=5),
    )
    call = {"head_num": HEADS, "input_layout": "TND", "scale": 0.6, "sink": _sinks().float()}
    call |= {"actual_seq_qlen": Q_ENDS, "actual_seq_kvlen": KV_ENDS} | PACKED_MODES[mode]

    def attend(query, key, value, query_rope, key_rope) -> torch.Tensor:  # noqa: ANN001
        ropes = {"query_rope": query_rope, "key_rope": key_rope}
        return npu_fusion_attention_v2(query, key, value, **ropes, **as_v2(call))[0]

    assert gradcheck(attend, leaves, **TOLERANCE)
