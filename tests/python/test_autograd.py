"""The operator under autograd and torch.func: who gets gradients, what is refused and saved."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

BATCH, HEADS, TOKENS, DIM = 2, 2, 9, 8


def leaves(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every differentiable argument."""
    kv_shape = (BATCH, 1, TOKENS, DIM)
    return {
        "query": torch.randn(BATCH, HEADS, TOKENS, DIM, dtype=dtype, requires_grad=True),
        "key": torch.randn(kv_shape, dtype=dtype, requires_grad=True),
        "value": torch.randn(kv_shape, dtype=dtype, requires_grad=True),
        "pse": torch.randn(1, HEADS, 1, TOKENS, dtype=dtype, requires_grad=True),
        "sink": torch.randn(HEADS, requires_grad=True),
    }


def out_of(tensors: dict[str, Tensor], **keywords: Any) -> Tensor:
    """attention_out of one call."""
    given = {"head_num": HEADS, "input_layout": "BNSD", "scale": 0.5, **keywords}
    return npu_fusion_attention(**tensors, **given)[0]


def gradients_by_hand(tensors: dict[str, Tensor], dy: Tensor, **keywords: Any) -> dict[str, Any]:
    """The gradient entry's results for the same call."""
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    out, softmax_max, softmax_sum, _, seed, offset, numels = npu_fusion_attention(
        **plain, head_num=HEADS, input_layout="BNSD", scale=0.5, **keywords
    )
    gradients = npu_fusion_attention_grad(
        plain.pop("query"),
        plain.pop("key"),
        plain.pop("value"),
        dy,
        HEADS,
        "BNSD",
        softmax_max=softmax_max,
        softmax_sum=softmax_sum,
        attention_in=out,
        scale_value=0.5,
        **{**keywords, "seed": seed, "offset": offset, "numels": numels},
        **plain,
    )
    return dict(zip(("query", "key", "value", "pse", "sink"), gradients, strict=True))


@pytest.mark.parametrize("keywords", [{}, {"keep_prob": 0.5, "seed": 3, "offset": 4}])
def test_autograd_equals_the_gradient_entry(keywords: dict[str, Any]) -> None:
    tensors = leaves()
    dy = torch.randn(BATCH, HEADS, TOKENS, DIM)
    out_of(tensors, **keywords).backward(dy)
    expected = gradients_by_hand(tensors, dy, **keywords)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad, expected[name]), name
        assert tensor.grad.dtype == tensor.dtype


@pytest.mark.parametrize("wanted", ["query", "key", "value", "pse", "sink"])
def test_each_argument_alone_gets_its_gradient(wanted: str) -> None:
    everything = leaves()
    dy = torch.randn(BATCH, HEADS, TOKENS, DIM)
    expected = gradients_by_hand(everything, dy)
    alone = {name: tensor.detach() for name, tensor in everything.items()}
    alone[wanted].requires_grad_()
    out = out_of(alone)
    assert out.requires_grad
    out.backward(dy)
    for name, tensor in alone.items():
        assert (tensor.grad is not None) == (name == wanted)
    assert torch.equal(alone[wanted].grad, expected[wanted])


def test_without_requires_grad_nothing_is_recorded() -> None:
    plain = {name: tensor.detach() for name, tensor in leaves().items()}
    assert not out_of(plain).requires_grad
    with torch.no_grad():
        assert not out_of(leaves()).requires_grad


