"""npu_ring_attention_update: merged parts are the whole, and parts without weight vanish."""

import doctest
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bounds import excess
from oracle import FLT_MAX, attention
from torch import Tensor

from fusion_attention import api_ring, npu_fusion_attention, npu_ring_attention_update

B, N, S, D = 2, 3, 10, 8
ENDS = [0, 4, 4, 9]  # of T = S tokens; the last token belongs to no sequence
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Part = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def part(layout: str = "SBH", dtype: torch.dtype = torch.float32, seed: int = 0) -> Part:
    """attention_out and statistics of no call in particular."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    out = randn(S, B, N * D) if layout == "SBH" else randn(S, N, D)
    rows = (B, N, S, 1) if layout == "SBH" else (S, N, 1)
    row_max, row_sum = (x.expand(*rows[:-1], 8).clone() for x in (randn(*rows), randn(*rows)))
    return out.to(dtype), row_max * 3, row_sum.exp()


def masked(like: Part, count: float) -> Part:
    """What a block reports in which no row sees a key."""
    out, row_max, row_sum = like
    return (
        torch.zeros_like(out),
        torch.full_like(row_max, -FLT_MAX),
        torch.full_like(row_sum, count),
    )


def blocks(rows: Tensor, given: Any) -> Tensor:
    """[T, N, 8] in the order of the default layout: [N, S, 8] a sequence, one after another."""
    ends = [0, *(int(end) for end in given if end), S]
    parts = [rows[a:b].transpose(0, 1).reshape(-1, 8) for a, b in itertools.pairwise(ends)]
    return torch.cat(parts).view_as(rows)


def assert_same(first: Part, second: Part) -> None:
    """The same bits, signs of zeros aside."""
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_docstring_example_runs() -> None:
    assert doctest.testmod(api_ring).failed == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_the_formula_in_float64(layout: str, dtype: torch.dtype) -> None:
    first, second = part(layout, dtype, 1), part(layout, dtype, 2)
    options = {"input_layout": layout.lower(), "input_softmax_layout": "TND"}
    out, row_max, row_sum = npu_ring_attention_update(*first, *second, **options)
    max1, sum1, max2, sum2 = (x.double() for x in (*first[1:], *second[1:]))
    merged_max = torch.maximum(max1, max2)
    weight1, weight2 = sum1 * (max1 - merged_max).exp(), sum2 * (max2 - merged_max).exp()

    def share(weight: Tensor, values: Tensor) -> Tensor:
        scale = (weight / (weight1 + weight2))[..., :1]
        if layout == "SBH":
            scale = scale.permute(2, 0, 1, 3).expand(S, B, N, D).flatten(2)
        return values.double() * scale

    expected = share(weight1, first[0]) + share(weight2, second[0])
    unit = {torch.float64: 2.0**-50, torch.float32: 2.0**-21, torch.float16: 2.0**-10.9}
    close = {"rtol": unit.get(dtype, 2.0**-7.9), "atol": unit.get(dtype, 2.0**-7.9) / 8}
    torch.testing.assert_close(out.double(), expected, **close)
    assert torch.equal(row_max.double(), merged_max)
    torch.testing.assert_close(row_sum.double(), weight1 + weight2, rtol=1e-6, atol=0)
    assert (out.dtype, row_max.dtype, row_sum.dtype) == (dtype, torch.float32, torch.float32)
    assert all(x.is_contiguous() for x in (out, row_max, row_sum))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_two_halves_of_the_keys_are_the_whole(layout: str, dtype: torch.dtype) -> None:
    shape = (S, B, N * D) if layout == "SBH" else (S, N, D)
    query, key, value = (torch.randn(shape).to(dtype) for _ in range(3))
    call = {"query": query, "key": key, "value": value, "head_num": N, "input_layout": layout}
    ends: dict[str, Any] = {}
    cut = [[slice(0, 3)], [slice(3, S)]]
    if layout == "TND":  # the sequences' first two keys, then the rest of them
        call |= {"actual_seq_qlen": [4, 10], "actual_seq_kvlen": [4, 10]}
        cut = [[slice(0, 2), slice(4, 6)], [slice(2, 4), slice(6, 10)]]
        ends = {"actual_seq_qlen": torch.tensor([4, 10]), "input_layout": layout}
    exact = attention(call)
    parts = []
    for slices, kv_ends in zip(cut, ([2, 4], [2, 6]), strict=True):
        some = {name: torch.cat([call[name][x] for x in slices]) for name in ("key", "value")}
        if layout == "TND":
            some["actual_seq_kvlen"] = kv_ends
        parts.append(npu_fusion_attention(**call | some)[:3])
    for order in (parts, parts[::-1]):
        merged = npu_ring_attention_update(*order[0], *order[1], **ends)
        for name, result in zip(("out", "softmax_max", "softmax_sum"), merged, strict=True):
            # Two parts and their merge round once each; their statistics are float32 always.
            assert excess(name, result, getattr(exact, name), torch.float32) <= 3, name


@pytest.mark.parametrize("count", [7.0, FLT_MAX])
@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_a_block_that_nobody_sees_vanishes(layout: str, count: float) -> None:
    options = {"input_layout": layout, "input_softmax_layout": "TND"}
    for dtype in DTYPES:
        real = part(layout, dtype)
        nothing = masked(real, count)
        assert_same(npu_ring_attention_update(*real, *nothing, **options), real)
        assert_same(npu_ring_attention_update(*nothing, *real, **options), real)
        still = npu_ring_attention_update(*nothing, *nothing, **options)
        assert_same(still, masked(real, min(2 * count, FLT_MAX)))
        for _ in range(3):
            still = npu_ring_attention_update(*still, *nothing, **options)
        assert all(x.isfinite().all() for x in still)
        assert_same(npu_ring_attention_update(*still, *real, **options), real)


def test_rows_without_keys_vanish_whatever_the_other_maximum_is() -> None:
    out, row_max, row_sum = part()
    none = torch.zeros_like(out), torch.zeros_like(row_max), torch.zeros_like(row_sum)
    for height in (-1e4, -200.0, 0.0, 1e4, -FLT_MAX):
        real = out, torch.full_like(row_max, height), row_sum
        assert_same(npu_ring_attention_update(*real, *none), real)
        assert_same(npu_ring_attention_update(*none, *real), real)
    assert_same(npu_ring_attention_update(*none, *none), none)


@pytest.mark.parametrize(
    "ends",
    [
        ENDS,
        tuple(ENDS[1:]),
        torch.tensor(ENDS),
        torch.tensor([4, 4, 9, 0, 0], dtype=torch.int32),
        [4, 9, 9, 10],
    ],
    ids=["leading zero", "tuple", "tensor", "unused sequences", "whole"],
)
def test_statistics_in_blocks_are_the_same_in_another_order(ends: Any) -> None:
    first, second = part("TND", seed=1), part("TND", seed=2)
    expected = npu_ring_attention_update(
        *first, *second, input_layout="TND", input_softmax_layout="TND"
    )
    in_blocks = [
        x if index % 3 == 0 else blocks(x, ends) for index, x in enumerate((*first, *second))
    ]
    for name in ("", "SBH"):
        out, row_max, row_sum = npu_ring_attention_update(
            *in_blocks, actual_seq_qlen=ends, input_layout="TND", input_softmax_layout=name
        )
        assert_same(
            (out, row_max, row_sum), (expected[0], *(blocks(x, ends) for x in expected[1:]))
        )


def test_strides_change_nothing() -> None:
    tensors = [*part(seed=1), *part(seed=2)]
    strange = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in tensors]
    assert_same(npu_ring_attention_update(*strange), npu_ring_attention_update(*tensors))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_in_a_graph_with_lengths_that_only_the_run_knows(backend: str) -> None:
    def update(first: Part, second: Part, ends: Tensor) -> Part:
        return npu_ring_attention_update(*first, *second, actual_seq_qlen=ends, input_layout="TND")

    compiled = torch.compile(update, fullgraph=True, backend=backend)
    first, second = part("TND", seed=1), part("TND", seed=2)
    for ends in ([4, 9], [3, 3, 10], [0, 7]):
        expected = update(first, second, torch.tensor(ends))
        for a, b in zip(compiled(first, second, torch.tensor(ends)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # inductor fuses and has own exp
    for ends in ([4, 2, 10], [4, 0, 10], [-1, 10], [4, 11]):
        with pytest.raises(RuntimeError, match="expected actual_seq_qlen to be non-decreasing"):
            compiled(first, second, torch.tensor(ends))
    compiled(first, second, torch.tensor([0, 4, 4, 9, 0, 0]))


def test_in_a_graph_of_dynamic_shapes_and_on_meta_tensors() -> None:
    compiled = torch.compile(
        npu_ring_attention_update, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    first, second = part(seed=1), part(seed=2)
    assert_same(compiled(*first, *second), npu_ring_attention_update(*first, *second))
    for layout in ("SBH", "TND"):
        metas = [x.to("meta") for x in (*part(layout), *part(layout))]
        results = npu_ring_attention_update(*metas, input_layout=layout, actual_seq_qlen=[4, 10])
        for result, like in zip(results, metas[:3], strict=True):
            assert result.is_meta
            assert (result.shape, result.dtype) == (like.shape, like.dtype)


def test_differentiating_it_is_refused() -> None:
    first, second = part(seed=1), part(seed=2)
    out = npu_ring_attention_update(first[0].requires_grad_(), *first[1:], *second)[0]
    with pytest.raises(NotImplementedError, match="gradient of npu_ring_attention_update"):
        out.sum().backward()
    with torch.no_grad():
        assert not npu_ring_attention_update(*first, *second)[0].requires_grad


def _changed(index: int, change: Callable[[Tensor], Any]) -> list[Any]:
    tensors: list[Any] = [*part(seed=1), *part(seed=2)]
    tensors[index] = change(tensors[index])
    return tensors


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "layout": (_changed(0, Tensor.clone), {"input_layout": "BSH"}, "input_layout to be SBH or TND"),
    "no layout": (_changed(0, Tensor.clone), {"input_layout": 3}, "input_layout to be a string"),
    "statistics layout": (
        _changed(0, Tensor.clone),
        {"input_softmax_layout": "BNS"},
        "input_softmax_layout to be",
    ),
    "rank": (_changed(0, lambda x: x[0]), {}, "prev_attn_out to have 3 dimensions"),
    "integers": (_changed(0, Tensor.int), {}, "prev_attn_out to have a floating point dtype"),
    "other shape": (_changed(3, lambda x: x[1:]), {}, "cur_attn_out to have the shape"),
    "other dtype": (_changed(3, Tensor.half), {}, "cur_attn_out to have the shape and dtype"),
    "statistics": (_changed(1, lambda x: x[..., :1]), {}, r"prev_softmax_max to be \[B, N, S, 8\]"),
    "other statistics": (_changed(5, lambda x: x[:, 1:]), {}, "cur_softmax_sum to be"),
    "float64 statistics": (_changed(4, Tensor.double), {}, "cur_softmax_max to be float32"),
    "none": (_changed(2, lambda _: None), {}, "prev_softmax_sum to be a torch.Tensor"),
    "packed rank": (_changed(0, Tensor.clone), {"input_layout": "TND"}, "prev_softmax_max to be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name: str) -> None:
    tensors, options, text = REFUSED[name]
    with pytest.raises(RuntimeError, match=f"^npu_fusion_attention: expected {text}") as error:
        npu_ring_attention_update(*tensors, **options)
    assert len(str(error.value)) <= 400


def test_heads_must_divide_the_channels() -> None:
    tensors = [x[..., :-1] if i % 3 == 0 else x for i, x in enumerate((*part(), *part()))]
    with pytest.raises(RuntimeError, match="prev_softmax_max to have an N that divides H"):
        npu_ring_attention_update(*tensors)


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        (None, "to be given in layout TND"),
        ([], "to be given in layout TND"),
        ([4, 2, 10], "to be non-decreasing"),
        ([-1, 10], "to be non-decreasing and at least 0"),
        ([4, 11], "to end at T of prev_attn_out"),
        ([0.5, 10], "to be a sequence of integers"),
        (torch.tensor([4.0, 10.0]), "to be 1-D and of integers"),
    ],
)
def test_wrong_lengths_are_refused(ends: Any, text: str) -> None:
    tensors = (*part("TND"), *part("TND"))
    with pytest.raises(RuntimeError, match=f"expected actual_seq_qlen {text}"):
        npu_ring_attention_update(*tensors, actual_seq_qlen=ends, input_layout="TND")


def test_empty_tensors() -> None:
    out, row_max, row_sum = part()
    empty = out[:0], row_max[:, :, :0], row_sum[:, :, :0]
    assert_same(npu_ring_attention_update(*empty, *empty), empty)
    out, row_max, row_sum = part("TND")
    empty = out[:0], row_max[:0], row_sum[:0]
    options = {"input_layout": "TND", "actual_seq_qlen": [0]}
    assert_same(npu_ring_attention_update(*empty, *empty, **options), empty)
