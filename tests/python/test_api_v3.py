"""npu_fusion_attention_v3: the same numbers as npu_fusion_attention, in a form for graphs."""

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from calls import assert_same_bits, forward_and_backward, gradient
from case_tensors import compressed_mask
from torch import Tensor

from fusion_attention import (
    api_v3,
    npu_fusion_attention,
    npu_fusion_attention_grad_v3,
    npu_fusion_attention_v3,
)

HEADS, TOKENS, DIM = 4, 33, 16
SHAPES = {
    "BSH": (2, TOKENS, HEADS * DIM),
    "SBH": (TOKENS, 2, HEADS * DIM),
    "BSND": (2, TOKENS, HEADS, DIM),
    "BNSD": (2, HEADS, TOKENS, DIM),
    "TND": (TOKENS, HEADS, DIM),
}
ENDS = [5, 5, 20, TOKENS]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def call_in(layout: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Any], Tensor]:
    """A causal call with dropout and sink, and a gradient of its result."""
    query, key, value, dy = (torch.randn(SHAPES[layout]).to(dtype) for _ in range(4))
    call = {"query": query, "key": key, "value": value, "head_num": HEADS, "input_layout": layout}
    call |= {"scale": 0.25, "keep_prob": 0.6, "sink": torch.randn(HEADS)}
    call |= {"atten_mask": compressed_mask(3), "sparse_mode": 3}
    if layout == "TND":
        call |= {"actual_seq_qlen": ENDS, "actual_seq_kvlen": ENDS}
    return call, dy


def test_docstring_examples_run() -> None:
    assert doctest.testmod(api_v3).failed == 0


