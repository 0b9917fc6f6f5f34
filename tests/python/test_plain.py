"""The short way of plain calls: who takes it, and that it gives what the general way gives."""

import threading
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fusion_attention
from fusion_attention import _library, _plain, npu_fusion_attention

CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
SHAPES = {
    "BNSD": ((2, 4, 9, 16), (2, 2, 9, 16)),
    "BSND": ((2, 9, 4, 16), (2, 9, 2, 16)),
    "BSH": ((2, 9, 64), (2, 9, 32)),
    "SBH": ((9, 2, 64), (9, 2, 32)),
    "TND": ((18, 4, 16), (18, 2, 16)),
}
ENDS = [9, 18]
PLAIN = {
    "no mask": {},
    "causal": {"atten_mask": CAUSAL, "sparse_mode": 2},
    "causal from the end": {"atten_mask": CAUSAL, "sparse_mode": 3},
    "dense": {"atten_mask": torch.rand(9, 9) > 0.5, "sparse_mode": 1},
    "dense, mode 0": {"atten_mask": torch.rand(9, 9) > 0.5},
    "band": {"atten_mask": CAUSAL, "sparse_mode": 4, "pre_tockens": 3, "next_tockens": 1},
    "band, mode 0": {"atten_mask": torch.rand(9, 9) > 0.5, "pre_tockens": 3, "next_tockens": 1},
    "bounds without a mask": {"pre_tockens": 65536, "next_tockens": 0},
}


def tensors(layout: str = "BNSD", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value of 4 and 2 heads."""
    q_shape, kv_shape = SHAPES[layout]
    return [
        torch.randn(shape).to(dtype).requires_grad_() for shape in (q_shape, kv_shape, kv_shape)
    ]


def call(version: str, inputs: list[Tensor], layout: str, options: dict[str, Any]) -> Any:
    """One call of 4 heads; _v2 spells two parameters in its own way."""
    if layout == "TND":
        options = options | {"actual_seq_qlen": ENDS, "actual_seq_kvlen": tuple(ENDS)}
    if version == "_v2":
        options = {name.replace("tockens", "tokens"): value for name, value in options.items()}
    function = getattr(fusion_attention, f"npu_fusion_attention{version}")
    return function(*inputs, 4, layout, scale=0.25, **options)


def both_ways(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What `run` returns, or the error that it raises, the usual way and the general one."""

    def outcome() -> Any:
        try:
            return run()
        except Exception as error:
            return type(error), str(error)

    usual = outcome()
    with monkeypatch.context() as patch:
        patch.setattr(_plain, "attention", lambda *_: None)
        return usual, outcome()


def refuse(*_: Any) -> None:
    """Stands in for the way that must not be taken."""
    raise AssertionError("this way must not be taken")


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("version", ["", "_v2", "_v3"])
@pytest.mark.parametrize("layout", ["BNSD", "TND"])
@pytest.mark.parametrize("recorded", [False, True])
def test_plain_calls_take_the_short_way(
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    version: str,
    layout: str,
    recorded: bool,
) -> None:
    monkeypatch.setattr(_library, "forward", refuse)
    monkeypatch.setattr(_library, "backward", refuse)
    inputs = tensors(layout)
    with torch.set_grad_enabled(recorded):
        out = call(version, inputs, layout, options)[0]
    if recorded:
        assert all(x is not None for x in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("version", ["", "_v2", "_v3"])
def test_both_ways_give_the_same(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], version: str
) -> None:
    for layout in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            inputs = tensors(layout, dtype)
            dy = torch.randn(SHAPES[layout][0]).to(dtype)

            def run(inputs: list[Tensor] = inputs, layout: str = layout, dy: Tensor = dy) -> Any:
                results = call(version, inputs, layout, options)
                return results, torch.autograd.grad(results[0], inputs, dy)

            (short, short_gradients), (long, long_gradients) = both_ways(monkeypatch, run)
            for a, b in zip((*short, *short_gradients), (*long, *long_gradients), strict=True):
                assert type(a) is type(b)
                if not isinstance(a, Tensor):
                    assert a == b
                    continue
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
                assert a.requires_grad == b.requires_grad
                assert torch.equal(a, b)


@pytest.mark.parametrize(
    "changed",
    [
        *({name: value} for name in ("inner_precise", "sparse_mode") for value in (0.0, "0", None)),
        *({name: value} for name in ("pre_tockens", "next_tockens") for value in (2.0**31, 2**70)),
        *({"keep_prob": value} for value in (0, 1, True, 2, "1.0", 1 + 0j, float("nan"))),
        *({"keep_prob": torch.ones(shape)} for shape in ((), 1, 2)),
        *({"softmax_layout": value} for value in (None, b"", "TND")),
        *({"scale": value} for value in (1, "0.5", float("inf"), None)),
        *({"input_layout": value} for value in (b"BNSD", "bnsd", "BNS", None)),
        *({"head_num": value} for value in (4.0, True, torch.tensor(4), torch.tensor(4.5), 3)),
        *({"prefix": value} for value in ([], torch.tensor([1]), 5)),
        {"actual_seq_qlen": [9]},
        {"actual_seq_kvlen": []},
        *({"atten_mask": value} for value in (CAUSAL.T, CAUSAL.float(), "mask")),
        *({"key": value} for value in (None, [1], torch.ones(2, device="meta"), torch.eye(3))),
        *({"key": value} for value in (torch.eye(3).to_sparse(), torch.eye(3).to_mkldnn())),
    ],
    ids=str,
)
def test_strange_arguments_get_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    query, key, value = (x.detach() for x in tensors())
    given = {"query": query, "key": key, "value": value, "head_num": 4, "input_layout": "BNSD"}
    if "atten_mask" in changed:
        given["sparse_mode"] = 2
    short, long = both_ways(monkeypatch, lambda: npu_fusion_attention(**given | changed))
    assert [str(x) for x in short] == [str(x) for x in long]


@pytest.mark.parametrize(
    "ends",
    [
        *([9.0, 18], [True, 18], [9, 2**70], [torch.tensor(9), 18], [torch.tensor(9.5), 18]),
        *(
            [9, 17],
            [9],
            [],
            None,
            5,
            torch.tensor([9, 18]),
            torch.tensor([9.0, 18.0]),
            iter([9, 18]),
        ),
    ],
    # Without an iterator's address: names must be the same in every process.
    ids=lambda ends: repr(ends).split(" at 0x")[0],
)
def test_lengths_of_all_kinds_get_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, ends: Any
) -> None:
    inputs = [x.detach() for x in tensors("TND")]
    given = {"actual_seq_qlen": ends, "actual_seq_kvlen": ENDS, "scale": 0.5}
    short, long = both_ways(
        monkeypatch,
        lambda: npu_fusion_attention(*inputs, 4, "TND", **{**given, "actual_seq_qlen": copy(ends)}),
    )
    assert [str(x) for x in short] == [str(x) for x in long]