def test_gradcheck_in_double() -> None:
    tensors = leaves(torch.float64)
    names = ("query", "key", "value", "pse")
    sink = torch.randn(HEADS)
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)

    def function(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return out_of(
            {**given, "sink": sink}, atten_mask=mask, sparse_mode=1, keep_prob=0.75, seed=5
        )

    assert torch.autograd.gradcheck(function, [tensors[name] for name in names], fast_mode=False)


def test_statistics_are_not_differentiable() -> None:
    result = npu_fusion_attention(**leaves(), head_num=HEADS, input_layout="BNSD")
    assert result[0].requires_grad
    for tensor in result[1:4]:
        assert not tensor.requires_grad


def test_an_unused_output_gives_zero_gradients() -> None:
    class NoGradient(torch.autograd.Function):
        """Passes no gradient on."""

        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> None:
            return None

    tensors = leaves()
    NoGradient.apply(out_of(tensors)).sum().backward()
    for tensor in tensors.values():
        assert tensor.grad is not None
        assert torch.count_nonzero(tensor.grad) == 0


def test_any_strides_of_dy_are_read_right() -> None:
    tensors = leaves()
    dy = torch.randn(BATCH, HEADS, DIM, TOKENS).transpose(2, 3)
    inputs = list(tensors.values())
    expected = torch.autograd.grad(out_of(tensors), inputs, dy.contiguous())
    for strange in (dy, dy.clone()):
        for a, b in zip(
            torch.autograd.grad(out_of(tensors), inputs, strange), expected, strict=True
        ):
            assert torch.equal(a, b)
    expanded = torch.autograd.grad(out_of(tensors).sum(), inputs)
    ones = torch.autograd.grad(out_of(tensors), inputs, torch.ones_like(dy.contiguous()))
    assert all(torch.equal(*pair) for pair in zip(expanded, ones, strict=True))


@pytest.mark.parametrize("changed", ["query", "key", "value", "pse", "sink", "out"])
def test_changing_what_backward_needs_is_an_error(changed: str) -> None:
    tensors = {name: tensor * 1 for name, tensor in leaves().items()}
    out = out_of(tensors)
    with torch.no_grad():
        (out if changed == "out" else tensors[changed]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_changing_a_mask_in_place_is_an_error() -> None:
    mask = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    out = out_of(leaves(), atten_mask=mask, sparse_mode=1)
    mask.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_double_backward_is_refused() -> None:
    tensors = leaves()
    (gradient,) = torch.autograd.grad(out_of(tensors).sum(), tensors["query"], create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of the gradient is not implemented"):
        gradient.sum().backward()


def test_differentiating_the_gradient_entry_is_refused() -> None:
    tensors = leaves()
    out, softmax_max, softmax_sum, *_ = npu_fusion_attention(
        **tensors, head_num=HEADS, input_layout="BNSD"
    )
    dq, *_ = npu_fusion_attention_grad(
        tensors["query"],
        tensors["key"],
        tensors["value"],
        torch.ones_like(out),
        HEADS,
        "BNSD",
        pse=tensors["pse"],
        sink=tensors["sink"],
        softmax_max=softmax_max,
        softmax_sum=softmax_sum,
        attention_in=out,
    )
    with pytest.raises(NotImplementedError, match="gradient of the gradient is not implemented"):
        dq.sum().backward()


def test_retained_graphs_can_be_walked_twice() -> None:
    tensors = leaves()
    inputs = list(tensors.values())
    out = out_of(tensors, keep_prob=0.5)
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), inputs)


def test_saved_tensor_hooks_see_inputs_and_results() -> None:
    tensors = leaves()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = out_of(tensors)
    expected = torch.autograd.grad(out_of(tensors).sum(), list(tensors.values()))
    given = torch.autograd.grad(out.sum(), list(tensors.values()))
    assert all(torch.equal(*pair) for pair in zip(given, expected, strict=True))
    assert len(packed) == len(tensors) + 3


def test_torch_func_transforms() -> None:
    tensors = leaves()
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    expected = torch.autograd.grad(out_of(tensors).square().sum(), tensors["query"])[0]
    given = torch.func.grad(lambda query: out_of({**plain, "query": query}).square().sum())
    assert torch.equal(given(plain["query"]), expected)

    dy = torch.randn(BATCH, HEADS, TOKENS, DIM)
    torch.manual_seed(2)
    out, pull_back = torch.func.vjp(
        lambda key: out_of({**plain, "key": key}, keep_prob=0.5), plain["key"]
    )
    torch.manual_seed(2)
    recorded = out_of(tensors, keep_prob=0.5)
    assert torch.equal(out, recorded)
    assert torch.equal(pull_back(dy)[0], torch.autograd.grad(recorded, tensors["key"], dy)[0])


@pytest.mark.parametrize("keep_prob", [1.0, 0.5])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_vmap_is_refused(grad_mode: bool, keep_prob: float) -> None:
    plain = {name: tensor.detach() for name, tensor in leaves().items()}
    many = torch.randn(3, BATCH, HEADS, TOKENS, DIM)
    with (
        torch.set_grad_enabled(grad_mode),
        pytest.raises(NotImplementedError, match="npu_fusion_attention: vmap is not implemented"),
    ):
        torch.vmap(lambda query: out_of({**plain, "query": query}, keep_prob=keep_prob))(many)


@pytest.mark.parametrize("grad_mode", [True, False])
def test_forward_mode_differentiation_is_refused(grad_mode: bool) -> None:
    plain = {name: tensor.detach() for name, tensor in leaves().items()}
    query = plain.pop("query")
    with torch.set_grad_enabled(grad_mode), forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError):
            out_of({"query": dual, **plain})


def test_second_derivatives_in_torch_func_are_refused() -> None:
    plain = {name: tensor.detach() for name, tensor in leaves().items()}

    def loss(query: Tensor) -> Tensor:
        return out_of({**plain, "query": query}).sum()

    with pytest.raises(NotImplementedError, match="gradient of the gradient is not implemented"):
        torch.func.grad(lambda query: torch.func.grad(loss)(query).sum())(plain["query"])
