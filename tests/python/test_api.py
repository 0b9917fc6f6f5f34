"""The public signatures: every way to pass arguments, every result, any strides, sizes of zero.

Values are compared with the same call in another form; whether they are right is the business of
test_differential.py.
"""

import doctest
import inspect
import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusion_attention
from fusion_attention import api, npu_fusion_attention, npu_fusion_attention_grad

BATCH, HEADS, TOKENS, DIM = 2, 4, 33, 16
SHAPES = {
    "BSH": (BATCH, TOKENS, HEADS * DIM),
    "SBH": (TOKENS, BATCH, HEADS * DIM),
    "BSND": (BATCH, TOKENS, HEADS, DIM),
    "BNSD": (BATCH, HEADS, TOKENS, DIM),
    "TND": (TOKENS, HEADS, DIM),
}
LENGTHS = [5, 5, 20, 33]


def inputs(layout: str = "BNSD", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """query, key and value of random numbers."""
    return [torch.randn(SHAPES[layout]).to(dtype) for _ in range(3)]


def assert_equal(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    """The results of two calls are the same, bit for bit."""
    for a, b in zip(first, second, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert type(a) is type(b)
            assert a == b


def test_docstring_examples_run() -> None:
    for module in (fusion_attention, api):
        assert doctest.testmod(module).failed == 0


def test_parameters_are_those_of_the_page_then_the_newer_ones() -> None:
    assert " ".join(inspect.signature(npu_fusion_attention).parameters) == (
        "query key value head_num input_layout pse padding_mask atten_mask scale keep_prob "
        "pre_tockens next_tockens inner_precise prefix actual_seq_qlen actual_seq_kvlen "
        "sparse_mode gen_mask_parallel sync softmax_layout sink dropout_mask seed offset"
    )


def test_positional_and_keyword_calls_are_the_same() -> None:
    query, key, value = inputs()
    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    values = [query, key, value, HEADS, "BNSD", None, None, mask, 0.25, 1, 40, 0, 0]
    values += [None, None, None, 4, True, False, "", None, None, 0, 0]
    names = list(inspect.signature(npu_fusion_attention).parameters)
    expected = npu_fusion_attention(*values)
    for split in range(len(names) + 1):
        keywords = dict(zip(names[split:], values[split:], strict=True))
        assert_equal(npu_fusion_attention(*values[:split], **keywords), expected)


@pytest.mark.parametrize("layout", SHAPES)
def test_results_have_the_documented_form(layout: str) -> None:
    lengths = LENGTHS if layout == "TND" else None
    query, key, value = inputs(layout, torch.bfloat16)
    result = npu_fusion_attention(
        query, key, value, HEADS, layout, actual_seq_qlen=lengths, actual_seq_kvlen=lengths
    )
    out, softmax_max, softmax_sum, reserved, seed, offset, numels = result
    assert out.shape == query.shape
    assert out.dtype == torch.bfloat16
    statistics = (TOKENS, HEADS, 8) if layout == "TND" else (BATCH, HEADS, TOKENS, 8)
    for statistic in (softmax_max, softmax_sum):
        assert statistic.shape == statistics
        assert statistic.dtype == torch.float32
        assert torch.equal(statistic, statistic[..., :1].expand(statistics))
    assert reserved.shape == (0,)
    assert reserved.dtype == query.dtype
    assert (seed, offset) == (0, 0)
    packed = HEADS * (5 * 5 + 15 * 15 + 13 * 13)
    assert numels == (packed if layout == "TND" else BATCH * HEADS * TOKENS * TOKENS)


@pytest.mark.parametrize("layout", SHAPES)
def test_letter_case_of_the_layout_does_not_matter(layout: str) -> None:
    tensors = inputs(layout)
    lengths = LENGTHS if layout == "TND" else None
    keywords = {"actual_seq_qlen": lengths, "actual_seq_kvlen": lengths}
    upper = npu_fusion_attention(*tensors, HEADS, layout, **keywords)
    assert_equal(npu_fusion_attention(*tensors, HEADS, layout.lower(), **keywords), upper)


@pytest.mark.parametrize(
    "lengths",
    [
        tuple(LENGTHS),
        [np.int64(n) for n in LENGTHS],
        np.array(LENGTHS),
        torch.tensor(LENGTHS),
        torch.tensor(LENGTHS, dtype=torch.int32),
        list(torch.tensor(LENGTHS)),
        range(0),
    ],
    ids=["tuple", "numpy ints", "array", "int64 tensor", "int32 tensor", "0-dim tensors", "empty"],
)
def test_lengths_may_come_in_any_form(lengths: Any) -> None:
    layout = "TND" if len(lengths) else "BNSD"
    plain = LENGTHS if len(lengths) else None
    tensors = inputs(layout)
    given = npu_fusion_attention(
        *tensors, HEADS, layout, actual_seq_qlen=lengths, actual_seq_kvlen=lengths
    )
    expected = npu_fusion_attention(
        *tensors, HEADS, layout, actual_seq_qlen=plain, actual_seq_kvlen=plain
    )
    assert_equal(given, expected)


def test_scalars_may_be_numpy_numbers_and_integers() -> None:
    tensors = inputs()
    expected = npu_fusion_attention(*tensors, HEADS, "BNSD", scale=2.0, inner_precise=2)
    given = npu_fusion_attention(
        *tensors, np.int32(HEADS), "BNSD", scale=2, keep_prob=1, inner_precise=np.int64(2)
    )
    assert_equal(given, expected)


def test_switches_without_effect_change_nothing() -> None:
    tensors = inputs()
    results = [
        npu_fusion_attention(
            *tensors, HEADS, "BNSD", keep_prob=0.5, seed=3, gen_mask_parallel=parallel, sync=sync
        )
        for parallel in (True, False)
        for sync in (True, False)
    ]
    for result in results[1:]:
        assert_equal(result, results[0])


def test_trailing_zeros_switch_sequences_off_and_count_nothing() -> None:
    query, key, value = inputs("TND")
    out, softmax_max, softmax_sum, *_, numels = npu_fusion_attention(
        query, key, value, HEADS, "TND", actual_seq_qlen=[5, 9, 0], actual_seq_kvlen=[4, 9, 0]
    )
    assert numels == HEADS * (5 * 4 + 4 * 5)
    for tensor in (out, softmax_max.view(-1)[9 * HEADS * 8 :], softmax_sum.view(-1)[9 * 32 :]):
        assert torch.count_nonzero(tensor[9:] if tensor is out else tensor) == 0


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _sliced(tensor: Tensor) -> Tensor:
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] * 3 + 2), float("nan"))
    wide[..., 1:-1:3] = tensor
    return wide[..., 1:-1:3]