def test_lengths_may_change_before_backward() -> None:
    inputs, ends = tensors("TND"), list(ENDS)
    outs = [
        npu_fusion_attention(*inputs, 4, "TND", actual_seq_qlen=given, actual_seq_kvlen=given)[0]
        for given in (ENDS, ends)
    ]
    ends[0] = 1
    expected, found = (torch.autograd.grad(out.sum(), inputs) for out in outs)
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_modes_and_transforms_see_the_general_operator() -> None:
    query = torch.randn(1, 4, 9, 16)

    def function(query: Tensor) -> Tensor:
        return npu_fusion_attention(query, query, query, 4, "BNSD", scale=0.25)[0]

    graph = make_fx(function)(query)
    targets = [node.target for node in graph.graph.nodes]
    assert torch.ops.fusion_attention.forward.default in targets
    assert not any("plain" in str(target) for target in targets)
    with FakeTensorMode() as mode:
        assert function(mode.from_tensor(query)).shape == query.shape
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.vmap(function)(query[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert function(query).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(function, (query,))(query), function(query))


@pytest.mark.parametrize(
    "watched",
    [
        lambda function, query: torch.func.grad(lambda x: function(x).sum())(query),
        lambda function, query: torch.func.vjp(function, query)[1](query)[0],
        lambda function, query: torch.vmap(lambda x: x + function(query))(query),
        lambda function, query: torch.vmap(function)(query[None]),
        lambda function, query: torch.jit.trace(function, query, check_trace=False)(query),
    ],
    ids=["grad", "vjp", "vmap around it", "vmap", "trace"],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_transforms_and_traces_get_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, watched: Callable[[Any, Tensor], Any], recorded: bool
) -> None:
    def function(query: Tensor) -> Tensor:
        return npu_fusion_attention(query, query, query, 4, "BNSD", scale=0.25)[0]

    query = torch.randn(1, 4, 9, 16, requires_grad=recorded)
    short, long = both_ways(monkeypatch, lambda: watched(function, query))
    assert type(short) is type(long)
    assert all(map(torch.equal, short, long)) if type(short) is Tensor else short == long


def test_the_gradient_of_the_gradient_is_refused() -> None:
    inputs = tensors()
    out = npu_fusion_attention(*inputs, 4, "BNSD")[0]
    gradient = torch.autograd.grad(out.sum(), inputs, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="gradient of the gradient"):
        gradient.sum().backward()


def test_changing_the_mask_before_backward_is_an_error() -> None:
    mask = torch.zeros(9, 9, dtype=torch.bool)
    out = npu_fusion_attention(*tensors(), 4, "BNSD", atten_mask=mask, sparse_mode=1)[0]
    mask.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_may_end_with_a_plain_call(use_reentrant: bool) -> None:
    # Recomputation stops by an exception in the hook of the last tensor that was saved.
    def attend(*inputs: Tensor) -> Tensor:
        return npu_fusion_attention(*(x * 2 for x in inputs), 4, "BNSD", scale=0.25)[0]

    inputs = tensors()
    checkpoint(attend, *inputs, use_reentrant=use_reentrant).sum().backward()
    expected = torch.autograd.grad(attend(*inputs).sum(), inputs)
    assert all(torch.equal(x.grad, y) for x, y in zip(inputs, expected, strict=True))


def test_what_hooks_of_saved_tensors_raise_is_heard() -> None:
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        raise ValueError("stop")

    with (
        pytest.raises(ValueError, match="stop"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        npu_fusion_attention(*tensors(), 4, "BNSD")
    assert len(packed) == 1


def test_autocast_and_meta_tensors_go_the_general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 4, 9, 16)
    taken = []
    general = _library.forward

    def forward(*arguments: Any) -> Any:
        taken.append(arguments[0].device.type)
        return general(*arguments)

    monkeypatch.setattr(_library, "forward", forward)
    for recorded in (False, True):
        query.requires_grad_(recorded)
        with torch.autocast("cpu", torch.bfloat16):
            assert npu_fusion_attention(query, query, query, 4, "BNSD")[0].dtype == torch.bfloat16
        meta = query.detach().to("meta").requires_grad_(recorded)
        assert npu_fusion_attention(meta, meta, meta, 4, "BNSD")[0].is_meta
    assert taken == ["cpu", "meta"] * 2


def test_a_call_is_not_taken_for_the_last_one() -> None:
    """One thread remembers one plan a direction: calls that differ in one thing, in turn."""
    base = {"query": torch.randn(1, 4, 9, 16), "layout": "BNSD", "scale": 0.25, "options": {}}
    others: list[dict[str, Any]] = [
        {"query": torch.randn(1, 4, 9, 8)},
        {"query": base["query"].double()},
        {"query": base["query"].transpose(1, 2), "layout": "BSND"},
        {"scale": 0.5},
        {"options": {"atten_mask": torch.rand(9, 9) > 0.5}},
        {"options": {"atten_mask": CAUSAL, "sparse_mode": 2}},
        {"options": {"atten_mask": CAUSAL, "sparse_mode": 4, "pre_tockens": 3, "next_tockens": 1}},
        {"options": {"inner_precise": 2}},
        {"options": {"keep_prob": 0.5, "seed": 5}},
    ]

    def run(query: Tensor, layout: str, scale: float, options: dict[str, Any]) -> list[Tensor]:
        query = query.detach().requires_grad_()
        out = npu_fusion_attention(query, query, query, 4, layout, scale=scale, **options)[0]
        return [out, *torch.autograd.grad(out.sum(), query)]

    def alone(call: dict[str, Any]) -> list[Tensor]:
        found: list[list[Tensor]] = []  # a new thread remembers nothing
        thread = threading.Thread(target=lambda: found.append(run(**call)))
        thread.start()
        thread.join()
        return found[0]

    for other in others:
        for call in (base, base | other, base, base | other):
            assert all(map(torch.equal, run(**call), alone(call)))
            with pytest.raises(RuntimeError, match="head_num"):
                npu_fusion_attention(base["query"], base["query"], base["query"], 3, "BNSD")


def test_a_scale_of_minus_zero_keeps_its_sign() -> None:
    query = torch.ones(1, 4, 9, 16, requires_grad=True)
    value = torch.randn(1, 4, 9, 16)

    def signs(scale: float) -> Tensor:
        out = npu_fusion_attention(query, query.detach(), value, 4, "BNSD", scale=scale)[0]
        (gradient,) = torch.autograd.grad(out, query, value)
        return gradient.signbit()

    plus, minus, again = signs(0.0), signs(-0.0), signs(0.0)
    assert torch.equal(plus, again)
    assert not torch.equal(plus, minus)
