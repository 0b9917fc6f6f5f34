"""torch.compile and torch.export: whole graphs, forward and backward, bit for bit as in eager."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

HEADS, DIM = 4, 16
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
BACKENDS = ["aot_eager", "inductor"]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """query, key and value."""
    return [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]


def run(function: Callable[..., Any], tensors: list[Tensor]) -> list[Any]:
    """The results of a call from a known random state, then the gradients and the state after."""
    torch.manual_seed(31)
    results = list(function(*tensors))
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if wanted:
        weights = torch.linspace(-1, 1, results[0].numel()).view_as(results[0])
        loss = (results[0] * weights.to(results[0].dtype)).float().sum()
        results += torch.autograd.grad(loss, wanted, allow_unused=True)
    return [*results, torch.get_rng_state()]


def assert_same(function: Callable[..., Any], tensors: list[Tensor], **options: Any) -> None:
    """The function compiled as one graph equals itself."""
    expected = run(function, tensors)
    compiled = torch.compile(function, fullgraph=True, **options)
    for _ in range(2):
        for a, b in zip(run(compiled, tensors), expected, strict=True):
            if isinstance(b, Tensor):
                assert torch.equal(a, b)
            else:
                assert (type(a), a) == (type(b), b)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"atten_mask": CAUSAL, "sparse_mode": 2},
    "dropout": {"keep_prob": 0.5},
    "dropout with a pair": {"keep_prob": 0.5, "seed": 5, "offset": 4},
    "no dropout": {"keep_prob": 1.0, "seed": 5},
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "aot_eager") for name in CALLS), ("causal", "inductor"), ("dropout", "inductor")],
)
def test_whole_graph_equals_eager(name: str, dynamic: bool, backend: str) -> None:
    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        return npu_fusion_attention(query, key, value, HEADS, "BNSD", scale=0.25, **CALLS[name])

    assert_same(function, leaves(2, HEADS, 33, DIM), backend=backend, dynamic=dynamic)


@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "BNSD", "TND"])
def test_every_layout_and_a_16_bit_dtype(layout: str) -> None:
    shapes = {"BSH": (2, 9, 64), "SBH": (9, 2, 64), "BSND": (2, 9, 4, 16), "BNSD": (2, 4, 9, 16)}
    lengths = [3, 7, 9] if layout == "TND" else None

    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        return npu_fusion_attention(
            query,
            key,
            value,
            HEADS,
            layout,
            keep_prob=0.8,
            actual_seq_qlen=lengths,
            actual_seq_kvlen=lengths,
        )

    tensors = leaves(*shapes.get(layout, (9, 4, 16)), dtype=torch.bfloat16)
    for dynamic in (False, True):
        torch._dynamo.reset()
        assert_same(function, tensors, backend="aot_eager", dynamic=dynamic)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pse_sink_and_strange_strides(backend: str) -> None:
    query, key, value = (tensor.detach() for tensor in leaves(2, 33, HEADS, DIM))
    tensors = [tensor.transpose(1, 2).requires_grad_() for tensor in (query, key, value)]
    pse = torch.randn(1, HEADS, 1, 33, requires_grad=True)
    sink = torch.randn(HEADS, requires_grad=True)

    def function(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> tuple[Any, ...]:
        pse, sink = rest
        return npu_fusion_attention(
            query, key, value, HEADS, "BNSD", pse=pse.expand(2, -1, -1, -1), sink=sink
        )

    assert_same(function, [*tensors, pse, sink], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(backend: str) -> None:
    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        return npu_fusion_attention(query, key, value, HEADS, "BNSD", keep_prob=0.5)

    plain = [tensor.detach() for tensor in leaves(2, HEADS, 9, DIM)]
    assert_same(function, plain, backend=backend)
    with torch.inference_mode():
        assert_same(function, plain, backend=backend)


def test_one_tensor_may_be_query_key_and_value() -> None:
    def attention(query: Tensor) -> tuple[Any, ...]:
        return npu_fusion_attention(query, query, query, HEADS, "BNSD", keep_prob=0.5)

    assert_same(attention, [leaves(2, HEADS, 9, DIM)[0].detach()], backend="aot_eager")
    query = leaves(2, HEADS, 9, DIM)[0]
    torch.manual_seed(1)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    given = torch.autograd.grad(compiled(query)[0].sum(), query)
    torch.manual_seed(1)
    # The three gradients are added up in another order than by the eager engine.
    expected = torch.autograd.grad(attention(query)[0].sum(), query)
    torch.testing.assert_close(given, expected)


def test_dynamic_shapes_compile_once() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    @torch.compile(fullgraph=True, dynamic=True, backend=counting)
    def function(query: Tensor, key: Tensor) -> tuple[Any, ...]:
        return npu_fusion_attention(query, key, key, HEADS, "BNSD", keep_prob=0.5)

    for batch, q_len, kv_len in ((2, 9, 11), (3, 17, 5), (5, 40, 41)):
        query = torch.randn(batch, HEADS, q_len, DIM)
        key = torch.randn(batch, HEADS, kv_len, DIM)
        *_, numels = function(query, key)
        assert numels == batch * HEADS * q_len * kv_len
    assert graphs == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_lengths_as_tensors_stay_in_the_graph(dtype: torch.dtype, backend: str) -> None:
    lengths = torch.tensor([3, 20, 40], dtype=dtype)

    def function(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        return npu_fusion_attention(
            query,
            key,
            value,
            HEADS,
            "TND",
            atten_mask=CAUSAL,
            sparse_mode=3,
            keep_prob=0.5,
            actual_seq_qlen=lengths,
            actual_seq_kvlen=lengths,
        )

    tensors = [*leaves(40, HEADS, DIM), lengths]
    assert_same(function, tensors, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    compiled(*tensors)
    tensors[3] = torch.tensor([7, 8, 39], dtype=dtype)
    with torch.compiler.set_stance("fail_on_recompile"):
        given = run(compiled, tensors)
    for a, b in zip(given, run(function, tensors), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    tensors[3] = torch.tensor([7, 3, 40], dtype=dtype)
    with pytest.raises(RuntimeError) as eager:
        function(*tensors)
    with pytest.raises(RuntimeError) as in_graph:
        compiled(*tensors)
    assert str(in_graph.value) == str(eager.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_gradient_entry(dynamic: bool, backend: str) -> None:
    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        out, softmax_max, softmax_sum, _, seed, offset, numels = npu_fusion_attention(
            query, key, value, HEADS, "BNSD", keep_prob=0.5
        )
        return npu_fusion_attention_grad(
            query,
            key,
            value,
            torch.ones_like(out),
            HEADS,
            "BNSD",
            softmax_max=softmax_max,
            softmax_sum=softmax_sum,
            attention_in=out,
            keep_prob=0.5,
            seed=seed,
            offset=offset,
            numels=numels,
        )[:3]

    tensors = [tensor.detach() for tensor in leaves(2, HEADS, 33, DIM)]
    assert_same(function, tensors, backend=backend, dynamic=dynamic)


def test_a_mask_of_wrong_content_is_refused_at_run_time_before_the_draw() -> None:
    def function(query: Tensor, mask: Tensor) -> Tensor:
        return npu_fusion_attention(
            query, query, query, HEADS, "BNSD", atten_mask=mask, sparse_mode=2, keep_prob=0.5
        )[0]

    query = torch.randn(2, HEADS, 9, DIM)
    for backend in BACKENDS:
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        compiled(query, CAUSAL)
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="npu_fusion_attention: expected atten_mask"):
            compiled(query, ~CAUSAL)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_calls_draw_two_pairs(backend: str) -> None:
    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        first = npu_fusion_attention(query, key, value, HEADS, "BNSD", keep_prob=0.5)
        second = npu_fusion_attention(query, key, value, HEADS, "BNSD", keep_prob=0.5)
        return first[0] + second[0], first[4], first[5], second[4], second[5]

    assert_same(function, leaves(2, HEADS, 9, DIM), backend=backend)
    results = run(torch.compile(function, fullgraph=True, backend=backend), leaves(2, 4, 9, 16))
    assert results[2] != results[4]


def test_inside_a_module_with_checkpointing_and_autocast() -> None:
    class Block(torch.nn.Module):
        """A projection and attention on it."""

        def __init__(self) -> None:
            super().__init__()
            self.projection = torch.nn.Linear(64, 192)

        def attend(self, tokens: Tensor) -> Tensor:
            query, key, value = self.projection(tokens).chunk(3, dim=-1)
            return npu_fusion_attention(query, key, value, HEADS, "BSH", keep_prob=0.5)[0]

        def forward(self, tokens: Tensor) -> Tensor:
            return checkpoint(self.attend, tokens, use_reentrant=False)

    block = Block()
    tokens = torch.randn(2, 9, 64)

    def gradients(module: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(tokens)
        assert out.dtype == torch.bfloat16
        return out, *torch.autograd.grad(out.float().square().sum(), list(block.parameters()))

    expected = gradients(block)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled), expected, strict=True):
        assert torch.equal(a, b)


def test_export() -> None:
    class Attention(torch.nn.Module):
        """One call."""

        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return npu_fusion_attention(query, key, key, HEADS, "BNSD", scale=0.25)[0]

    query, key = torch.randn(2, HEADS, 9, DIM), torch.randn(2, HEADS, 11, DIM)
    batch, tokens = torch.export.Dim("batch", max=4096), torch.export.Dim("tokens", max=4096)
    program = torch.export.export(
        Attention(),
        (query, key),
        dynamic_shapes={"query": {0: batch, 2: tokens}, "key": {0: batch}},
    )
    longer, wider = torch.randn(3, HEADS, 21, DIM), torch.randn(3, HEADS, 11, DIM)
    assert torch.equal(program.module()(longer, wider), Attention()(longer, wider))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_call_is_one_operator(strict: bool) -> None:
    class Attention(torch.nn.Module):
        """One plain call."""

        def forward(self, query: Tensor) -> Tensor:
            return npu_fusion_attention(query, query, query, HEADS, "BNSD", scale=0.25)[0]

    program = torch.export.export(Attention(), (torch.randn(2, HEADS, 9, DIM),), strict=strict)
    called = [str(x.target) for x in program.graph.nodes if "fusion_attention" in str(x.target)]
    assert called == ["fusion_attention.forward.default"]