def _offset(tensor: Tensor) -> Tensor:
    flat = torch.empty(tensor.numel() + 3)
    flat[3:] = tensor.reshape(-1)
    return flat[3:].view(tensor.shape)


@pytest.mark.parametrize("form", [_transposed, _sliced, _offset])
@pytest.mark.parametrize("layout", SHAPES)
def test_strides_and_offsets_change_nothing(layout: str, form: Any) -> None:
    lengths = LENGTHS if layout == "TND" else None
    keywords = {"actual_seq_qlen": lengths, "actual_seq_kvlen": lengths}
    query, key, value = inputs(layout)
    expected = npu_fusion_attention(query, key, value, HEADS, layout, **keywords)
    strange = [form(tensor) for tensor in (query, key, value)]
    assert_equal(npu_fusion_attention(*strange, HEADS, layout, **keywords), expected)

    dy = torch.randn_like(query)
    results = {"softmax_max": expected[1], "softmax_sum": expected[2], "attention_in": expected[0]}
    gradients = npu_fusion_attention_grad(
        query, key, value, dy, HEADS, layout, **results, **keywords
    )
    strange_results = {name: form(tensor) for name, tensor in results.items()}
    strange_gradients = npu_fusion_attention_grad(
        *strange, form(dy), HEADS, layout, **strange_results, **keywords
    )
    assert_equal(strange_gradients, gradients)


