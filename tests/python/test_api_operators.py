"""The operators behind the functions, with PyTorch's own checks of custom operators."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fusion_attention  # noqa: F401  # registers the operators

OPS = torch.ops.fusion_attention
UNLIMITED = 2147483647
PLAIN = dict.fromkeys(
    (
        *("pse", "padding_mask", "atten_mask", "sink", "dropout_mask"),
        *("query_rope", "key_rope", "qlen_tensor", "kvlen_tensor"),
    )
)
SETTINGS = {
    "head_num": 4,
    "input_layout": "BNSD",
    "scale": 0.25,
    "keep_prob": 1.0,
    "pre_tockens": UNLIMITED,
    "next_tockens": UNLIMITED,
    "inner_precise": 0,
    "prefix": None,
    "actual_seq_qlen": None,
    "actual_seq_kvlen": None,
    "sparse_mode": 0,
    "softmax_layout": "",
    "pse_type": 1,
    "q_start_idx": None,
    "kv_start_idx": None,
    "version": 1,
}
LENGTHS = {"actual_seq_qlen": [2, 6, 9], "actual_seq_kvlen": [2, 6, 9]}
NO_PAIR = {"seed": None, "offset": None}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor like query."""
    return torch.randn(shape).to(dtype)


def calls() -> dict[str, dict[str, Any]]:
    """Arguments of many kinds, as changes of a plain call."""
    shape = (2, 4, 9, 16)
    return {
        "plain": {},
        "bfloat16": {
            name: randn(*shape, dtype=torch.bfloat16) for name in ("query", "key", "value")
        },
        "GQA and Dv < D": {"key": randn(2, 2, 11, 16), "value": randn(2, 2, 11, 5)},
        "BSH": {**{name: randn(2, 9, 64) for name in ("query", "key")}, "value": randn(2, 9, 32)}
        | {"input_layout": "BSH"},
        "SBH": {name: randn(9, 2, 64) for name in ("query", "key", "value")}
        | {"input_layout": "SBH"},
        "BSND": {name: randn(2, 9, 4, 16) for name in ("query", "key", "value")}
        | {"input_layout": "BSND"},
        "TND": {name: randn(9, 4, 16) for name in ("query", "key", "value")}
        | {"input_layout": "TND", **LENGTHS},
        "TND, lengths as tensors": {name: randn(9, 4, 16) for name in ("query", "key", "value")}
        | {"input_layout": "TND"}
        | {name: torch.tensor([2, 6, 9]) for name in ("qlen_tensor", "kvlen_tensor")},
        "not contiguous": {
            name: randn(2, 9, 16, 8)[..., ::2].permute(0, 3, 1, 2)
            for name in ("query", "key", "value")
        },
        "expanded": {name: randn(1, 4, 9, 1).expand(shape) for name in ("query", "key", "value")},
        "offset": {name: randn(3, 4, 9, 16)[1:] for name in ("query", "key", "value")},
        "mask": {"atten_mask": torch.rand(9, 9) > 0.5, "sparse_mode": 1},
        "compressed mask": {
            "atten_mask": torch.ones(2048, 2048, dtype=torch.uint8).triu(1),
            "sparse_mode": 3,
        },
        "pse and sink": {"pse": randn(1, 4, 1, 9), "sink": randn(4)},
        "bias after scaling": {"pse": randn(2, 4, 9, 9), "pse_type": 0, "version": 2},
        "slopes": {"pse": torch.rand(4), "pse_type": 2} | {"q_start_idx": [3], "kv_start_idx": [1]},
        "slopes of sequences": {"pse": torch.rand(2, 4), "pse_type": 3, "keep_prob": 0.5},
        "ropes": {name: randn(9, 4, 16) for name in ("query", "key", "value")}
        | {name: randn(9, 4, 6) for name in ("query_rope", "key_rope")}
        | {"input_layout": "TND", "atten_mask": torch.rand(4, 4) > 0.5, "sparse_mode": 1}
        | LENGTHS,
        "dropout": {"keep_prob": 0.5},
        "dropout mask": {
            "keep_prob": 0.5,
            "dropout_mask": torch.randint(256, (81,), dtype=torch.uint8),
        },
        "empty": {"query": randn(0, 4, 9, 16), "key": randn(0, 4, 9, 16)}
        | {"value": randn(0, 4, 9, 16)},
    }


def arguments(name: str) -> dict[str, Any]:
    """The common arguments of one of the calls."""
    tensors = {name: randn(2, 4, 9, 16) for name in ("query", "key", "value")}
    return {**tensors, **PLAIN, **SETTINGS, **calls()[name]}


def pair(given: dict[str, Any]) -> dict[str, Tensor | None]:
    """The words that a call needs for its dropout."""
    if given["keep_prob"] == 1.0 or given["dropout_mask"] is not None:
        return NO_PAIR
    return {"seed": torch.tensor(3), "offset": torch.tensor(4)}


@pytest.mark.parametrize("name", calls())
def test_forward(name: str) -> None:
    given = arguments(name)
    opcheck(OPS.forward.default, (), {**given, **pair(given)})


@pytest.mark.parametrize("name", calls())
def test_backward(name: str) -> None:
    given = arguments(name)
    out, softmax_max, softmax_sum = OPS.forward(**given, **pair(given))
    rest = {
        "dy": torch.randn(()).to(out.dtype).expand_as(out),
        "softmax_max": softmax_max,
        "softmax_sum": softmax_sum,
        "attention_in": out,
        "numels": 0,
        "wants_dpse": given["pse"] is not None,
        "wants_dsink": given["sink"] is not None,
    }
    opcheck(OPS.backward.default, (), {**given, **rest, **pair(given)})


@pytest.mark.parametrize("name", calls())
def test_check(name: str) -> None:
    nothing = dict.fromkeys(("dy", "softmax_max", "softmax_sum", "attention_in", "numels"))
    opcheck(OPS.check.default, (), {**arguments(name), **nothing})


def test_draw() -> None:
    # The draw is random by purpose, so that running it twice cannot give the same.
    after, fresh = torch.empty(0), torch.empty(0)
    opcheck(OPS.draw.default, (after, fresh), test_utils=("test_schema", "test_faketensor"))
    assert torch.Tag.nondeterministic_seeded in OPS.draw.default.tags


def test_what_is_not_wanted_is_empty() -> None:
    given = arguments("pse and sink")
    out, softmax_max, softmax_sum = OPS.forward(**given, **NO_PAIR)
    rest = {"dy": out, "softmax_max": softmax_max, "softmax_sum": softmax_sum, "attention_in": out}
    for wants_dpse in (False, True):
        for wants_dsink in (False, True):
            *_, dpse, dsink, dq_rope, dk_rope = OPS.backward(
                **given,
                **rest,
                **NO_PAIR,
                numels=0,
                wants_dpse=wants_dpse,
                wants_dsink=wants_dsink,
            )
            assert dpse.shape == ((1, 4, 1, 9) if wants_dpse else (0,))
            assert dsink.shape == ((4,) if wants_dsink else (0,))
            assert dq_rope.shape == dk_rope.shape == (0,)