def test_parameters() -> None:
    assert " ".join(inspect.signature(npu_fusion_attention_v3).parameters) == (
        "query key value head_num input_layout pse padding_mask atten_mask scale keep_prob "
        "pre_tockens next_tockens inner_precise prefix actual_seq_qlen actual_seq_kvlen "
        "sparse_mode gen_mask_parallel sync softmax_layout sink"
    )
    gradient_names = inspect.signature(npu_fusion_attention_grad_v3).parameters
    assert "numels" not in gradient_names
    assert all(
        parameter.kind is parameter.KEYWORD_ONLY for parameter in list(gradient_names.values())[6:]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", SHAPES)
def test_same_bits_as_the_first_version(layout: str, dtype: torch.dtype) -> None:
    call, dy = call_in(layout, dtype)
    torch.manual_seed(5)
    expected = forward_and_backward(call, dy, version=1)
    lengths = {n: torch.tensor(v) for n, v in call.items() if n.startswith("actual_seq")}
    for given in (call, call | lengths):
        torch.manual_seed(5)
        actual = forward_and_backward(given, dy, version=3)
        seed, offset = actual.pop("seed"), actual.pop("offset")
        assert_same_bits(actual, expected)
        for word in (seed, offset):
            assert (word.shape, word.dtype, word.device.type) == ((1,), torch.int64, "cpu")
        assert (seed.item(), offset.item()) == (5, 0)


def test_positional_calls() -> None:
    query = torch.randn(SHAPES["BNSD"])
    pse = torch.randn(1, HEADS, 1, TOKENS)
    given = npu_fusion_attention_v3(query, query, query, HEADS, "BNSD", pse, None, None, 0.5, 1)
    expected = npu_fusion_attention(query, query, query, HEADS, "BNSD", pse, scale=0.5)
    assert all(torch.equal(*pair) for pair in zip(given[:4], expected[:4], strict=True))


def test_without_dropout_the_pair_is_zeros_and_nothing_is_drawn() -> None:
    query = torch.randn(SHAPES["BNSD"])
    before = torch.get_rng_state()
    *_, seed, offset = npu_fusion_attention_v3(query, query, query, HEADS, "BNSD")
    assert torch.equal(seed, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(offset, seed)
    assert seed is not offset
    with pytest.raises(RuntimeError, match="expected scale"):
        npu_fusion_attention_v3(query, query, query, HEADS, "BNSD", scale=1e50, keep_prob=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_forms_of_the_pair_for_the_gradient() -> None:
    call, dy = call_in("BNSD")
    out, row_max, row_sum, _, seed, offset = npu_fusion_attention_v3(**call)
    saved = {"softmax_max": row_max, "softmax_sum": row_sum, "attention_in": out}
    expected = gradient(call, dy, saved | {"seed": seed, "offset": offset}, version=3)
    forms = [(seed[0], offset[0]), (seed.item(), offset.item()), (seed[None], offset[None])]
    for first, second in forms:
        actual = gradient(call, dy, saved | {"seed": first, "offset": second}, version=3)
        assert_same_bits(actual, expected, "dq", "dk", "dv", "dsink")
    for wrong in (None, torch.zeros(2, dtype=torch.int64), torch.zeros(1), "1"):
        with pytest.raises(RuntimeError, match=r"^npu_fusion_attention: expected seed to be"):
            gradient(call, dy, saved | {"seed": wrong, "offset": offset}, version=3)
        with pytest.raises(RuntimeError, match=r"^npu_fusion_attention: expected offset to be"):
            gradient(call, dy, saved | {"seed": seed, "offset": wrong}, version=3)
    call["keep_prob"] = 1.0  # then nobody looks at them
    gradient(call, dy, saved | {"seed": None, "offset": None}, version=3)


def test_autograd_equals_the_gradient_entry() -> None:
    call, dy = call_in("TND")
    names = ("query", "key", "value", "sink")
    leaves = {name: call[name].clone().requires_grad_() for name in names}
    torch.manual_seed(5)
    out = npu_fusion_attention_v3(**call | leaves)[0]
    found = torch.autograd.grad(out, list(leaves.values()), dy)
    torch.manual_seed(5)
    expected = forward_and_backward(call, dy, version=3)
    actual = dict(zip(("dq", "dk", "dv", "dsink"), found, strict=True))
    assert_same_bits(actual, expected, *actual)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_whole_graph_with_dropout_and_lengths_that_only_the_run_knows(backend: str) -> None:
    call, dy = call_in("TND")
    tensors = [call.pop(name) for name in ("query", "key", "value")]
    del call["actual_seq_qlen"], call["actual_seq_kvlen"]

    def both(query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        lengths = {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
        out, row_max, row_sum, _, seed, offset = npu_fusion_attention_v3(
            query, key, value, **call, **lengths
        )
        settings = {n: v for n, v in call.items() if n not in ("head_num", "input_layout", "scale")}
        gradients = npu_fusion_attention_grad_v3(
            query,
            key,
            value,
            dy,
            HEADS,
            "TND",
            softmax_max=row_max,
            softmax_sum=row_sum,
            attention_in=out,
            scale_value=call["scale"],
            seed=seed,
            offset=offset,
            **settings,
            **lengths,
        )
        return out, row_max, row_sum, seed, offset, *gradients[:3], gradients[4]

    compiled = torch.compile(both, fullgraph=True, backend=backend)
    for first, ends in enumerate(([5, 5, 20, 33], [1, 30, 31, 33])):
        torch.manual_seed(7)
        expected = both(*tensors, torch.tensor(ends))
        torch.manual_seed(7)
        with torch.compiler.set_stance("fail_on_recompile" if first else "default"):
            actual = compiled(*tensors, torch.tensor(ends))
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_autograd_in_a_graph(dynamic: bool) -> None:
    def loss(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, *_, seed, offset = npu_fusion_attention_v3(
            query, key, key, HEADS, "BNSD", scale=0.25, keep_prob=0.5
        )
        return out.square().sum(), seed, offset

    query, key = (torch.randn(SHAPES["BNSD"], requires_grad=True) for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = []
    for function in (loss, compiled):
        torch.manual_seed(3)
        value, seed, offset = function(query, key)
        found.append((value, seed, offset, *torch.autograd.grad(value, (query, key))))
    for eager, in_graph in zip(*found, strict=True):
        # dk and dv of the one tensor are added up in another order than by the eager engine.
        torch.testing.assert_close(in_graph, eager)
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_meta_tensors_and_autocast() -> None:
    query = torch.randn(SHAPES["BNSD"])
    meta = query.to("meta")
    out, row_max, *_, seed, offset = npu_fusion_attention_v3(
        meta, meta, meta, HEADS, "BNSD", keep_prob=0.5
    )
    assert (out.shape, row_max.shape) == (query.shape, (2, HEADS, TOKENS, 8))
    assert seed.shape == offset.shape == (1,)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = npu_fusion_attention_v3(query, query, query, HEADS, "BNSD")[0]
    plain = query.bfloat16()
    assert torch.equal(low, npu_fusion_attention_v3(plain, plain, plain, HEADS, "BNSD")[0])


def test_vmap_and_double_backward_are_refused() -> None:
    query = torch.randn(SHAPES["BNSD"], requires_grad=True)

    def attend(query: Tensor) -> Tensor:
        return npu_fusion_attention_v3(query, query, query, HEADS, "BNSD")[0]

    with pytest.raises(NotImplementedError, match="vmap is not implemented"):
        torch.vmap(attend)(query.detach()[None])
    (dq,) = torch.autograd.grad(attend(query).sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of the gradient"):
        dq.sum().backward()
