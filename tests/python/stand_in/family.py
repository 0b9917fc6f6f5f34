"""torch_npu's functions of the family and torch.ops.npu.*: the package's, as the vendor's."""

import inspect
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

import fusion_attention
from fusion_attention._errors import FeatureError

LISTS = [5, 16]
NAMES = (
    "npu_fusion_attention",
    "npu_fusion_attention_grad",
    "npu_fusion_attention_v2",
    "npu_fusion_attention_grad_v2",
    "npu_fusion_attention_v3",
    "npu_fusion_attention_grad_v3",
    "npu_ring_attention_update",
    "_npu_dropout_gen_mask",
)
#: The vendor's, of the release that knows the most.
SCHEMAS = {
    "npu_fusion_attention": (
        "npu::npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num, "
        "str input_layout, Tensor? pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, "
        "float scale=1., float keep_prob=1., int pre_tockens=2147483647, "
        "int next_tockens=2147483647, int inner_precise=0, int[]? prefix=None, "
        "int[]? actual_seq_qlen=None, int[]? actual_seq_kvlen=None, int sparse_mode=0, "
        'bool gen_mask_parallel=True, bool sync=False, str softmax_layout="", Tensor? sink=None, '
        "Tensor? dropout_mask=None, int seed=0, int offset=0) "
        "-> (Tensor, Tensor, Tensor, Tensor, int, int, int)"
    ),
    "npu_ring_attention_update": (
        "npu::npu_ring_attention_update(Tensor prev_attn_out, Tensor prev_softmax_max, "
        "Tensor prev_softmax_sum, Tensor cur_attn_out, Tensor cur_softmax_max, "
        "Tensor cur_softmax_sum, *, int[]? actual_seq_qlen=None, "
        'str input_layout="SBH", str input_softmax_layout="") -> (Tensor, Tensor, Tensor)'
    ),
}


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Returns query, key and value of two packed sequences."""
    query, key, value = (torch.randn(16, 2, 8, device="npu") for _ in range(3))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def v1(functions: Any, tensors: tuple[Tensor, ...], **options: Any) -> Any:
    """Calls the first function of the family."""
    ends = {"actual_seq_qlen": LISTS, "actual_seq_kvlen": LISTS}
    return functions.npu_fusion_attention(*tensors, 2, "TND", scale=0.3, **ends, **options)


def v3(functions: Any, tensors: tuple[Tensor, ...], **options: Any) -> Any:
    """Calls the third."""
    ends = torch.tensor(LISTS)
    ends = {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
    return functions.npu_fusion_attention_v3(*tensors, 2, "TND", scale=0.3, **ends, **options)


def assert_equal(results: Any, expected: Any) -> None:
    """Compares tuples of tensors, numbers and None, bit by bit."""
    for result, wanted in zip(results, expected, strict=True):
        same = torch.equal(result, wanted) if isinstance(wanted, Tensor) else result == wanted
        assert same, (result, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_functions_are_the_packages(name: str) -> None:
    assert getattr(torch_npu, name) is getattr(fusion_attention, name)
    assert isinstance(getattr(torch.ops.npu, name).default, torch._ops.OpOverload)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_the_vendors(name: str) -> None:
    assert str(getattr(torch.ops.npu, name).default._schema) == SCHEMAS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_has_the_functions_parameters(name: str) -> None:
    parameters = inspect.signature(getattr(fusion_attention, name)).parameters.values()
    arguments = getattr(torch.ops.npu, name).default._schema.arguments
    for parameter, argument in zip(parameters, arguments, strict=True):
        assert argument.name == parameter.name
        assert argument.kwarg_only == (parameter.kind is parameter.KEYWORD_ONLY)
        assert argument.has_default_value() == (parameter.default is not parameter.empty)
        if argument.has_default_value():
            assert argument.default_value == parameter.default


@pytest.mark.parametrize("call", [v1, v3])
@pytest.mark.parametrize("keep_prob", [1.0, 0.75])
def test_the_operators_give_the_functions_results_and_gradients(
    call: Any, keep_prob: float
) -> None:
    tensors = packed()
    found = []
    for functions in (fusion_attention, torch_npu, torch.ops.npu):
        torch.npu.manual_seed(3)
        results = call(functions, tensors, keep_prob=keep_prob)
        found.append((*results, *torch.autograd.grad(results[0].sum(), tensors)))
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def test_the_operator_of_the_gradient() -> None:
    tensors = packed()
    out, softmax_max, softmax_sum, _, *random = v1(torch.ops.npu, tensors, keep_prob=0.75)
    dy = torch.randn_like(out)
    gradients = torch.ops.npu.npu_fusion_attention_grad.default(
        *tensors,
        dy,
        2,
        "TND",
        softmax_max=softmax_max,
        softmax_sum=softmax_sum,
        attention_in=out,
        scale_value=0.3,
        keep_prob=0.75,
        actual_seq_qlen=LISTS,
        actual_seq_kvlen=LISTS,
        **dict(zip(("seed", "offset", "numels"), random, strict=True)),
    )
    assert_equal(gradients, (*torch.autograd.grad(out, tensors, dy), None, None))


def test_the_operators_of_the_mask_and_of_the_merge() -> None:
    arguments = {"p": 0.25, "seed": 3, "offset": 8, "parallel": True, "sync": False}
    mask = torch.ops.npu._npu_dropout_gen_mask(torch.empty(0), [1, 2, 4, 16], **arguments)
    assert torch.equal(mask, torch_npu._npu_dropout_gen_mask(torch.empty(0), [128], **arguments))
    query = torch.randn(4, 1, 16)
    block = torch_npu.npu_fusion_attention(query, query, query, 2, "SBH")[:3]
    merged = torch.ops.npu.npu_ring_attention_update(*block, *block)
    assert torch.equal(merged[1], block[1])
    assert torch.equal(merged[2], 2 * block[2])
    assert torch.allclose(merged[0], block[0])


@pytest.mark.parametrize("call", [v1, v3])
def test_the_operators_compile(call: Any) -> None:
    tensors = packed()
    # A graph cannot hold the integers that the first form draws; the third form is for graphs.
    options = {"keep_prob": 0.75} if call is v3 else {}

    def attend(*tensors: Tensor) -> Tensor:
        return call(torch.ops.npu, tensors, **options)[0]

    found = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        torch.npu.manual_seed(3)
        out = function(*tensors)
        found.append((out, *torch.autograd.grad(out.sum(), tensors)))
    assert_equal(*found)


def test_a_broken_rule_is_told_by_the_operators_too() -> None:
    query = torch.randn(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match="npu_fusion_attention: expected keep_prob"):
        torch.ops.npu.npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=2.0)


@pytest.fixture
def release(request: pytest.FixtureRequest) -> Any:
    """Makes torch_npu an older release for one test."""
    torch_npu.install(compat=request.param)
    yield request.param
    torch_npu.install(compat="newest")


NEWER = {"softmax_layout": "", "sink": torch.zeros(2), "seed": 3, "dropout_mask": None}


@pytest.mark.parametrize(
    ("release", "has"), [("7.1", 0), ("7.2", 1), ("7.3", 2)], indirect=["release"]
)
@pytest.mark.parametrize("functions", ["torch_npu", "torch.ops.npu"])
def test_an_older_release_refuses_what_came_later(release: str, has: int, functions: str) -> None:
    functions = {"torch_npu": torch_npu, "torch.ops.npu": torch.ops.npu}[functions]
    tensors = packed()
    expected = v1(fusion_attention, tensors)
    assert_equal(v1(functions, tensors), expected)
    for index, (name, value) in enumerate(NEWER.items()):
        if index < has:
            v1(functions, tensors, **{name: value})
        else:
            with pytest.raises(RuntimeError, match=name):
                v1(functions, tensors, **{name: value})
    positional = (None, None, None, 1.0, 1.0, 99, 99, 0, None, LISTS, LISTS, 0, True, False, "")
    positional += (None, None)
    functions.npu_fusion_attention(*tensors, 2, "TND", *positional[: 14 + has])
    with pytest.raises(RuntimeError, match=f"takes {19 + has} positional|at most {19 + has} arg"):
        functions.npu_fusion_attention(*tensors, 2, "TND", *positional[: 15 + has])


@pytest.mark.parametrize(
    ("release", "counts"),
    [("7.1", (4, 6)), ("7.2", (4, 6)), ("7.3", (5, 7)), ("newest", (5, 7))],
    indirect=["release"],
)
def test_an_older_releases_gradients_are_fewer(release: str, counts: tuple[int, int]) -> None:
    query = torch.randn(1, 2, 4, 8)
    out, softmax_max, softmax_sum, *_ = torch_npu.npu_fusion_attention(
        query, query, query, 2, "BNSD"
    )
    results = {"softmax_max": softmax_max, "softmax_sum": softmax_sum, "attention_in": out}
    for name, count in zip(
        ("npu_fusion_attention_grad", "npu_fusion_attention_grad_v2"), counts, strict=True
    ):
        for functions in (torch_npu, torch.ops.npu):
            # The gradient's own seed and offset are as old as it is.
            gradients = getattr(functions, name)(
                query, query, query, out, 2, "BNSD", seed=0, offset=0, **results
            )
            assert len(gradients) == count
            assert gradients[0].shape == query.shape
        assert len(getattr(torch.ops.npu, name).default._schema.returns) == count


def test_the_signature_of_a_release_can_be_read() -> None:
    torch_npu.install(compat="7.1")
    try:
        assert len(inspect.signature(torch_npu.npu_fusion_attention).parameters) == 19
        assert torch_npu.npu_ring_attention_update is fusion_attention.npu_ring_attention_update
    finally:
        torch_npu.install()
    assert torch_npu.npu_fusion_attention is fusion_attention.npu_fusion_attention


def test_the_environment_names_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_ATTENTION_COMPAT", "7.2")
    torch_npu.install()
    assert len(inspect.signature(torch_npu.npu_fusion_attention).parameters) == 20
    monkeypatch.delenv("FUSION_ATTENTION_COMPAT")
    torch_npu.install()
    with pytest.raises(FeatureError, match=r"no release '6\.0'.*Choose one of newest, 7\.3"):
        torch_npu.install(compat="6.0")
