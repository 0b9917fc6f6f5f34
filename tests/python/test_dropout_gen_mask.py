"""_npu_dropout_gen_mask: its bits by definition, and that they are those that the operator uses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import assert_same_bits, run
from known_bits import DTYPES, KNOWN
from oracle import keep_mask
from torch import Tensor
from torch.library import opcheck

from fusion_attention import _npu_dropout_gen_mask, npu_fusion_attention


def unpacked(mask: Tensor) -> Tensor:
    """The bits in order."""
    return ((mask[:, None] >> torch.arange(8)) & 1).flatten() == 1


@pytest.mark.parametrize(("seed", "offset", "dtype"), KNOWN)
def test_known_answers(seed: int, offset: int, dtype: torch.dtype) -> None:
    mask = _npu_dropout_gen_mask(torch.empty(0, dtype=dtype), [1, 2, 4, 16], 0.1, seed, offset)
    assert mask.dtype == torch.uint8
    assert bytes(mask.tolist()).hex() == KNOWN[seed, offset, dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep_prob", [0.999, 0.9, 0.3, 0.001])
def test_whole_blocks_of_bits_by_definition(keep_prob: float, dtype: torch.dtype) -> None:
    seed, offset = 2**64 - 3, 2**40 + 20  # an unsigned seed, and more than 32 bits
    drop_prob = (1 - torch.tensor(keep_prob, dtype=torch.float32)).item()
    for numels in (1, 127, 128, 129, 20_000):
        mask = _npu_dropout_gen_mask(
            torch.empty(0, dtype=dtype), [numels], drop_prob, seed, offset, parallel=False
        )
        assert mask.shape == (-(-numels // 128) * 16,)
        count = mask.numel() * 8
        assert torch.equal(unpacked(mask), keep_mask(seed, offset, count, keep_prob, dtype))


@pytest.mark.parametrize("size", [[], [0], [3, 0, 5], [7, 11], torch.Size([2, 3, 4])])
def test_the_ends_of_p_and_any_size(size: Any) -> None:
    count = -(-torch.Size(size).numel() // 128) * 16
    for p, byte in ((0, 255), (0.0, 255), (1, 0), (1.0, 0)):
        mask = _npu_dropout_gen_mask(torch.empty(1), size, p, 5, 0)
        assert torch.equal(mask, torch.full((count,), byte, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BNSD", "TND"])
def test_the_operator_uses_the_same_bits(layout: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, 37, 16) if layout == "BNSD" else (37, 3, 16)
    query, key, value, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    call = {"query": query, "key": key, "value": value, "head_num": 3, "input_layout": layout}
    call |= {"scale": 0.25, "keep_prob": 0.7}
    if layout == "TND":
        call |= {"actual_seq_qlen": [5, 20, 37], "actual_seq_kvlen": [9, 20, 36]}
    generated = run(call | {"seed": 9, "offset": 16}, dy)
    drop_prob = (1 - torch.tensor(0.7)).item()
    mask = _npu_dropout_gen_mask(query, [generated["numels"]], drop_prob, 9, 16)
    external = run(call | {"dropout_mask": mask}, dy)
    names = ("out", "softmax_max", "softmax_sum", "dq", "dk", "dv")
    assert_same_bits(external, generated, *names)


def test_threads_change_no_bit() -> None:
    threads = torch.get_num_threads()
    try:
        masks = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            masks.append(_npu_dropout_gen_mask(torch.empty(0), [100_003], 0.3, 1, 4))
        assert all(torch.equal(mask, masks[0]) for mask in masks)
    finally:
        torch.set_num_threads(threads)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "negative p": (lambda: _npu_dropout_gen_mask(torch.empty(1), [4], -0.1, 0, 0), "expected p "),
    "p above 1": (lambda: _npu_dropout_gen_mask(torch.empty(1), [4], 1.5, 0, 0), "expected p "),
    "nan": (lambda: _npu_dropout_gen_mask(torch.empty(1), [4], float("nan"), 0, 0), "expected p "),
    "dtype": (lambda: _npu_dropout_gen_mask(torch.ones(1).int(), [4], 0.5, 0, 0), "expected self "),
    "no tensor": (lambda: _npu_dropout_gen_mask(3, [4], 0.5, 0, 0), "expected self "),
    "extent": (lambda: _npu_dropout_gen_mask(torch.empty(1), [-4], 0.5, 0, 0), "expected size "),
    "size": (lambda: _npu_dropout_gen_mask(torch.empty(1), [0.5], 0.5, 0, 0), "expected size "),
    "too many": (
        lambda: _npu_dropout_gen_mask(torch.empty(1), [2**62, 2**62], 0.5, 0, 0),
        "expected size ",
    ),
    "seed": (lambda: _npu_dropout_gen_mask(torch.empty(1), [4], 0.5, "1", 0), "expected seed "),
    "offset": (lambda: _npu_dropout_gen_mask(torch.empty(1), [4], 0.5, 1, ""), "expected offset "),
    "word": (lambda: _npu_dropout_gen_mask(torch.empty(1), [4], 0.5, 2**64, 0), "expected seed "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name: str) -> None:
    call, text = REFUSED[name]
    with pytest.raises(RuntimeError, match=f"^npu_fusion_attention: {text}"):
        call()


def test_an_impossible_size_is_out_of_memory() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="could not allocate"):
        _npu_dropout_gen_mask(torch.empty(1), [2**60], 0.5, 1, 0)


def test_the_operator_behind_it() -> None:
    words = torch.tensor(3), torch.tensor(4)
    operator = torch.ops.fusion_attention.dropout_mask.default
    for dtype in DTYPES:
        opcheck(operator, (torch.empty(2, dtype=dtype), 1000, 0.25, *words))
    meta = _npu_dropout_gen_mask(torch.empty(2, device="meta"), [2, 700], 0.25, 3, 4)
    assert meta.is_meta
    assert meta.shape == (176,)


def test_in_a_graph_with_the_pair_of_a_call() -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def golden(query: Tensor) -> tuple[Tensor, int, int]:
        *_, seed, offset, _ = npu_fusion_attention(query, query, query, 4, "BNSD", keep_prob=0.5)
        size = [*query.shape[:3], query.shape[2]]
        return _npu_dropout_gen_mask(query, size, 0.5, seed, offset), seed, offset

    for batch, tokens in ((2, 9), (3, 40)):
        mask, seed, offset = golden(torch.randn(batch, 4, tokens, 8))
        size = [batch, 4, tokens, tokens]
        expected = _npu_dropout_gen_mask(torch.empty(0), size, 0.5, seed, offset)
        assert torch.equal(mask, expected)