def test_expanded_tensors_equal_their_copies() -> None:
    query = torch.randn(1, HEADS, TOKENS, 1).expand(BATCH, HEADS, TOKENS, DIM)
    key = torch.randn(BATCH, 1, 1, DIM).expand(BATCH, HEADS, TOKENS, DIM)
    value = torch.randn(1, HEADS, 1, DIM).expand(BATCH, HEADS, TOKENS, DIM)
    mask = torch.rand(1, 1, TOKENS, 1).gt(0.5).expand(BATCH, 1, TOKENS, TOKENS)
    pse = torch.randn(1, HEADS, 1, 1).expand(BATCH, HEADS, 1, TOKENS)
    keywords = {"atten_mask": mask, "pse": pse, "sparse_mode": 1}
    expanded = npu_fusion_attention(query, key, value, HEADS, "BNSD", **keywords)
    tensors = [tensor.contiguous() for tensor in (query, key, value)]
    keywords |= {"atten_mask": mask.contiguous(), "pse": pse.contiguous()}
    assert_equal(expanded, npu_fusion_attention(*tensors, HEADS, "BNSD", **keywords))


def test_bool_and_byte_masks_with_any_nonzero_byte_are_the_same() -> None:
    tensors = inputs()
    mask = torch.rand(TOKENS, TOKENS) > 0.5
    expected = npu_fusion_attention(*tensors, HEADS, "BNSD", atten_mask=mask, sparse_mode=1)
    for byte in (1, 2, 128, 255):
        given = npu_fusion_attention(
            *tensors, HEADS, "BNSD", atten_mask=mask.to(torch.uint8) * byte, sparse_mode=1
        )
        assert_equal(given, expected)


