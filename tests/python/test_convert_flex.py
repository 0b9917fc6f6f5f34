"""flex_attention and the call that it is converted to compute the same, both ways.

flex_attention runs eagerly here, from mask_mod and score_mod alone.
"""

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from conversions import call_of, plain_specs
from oracle import Geometry
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from fusion_attention.convert import ConversionError, bind, from_flex, to_flex

TOLERANCE = {"rtol": 0, "atol": 1e-11}
DOCUMENTS = torch.tensor([0] * 7 + [1] * 13 + [2] * 1 + [3] * 19)
PADDED = torch.tensor([30, 40])


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def mask_of(mask_mod: Callable[..., Any], q_len: int, kv_len: int, batch: int | None) -> BlockMask:
    return create_block_mask(mask_mod, batch, None, q_len, kv_len, device="cpu", BLOCK_SIZE=16)


# Name: (mask_mod, Sq, Skv, sparse_mode, further arguments).
STANDARD: dict[str, tuple[Callable[..., Any], int, int, int, dict[str, Any]]] = {
    "causal": (lambda b, h, i, j: i >= j, 40, 40, 2, {}),
    "causal, more keys": (lambda b, h, i, j: i >= j, 24, 40, 2, {}),
    "causal cache": (lambda b, h, i, j: i + 16 >= j, 24, 40, 3, {}),
    "sliding window": (
        lambda b, h, i, j: (i >= j) & (i - j < 8), 40, 40, 4, {"pre_tockens": 7, "next_tockens": 0}
    ),
    "both sides": (
        lambda b, h, i, j: (i - j).abs() <= 5, 40, 40, 4, {"pre_tockens": 5, "next_tockens": 5}
    ),
    "prefix": (lambda b, h, i, j: (j < 11) | (i >= j), 40, 40, 6, {"prefix": [11]}),
    "prefix per batch": (
        lambda b, h, i, j: (j < 11 + 4 * b) | (i >= j), 40, 40, 6, {"prefix": [11, 15]}
    ),
    "all": (lambda b, h, i, j: j >= 0, 40, 40, 0, {"atten_mask": None}),
    "padding": (lambda b, h, i, j: j < PADDED[b], 40, 40, 1, {}),
    "documents": (lambda b, h, i, j: (DOCUMENTS[i] == DOCUMENTS[j]) & (i >= j), 40, 40, 1, {}),
    "checkers": (lambda b, h, i, j: (i + j + b) % 3 != 0, 40, 40, 1, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", STANDARD)
def test_standard_masks(name: str) -> None:
    mask_mod, q_len, kv_len, mode, further = STANDARD[name]
    query = torch.randn(2, 4, q_len, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, kv_len, 8, dtype=torch.float64)
    block_mask = mask_of(mask_mod, q_len, kv_len, 2)
    call = from_flex(query, key, value, block_mask=block_mask, enable_gqa=True)
    assert call.arguments["sparse_mode"] == mode
    for argument, expected in further.items():
        if argument == "prefix" and len(expected) == 1:
            expected = expected * 2
        assert call.arguments[argument] == expected
    expected = flex.flex_attention(query, key, value, block_mask=block_mask, enable_gqa=True)
    torch.testing.assert_close(call.run()[0], expected, **TOLERANCE)


INSIDE: dict[str, tuple[Callable[..., Any], int]] = {
    "full": (lambda i, j: i >= 0, 0),
    "causal": (lambda i, j: i >= j, 3),
    "window": (lambda i, j: (i >= j) & (i - j <= 4), 4),
}


@pytest.mark.parametrize("inside", INSIDE)
def test_documents_become_packed_sequences(inside: str) -> None:
    mask_mod, mode = INSIDE[inside]
    query, key, value = torch.randn(3, 2, 2, 40, 8, dtype=torch.float64)
    block_mask = mask_of(
        lambda b, h, i, j: (DOCUMENTS[i] == DOCUMENTS[j]) & mask_mod(i, j), 40, 40, None
    )
    call = from_flex(query, key, value, block_mask=block_mask, input_layout="TND")
    assert call.arguments["actual_seq_qlen"] == [7, 20, 21, 40, 47, 60, 61, 80]
    assert call.arguments["sparse_mode"] == mode
    expected = flex.flex_attention(query, key, value, block_mask=block_mask)
    out = call.run()[0].unflatten(0, (2, 40)).transpose(1, 2)
    torch.testing.assert_close(out, expected, **TOLERANCE)


def test_packing_refuses_what_packed_sequences_cannot_say() -> None:
    query = torch.randn(2, 2, 40, 8)
    attempts: dict[str, dict[str, Any]] = {
        "inside the documents": {
            "block_mask": mask_of(lambda b, h, i, j: (i + j) % 3 != 0, 40, 40, None)
        },
        "for each head": {
            "block_mask": create_block_mask(
                lambda b, h, i, j: i >= j + h, None, 2, 40, 40, device="cpu"
            )
        },
        "score_mod with packed": {"score_mod": lambda s, b, h, i, j: s + i},
    }
    for text, arguments in attempts.items():
        with pytest.raises(ConversionError, match=text):
            from_flex(query, query, query, **arguments, input_layout="TND")
    with pytest.raises(ConversionError, match="of 40 rows and 20 keys"):
        from_flex(query, query[:, :, :20], query[:, :, :20], input_layout="TND")
    with pytest.raises(ConversionError, match='"BNSD" or "TND"'):
        from_flex(query, query, query, input_layout="BSH")


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
TABLE = torch.randn(80, dtype=torch.float64)
TABLE_OF_PAIRS = torch.randn(2, 4, 40, 40, dtype=torch.float64)
ADDS: dict[str, Callable[..., Any]] = {
    "alibi": lambda s, b, h, i, j: s - SLOPES[h] * (i - j).abs(),
    "relative": lambda s, b, h, i, j: TABLE[i - j + 40] + s,
    "per batch": lambda s, b, h, i, j: s + b * j / 8,
    "table": lambda s, b, h, i, j: s + TABLE_OF_PAIRS[b, h, i, j],
    "nothing": lambda s, b, h, i, j: s,
}
CHANGES: dict[str, Callable[..., Any]] = {
    "softcap": lambda s, b, h, i, j: torch.tanh(s / 20) * 20,
    "factor": lambda s, b, h, i, j: s * 2,
    "double": lambda s, b, h, i, j: s + s,
    "negative": lambda s, b, h, i, j: j - s,
    "mask": lambda s, b, h, i, j: torch.where(i >= j, s, -torch.inf),
    "constant": lambda s, b, h, i, j: i * 1.0,
}


@pytest.mark.parametrize("name", ADDS)
def test_a_score_mod_that_adds(name: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 40, 8, dtype=torch.float64)
    block_mask = mask_of(lambda b, h, i, j: i >= j, 40, 40, None)
    arguments = {"score_mod": ADDS[name], "block_mask": block_mask}
    call = from_flex(query, key, value, **arguments)
    assert call.arguments["pse_type"] == 0
    expected = flex.flex_attention(query, key, value, **arguments)
    # The bias is read in float32, as FlexAttention's kernels compute it.
    torch.testing.assert_close(call.run()[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHANGES)
def test_a_score_mod_that_changes_scores_is_refused(name: str) -> None:
    query = torch.randn(2, 4, 40, 8)
    with pytest.raises(ConversionError, match="this score_mod"):
        from_flex(query, query, query, CHANGES[name])


def test_other_refusals() -> None:
    query = torch.randn(2, 4, 40, 8)
    with pytest.raises(ConversionError, match="enable_gqa=True"):
        from_flex(query, query[:, :2], query[:, :2])
    with pytest.raises(ConversionError, match="4 dimensions"):
        from_flex(query[0], query[0], query[0])
    causal = mask_of(lambda b, h, i, j: i >= j, 40, 40, None)
    with pytest.raises(ConversionError, match="the block mask is of 40 x 40"):
        from_flex(query[:, :, :8], query, query, block_mask=causal)
    contradiction = BlockMask.from_kv_blocks(
        torch.zeros(1, 1, 3, dtype=torch.int32), torch.zeros(1, 1, 3, 3, dtype=torch.int32),
        BLOCK_SIZE=16, mask_mod=lambda b, h, i, j: i >= j, seq_lengths=(40, 40),
    )  # fmt: skip
    with pytest.raises(ConversionError, match="outside of its blocks"):
        from_flex(query, query, query, block_mask=contradiction)
    dropout = bind("npu_fusion_attention", query, query, query, 4, "BNSD", keep_prob=0.5)
    with pytest.raises(ConversionError, match="dropout"):
        to_flex(dropout)


@pytest.mark.parametrize("spec", plain_specs(50), ids=lambda spec: str(spec.seed))
def test_to_flex(spec: cases.Spec) -> None:
    call = call_of(spec)
    arguments = to_flex(call)
    mask_mod = arguments.pop("mask_mod")
    query, key = arguments["query"], arguments["key"]
    if mask_mod is not None:
        arguments["block_mask"] = create_block_mask(
            mask_mod, *query.shape[:2], query.shape[2], key.shape[2], device="cpu"
        )
    geometry = Geometry.of(call.arguments)
    out = geometry.heads_first(call.run()[0], geometry.heads)
    torch.testing.assert_close(out, flex.flex_attention(**arguments), **TOLERANCE)


@pytest.mark.parametrize("pse_type", [2, 3])
def test_slopes_of_packed_sequences(pse_type: int) -> None:
    query = torch.randn(9, 2, 8, dtype=torch.float64)
    call = bind(
        "npu_fusion_attention_v2", query, query, query, 2, "TND", scale=0.3,
        actual_seq_qlen=[4, 9], actual_seq_kvlen=[4, 9],
        pse=torch.tensor([0.5, 0.25]), pse_type=pse_type, q_start_idx=[3], kv_start_idx=[1],
    )  # fmt: skip
    arguments = to_flex(call)
    block_mask = create_block_mask(arguments.pop("mask_mod"), None, None, 9, 9, device="cpu")
    expected = flex.flex_attention(**arguments, block_mask=block_mask)
    torch.testing.assert_close(call.run()[0], expected[0].transpose(0, 1), rtol=0, atol=1e-6)
