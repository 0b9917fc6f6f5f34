"""npu_fusion_attention_v2: its signature, its words, and what it has in common with the first.

What its bias kinds, start indices and ropes compute is compared in test_bias_and_rope.py.
"""

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from calls import V2_ONLY, assert_same_bits, forward, forward_and_backward, gradient, run
from case_tensors import case, compressed_mask
from torch import Tensor

from fusion_attention import (
    api_v2,
    npu_fusion_attention,
    npu_fusion_attention_grad_v2,
    npu_fusion_attention_v2,
)

BATCH, HEADS, TOKENS, DIM, ROPE = 2, 4, 33, 16, 8
ENDS = [5, 20, TOKENS]
BIASES = ("0", "1", "2", "3")
KINDS = (*BIASES, "ropes")
GRADIENTS = {
    "query": "dq",
    "key": "dk",
    "value": "dv",
    "pse": "dpse",
    "query_rope": "dq_rope",
    "key_rope": "dk_rope",
    "sink": "dsink",
}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(kind: str) -> dict[str, Tensor]:
    """The differentiable arguments of a kind of call: a pse_type, or ropes (which exclude pse)."""
    if kind == "ropes":
        shapes = {"query": (TOKENS, HEADS, DIM), "key": (TOKENS, HEADS // 2, DIM)}
        shapes |= {"value": shapes["key"], "query_rope": (TOKENS, HEADS, ROPE)}
        shapes |= {"key_rope": (TOKENS, HEADS // 2, ROPE)}
    else:
        shapes = {"query": (BATCH, HEADS, TOKENS, DIM), "key": (BATCH, HEADS // 2, TOKENS, DIM)}
        shapes |= {"value": shapes["key"]}
        shapes |= {"pse": (BATCH, HEADS) if kind in ("2", "3") else (1, HEADS, 1, TOKENS)}
    shapes |= {"sink": (HEADS,)}
    return {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}


def settings(kind: str) -> dict[str, Any]:
    """The other arguments of that call."""
    call: dict[str, Any] = {"head_num": HEADS, "scale": 0.2}
    call |= {"sparse_mode": 3, "atten_mask": compressed_mask(3)}
    if kind == "ropes":
        return call | {"input_layout": "TND", "actual_seq_qlen": ENDS, "actual_seq_kvlen": ENDS}
    call |= {"input_layout": "BNSD", "pse_type": int(kind), "keep_prob": 0.6}
    return call | ({"q_start_idx": [3], "kv_start_idx": [1]} if kind in ("2", "3") else {})


def detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, asking for no gradients."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def test_docstring_examples_run() -> None:
    assert doctest.testmod(api_v2).failed == 0


def test_parameters() -> None:
    parameters = inspect.signature(npu_fusion_attention_v2).parameters
    assert " ".join(parameters) == (
        "query key value head_num input_layout pse padding_mask atten_mask query_rope key_rope "
        "scale keep_prob pre_tokens next_tokens inner_precise prefix actual_seq_qlen "
        "actual_seq_kvlen sparse_mode gen_mask_parallel sync pse_type q_start_idx kv_start_idx "
        "softmax_layout sink dropout_mask seed offset"
    )
    gradient_parameters = inspect.signature(npu_fusion_attention_grad_v2).parameters
    for names, free in ((parameters, 5), (gradient_parameters, 6)):
        kinds = [parameter.kind for parameter in names.values()]
        assert set(kinds[free:]) == {inspect.Parameter.KEYWORD_ONLY}
        assert set(kinds[:free]) == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("seed", range(520_000, 520_080))
def test_same_bits_as_the_first_version(seed: int) -> None:
    sample = case(seed)
    call = {name: value for name, value in sample.call.items() if name not in V2_ONLY}
    if sample.call.get("pse_type", 1) >= 2:
        del call["pse"]  # slopes mean nothing to the first version
    expected = forward_and_backward(call, sample.dy, version=1)
    assert_same_bits(forward_and_backward(call, sample.dy, version=2), expected)


def test_drawn_pairs_are_those_of_the_first_version() -> None:
    query = torch.randn(1, HEADS, 9, DIM)
    results = []
    for function in (npu_fusion_attention, npu_fusion_attention_v2):
        torch.manual_seed(11)
        calls = [function(query, query, query, HEADS, "BNSD", keep_prob=0.5) for _ in range(2)]
        results.append([call[4:] for call in calls])
        assert all(type(number) is int for call in calls for number in call[4:])
    assert results[0] == results[1]


def test_errors_spell_the_parameters_as_the_function_does() -> None:
    query = torch.randn(1, HEADS, 9, DIM)
    mask = torch.zeros(9, 9, dtype=torch.bool)
    broken: list[dict[str, Any]] = [
        {"pre_tokens": -9},
        {"next_tokens": -9},
        {"pre_tokens": -3, "next_tokens": 1},
        {"pre_tokens": 0.5},
        {"next_tokens": "2"},
        {"next_tokens": 2**63},
    ]
    for words in broken:
        with pytest.raises(RuntimeError) as error:
            npu_fusion_attention_v2(query, query, query, HEADS, "BNSD", atten_mask=mask, **words)
        text = str(error.value)
        assert "tockens" not in text
        assert text.startswith("npu_fusion_attention: expected "), text
        assert "_tokens" in text


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_errors_of_a_running_graph_spell_them_so_too(backend: str) -> None:
    query = torch.randn(9, HEADS, DIM)

    @torch.compile(fullgraph=True, backend=backend)
    def attend(query: Tensor, ends: Tensor) -> Tensor:
        return npu_fusion_attention_v2(
            query,
            query,
            query,
            HEADS,
            "TND",
            atten_mask=torch.zeros(5, 5, dtype=torch.bool),
            next_tokens=-1,
            actual_seq_qlen=ends,
            actual_seq_kvlen=ends,
        )[0]

    with pytest.raises(RuntimeError, match="expected next_tokens to be at least 0"):
        attend(query, torch.tensor([4, 9]))


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_equals_the_gradient_entry(kind: str) -> None:
    tensors, call = leaves(kind), settings(kind) | {"seed": 3, "offset": 4}
    dy = torch.randn_like(tensors["query"])
    out = npu_fusion_attention_v2(**tensors, **call)[0]
    found = torch.autograd.grad(out, list(tensors.values()), dy)
    expected = forward_and_backward(detached(tensors) | call, dy, version=2)
    names = [GRADIENTS[name] for name in tensors]
    assert_same_bits(dict(zip(names, found, strict=True)), expected, *names)
    for tensor, gradient_of in zip(tensors.values(), found, strict=True):
        assert (gradient_of.shape, gradient_of.dtype) == (tensor.shape, tensor.dtype)
        assert gradient_of.count_nonzero() > 0


@pytest.mark.parametrize(
    ("kind", "wanted"), [("0", "pse"), ("2", "pse"), ("ropes", "query_rope"), ("ropes", "key_rope")]
)
def test_each_argument_alone_gets_its_gradient(kind: str, wanted: str) -> None:
    plain, call = detached(leaves(kind)), settings(kind) | {"seed": 3}
    dy = torch.randn_like(plain["query"])
    expected = forward_and_backward(plain | call, dy)
    alone = plain | {wanted: plain[wanted].clone().requires_grad_()}
    npu_fusion_attention_v2(**alone, **call)[0].backward(dy)
    name = GRADIENTS[wanted]
    assert_same_bits({name: alone[wanted].grad}, expected, name)
    assert all(alone[other].grad is None for other in plain if other != wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_entry_returns_none_for_what_is_absent(kind: str) -> None:
    plain, call = detached(leaves(kind)), settings(kind) | {"seed": 3}
    dy = torch.randn_like(plain["query"])
    for given in (plain, {name: tensor for name, tensor in plain.items() if name != "sink"}):
        results = run(given | call, dy, version=2)
        absent = {gradient_of for name, gradient_of in GRADIENTS.items() if name not in given}
        assert {name for name, value in results.items() if value is None} == absent


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_slopes_alone(kind: str) -> None:
    plain, call = detached(leaves(kind)), settings(kind) | {"seed": 3}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = npu_fusion_attention_v2(**plain, **call)[0]
    assert out.dtype == torch.bfloat16
    kept = ("sink", "pse") if kind in ("2", "3") else ("sink",)
    cast = {n: x if n in kept else x.bfloat16() for n, x in plain.items()}
    assert torch.equal(out, npu_fusion_attention_v2(**cast, **call)[0])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("kind", "backend"), [*((kind, "aot_eager") for kind in KINDS), ("2", "inductor")]
)
def test_whole_graph_equals_eager(kind: str, dynamic: bool, backend: str) -> None:
    tensors, call = leaves(kind), settings(kind)

    def attend(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
        return npu_fusion_attention_v2(**tensors, **call)

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend=backend)
    results = []
    for function in (attend, compiled):
        torch.manual_seed(2)
        result = function(tensors)
        found = torch.autograd.grad(result[0].square().sum(), list(tensors.values()))
        results.append([*result, *found])
    for eager, in_graph in zip(*results, strict=True):
        assert torch.equal(eager, in_graph) if isinstance(eager, Tensor) else eager == in_graph


@pytest.mark.parametrize("kind", ["3", "ropes"])
def test_the_gradient_entry_in_a_graph(kind: str) -> None:
    call = detached(leaves(kind)) | settings(kind) | {"seed": 3}
    dy = torch.randn_like(call["query"])
    out, row_max, row_sum, *_ = forward(call, version=2)
    saved = {"softmax_max": row_max, "softmax_sum": row_sum, "attention_in": out}

    def differentiate(dy: Tensor) -> dict[str, Any]:
        return {n: x for n, x in gradient(call, dy, saved, version=2).items() if x is not None}

    compiled = torch.compile(differentiate, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(dy), differentiate(dy))


@pytest.mark.parametrize("kind", KINDS)
def test_meta_tensors_give_shapes(kind: str) -> None:
    tensors, call = detached(leaves(kind)), settings(kind)
    dy = torch.randn_like(tensors["query"])
    real = forward_and_backward(tensors | call, dy, version=2)
    call["atten_mask"] = call["atten_mask"].to("meta")
    metas = {name: tensor.to("meta") for name, tensor in tensors.items()}
    fake = forward_and_backward(metas | call, dy.to("meta"), version=2)
    assert fake.keys() == real.keys()
    for name, tensor in real.items():
        assert fake[name].is_meta
        assert (fake[name].shape, fake[name].dtype) == (tensor.shape, tensor.dtype)


def test_vmap_is_refused() -> None:
    tensors, call = detached(leaves("ropes")), settings("ropes")
    many = tensors["query_rope"].expand(3, -1, -1, -1)

    def attend(rope: Tensor) -> Tensor:
        return npu_fusion_attention_v2(**tensors | {"query_rope": rope}, **call)[0]

    with pytest.raises(NotImplementedError, match="vmap is not implemented"):
        torch.vmap(attend)(many)