@pytest.mark.parametrize(("batch", "q_len", "kv_len"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_empty_tensors_give_zeros_forward_and_backward(batch: int, q_len: int, kv_len: int) -> None:
    query = torch.randn(batch, 2, q_len, 8, requires_grad=True)
    key, value = (torch.randn(batch, 2, kv_len, 8, requires_grad=True) for _ in range(2))
    out, softmax_max, softmax_sum, *_, numels = npu_fusion_attention(query, key, value, 2, "BNSD")
    assert out.shape == query.shape
    assert softmax_max.shape == softmax_sum.shape == (batch, 2, q_len, 8)
    assert numels == 0
    gradients = torch.autograd.grad(out.sum(), (query, key, value))
    for result, like in zip((out, *gradients), (query, query, key, value), strict=True):
        assert result.shape == like.shape
        assert torch.count_nonzero(result) == 0


def test_inputs_are_never_written() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    pse = torch.randn(1, HEADS, TOKENS, TOKENS, requires_grad=True)
    mask = torch.rand(TOKENS, TOKENS) > 0.5
    sink = torch.randn(HEADS, requires_grad=True)
    tensors = (query, key, value, pse, mask, sink)
    before = [tensor.detach().clone() for tensor in tensors]
    out = npu_fusion_attention(
        query, key, value, HEADS, "BNSD", pse=pse, atten_mask=mask, sparse_mode=1, sink=sink
    )[0]
    out.sum().backward()
    assert all(torch.equal(*pair) for pair in zip(tensors, before, strict=True))


def test_results_do_not_depend_on_threads() -> None:
    tensors = inputs("BSND", torch.float16)
    dy = torch.randn(SHAPES["BSND"]).half()

    def everything() -> tuple[Any, ...]:
        result = npu_fusion_attention(*tensors, HEADS, "BSND", keep_prob=0.8, seed=9)
        gradients = npu_fusion_attention_grad(
            *tensors,
            dy,
            HEADS,
            "BSND",
            softmax_max=result[1],
            softmax_sum=result[2],
            attention_in=result[0],
            keep_prob=0.8,
            seed=9,
        )
        return *result, *gradients

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = everything()
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert_equal(everything(), expected)
    finally:
        torch.set_num_threads(before)

    results: list[tuple[Any, ...]] = []
    callers = [threading.Thread(target=lambda: results.append(everything())) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == len(callers)
    for result in results:
        assert_equal(result, expected)


def test_a_forked_child_computes_the_same_with_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        tensors = inputs()
        expected = npu_fusion_attention(*tensors, HEADS, "BNSD")
        torch.ones(1 << 20).add_(1)  # PyTorch's own threads are running when the process forks
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for threads in (4, 2):
                    torch.set_num_threads(threads)
                    assert_equal(npu_fusion_attention(*tensors, HEADS, "BNSD"), expected)
                status = 0
            finally:
                os._exit(status)
        killer = threading.Timer(30, os.kill, (child, 9))
        killer.start()
        _, status = os.waitpid(child, 0)
        killer.cancel()
        assert status == 0
    finally:
        torch.set_num_threads(before)


def test_gradient_entry_returns_none_for_what_is_absent() -> None:
    query, key, value = inputs()
    sink = torch.randn(HEADS)
    pse = torch.randn(1, HEADS, 1, TOKENS)
    for given in ({}, {"sink": sink}, {"pse": pse}, {"sink": sink, "pse": pse}):
        out, softmax_max, softmax_sum, *_, numels = npu_fusion_attention(
            query, key, value, HEADS, "BNSD", **given
        )
        *_, dpse, dsink = npu_fusion_attention_grad(
            query,
            key,
            value,
            torch.ones_like(out),
            HEADS,
            "BNSD",
            softmax_max=softmax_max,
            softmax_sum=softmax_sum,
            attention_in=out,
            numels=numels,
            **given,
        )
        assert (dpse is None) == ("pse" not in given)
        assert (dsink is None) == ("sink" not in given)
        assert dpse is None or dpse.shape == pse.shape
        assert dsink is None or (dsink.shape == sink.shape and dsink.dtype == torch.float32)


def test_autocast_casts_as_for_scaled_dot_product_attention() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    pse = torch.randn(1, HEADS, 1, TOKENS, requires_grad=True)
    sink = torch.randn(HEADS)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            out = npu_fusion_attention(query, key, value, HEADS, "BNSD", pse=pse, sink=sink)[0]
            sdpa = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            assert out.dtype == sdpa.dtype == dtype
            mixed = npu_fusion_attention(query.half(), key.bfloat16(), value, HEADS, "BNSD")[0]
            assert mixed.dtype == dtype
            exact = [tensor.detach().double() for tensor in (query, key, value)]
            assert npu_fusion_attention(*exact, HEADS, "BNSD")[0].dtype == torch.float64
        by_hand = [tensor.to(dtype) for tensor in (query, key, value)]
        expected = npu_fusion_attention(*by_hand, HEADS, "BNSD", pse=pse.to(dtype), sink=sink)[0]
        assert torch.equal(out, expected)
        gradients = torch.autograd.grad(out.float().sum(), (query, key, value, pse))
        assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_lazily_negated_tensors_are_resolved() -> None:
    lazy = torch.randn(SHAPES["BNSD"], dtype=torch.complex64).conj().imag
    assert lazy.is_neg()
    eager = lazy.resolve_neg()
    given = npu_fusion_attention(lazy, lazy, lazy, HEADS, "BNSD")
    assert_equal(given, npu_fusion_attention(eager, eager, eager, HEADS, "BNSD"))


@pytest.mark.parametrize("layout", SHAPES)
def test_meta_tensors_give_shapes(layout: str) -> None:
    lengths = LENGTHS if layout == "TND" else None
    keywords: dict[str, Any] = {"actual_seq_qlen": lengths, "actual_seq_kvlen": lengths}
    query = inputs(layout)[0]
    real = npu_fusion_attention(query, query, query, HEADS, layout, **keywords)
    meta = query.to("meta")
    fake = npu_fusion_attention(meta, meta, meta, HEADS, layout, keep_prob=0.5, **keywords)
    for a, b in zip(real[:4], fake[:4], strict=True):
        assert b.is_meta
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    assert fake[4:] == (0, 0, real[6])


def test_inference_mode() -> None:
    tensors = inputs()
    expected = npu_fusion_attention(*tensors, HEADS, "BNSD")
    with torch.inference_mode():
        result = npu_fusion_attention(*tensors, HEADS, "BNSD")
        assert result[0].is_inference()
        assert_equal(result, expected)
