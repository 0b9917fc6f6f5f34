"""Errors as Python sees them: their types, and one text for eager, traced and gradient calls.

Every rule itself is tested in C++ (tests/cc/problem); here is one row for each kind of argument.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fusion_attention import _library, npu_fusion_attention, npu_fusion_attention_grad

SHAPE = (2, 4, 9, 8)
GOOD: dict[str, Any] = {"head_num": 4, "input_layout": "BNSD"}
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor; rows below only state its shape and dtype."""
    return torch.ones(shape, dtype=dtype)


# What is changed in a legal call, and words that the text must hold.
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"query": ones(2, 4, 9)}, "query"),
    ({"key": ones(2, 3, 9, 8)}, "key"),
    ({"value": ones(2, 4, 9, 9)}, "value"),
    ({"query": ones(*SHAPE, dtype=torch.int32)}, "query"),
    ({"query": ones(*SHAPE, dtype=torch.complex64)}, "query"),
    ({"key": ones(*SHAPE, dtype=torch.float16)}, "key"),
    ({"head_num": 3}, "head_num=3"),
    ({"head_num": -(2**63)}, "head_num"),
    ({"input_layout": "BND"}, "input_layout='BND'"),
    ({"input_layout": ""}, "input_layout"),
    ({"pse": ones(2, 4, 9, 8)}, "pse"),
    ({"atten_mask": ones(9, 8, dtype=torch.bool)}, "atten_mask"),
    ({"atten_mask": ones(9, 9)}, "atten_mask"),
    ({"atten_mask": ones(9, 9, dtype=torch.bool), "sparse_mode": 2}, "atten_mask"),
    ({"scale": float("inf")}, "scale"),
    ({"keep_prob": 0.0}, "keep_prob"),
    ({"keep_prob": 1.5}, "keep_prob=1.5"),
    ({"atten_mask": ones(9, 9, dtype=torch.bool), "next_tockens": -9}, "next_tockens"),
    ({"sparse_mode": 7}, "sparse_mode=7"),
    ({"atten_mask": ones(3072, 2048, dtype=torch.bool), "sparse_mode": 6}, "prefix"),
    ({"actual_seq_qlen": [9], "actual_seq_kvlen": [9]}, "actual_seq_qlen"),
    ({"softmax_layout": "TND"}, "softmax_layout"),
    ({"sink": ones(3)}, "sink"),
    ({"keep_prob": 0.5, "dropout_mask": ones(3)}, "dropout_mask"),
]
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [({"padding_mask": ones(2, 9)}, "padding_mask")]


def text_of(call: Any, kind: type[Exception]) -> str:
    """The text of the error that `call` raises, which must be of exactly this type."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    return str(caught.value)


def forward(**keywords: Any) -> Any:
    """A legal call with some arguments replaced."""
    tensors = {name: keywords.pop(name, ones(*SHAPE)) for name in ("query", "key", "value")}
    return npu_fusion_attention(**tensors, **{**GOOD, **keywords})


def gradient(**keywords: Any) -> Any:
    """The gradient of a legal call with some arguments replaced."""
    names = ("query", "key", "value", "dy", "attention_in")
    tensors = {name: keywords.pop(name, ones(*SHAPE)) for name in names}
    for name in ("softmax_max", "softmax_sum"):
        tensors[name] = keywords.pop(name, ones(2, 4, 9, 8))
    if "scale" in keywords:
        keywords["scale_value"] = keywords.pop("scale")
    return npu_fusion_attention_grad(**tensors, **{**GOOD, **keywords})


@pytest.mark.parametrize(
    ("broken", "words", "kind"),
    [(*row, RuntimeError) for row in BROKEN] + [(*row, NotImplementedError) for row in UNSUPPORTED],
    ids=[words for _, words in BROKEN + UNSUPPORTED],
)
def test_one_text_everywhere(broken: dict[str, Any], words: str, kind: type[Exception]) -> None:
    text = text_of(lambda: forward(**broken), kind)
    assert text.startswith("npu_fusion_attention: expected ")
    assert words in text
    assert text.isascii()
    assert len(text) <= 400
    assert text_of(lambda: gradient(**broken), kind) == text

    recorded = {"query": ones(*SHAPE).requires_grad_()}
    assert text_of(lambda: forward(**{**recorded, **broken}), kind) == text

    for mode in (FakeTensorMode(), FakeTensorMode(shape_env=ShapeEnv())):
        with mode:
            fake = {
                name: mode.from_tensor(value) if isinstance(value, Tensor) else value
                for name, value in broken.items()
            }
            assert text_of(lambda fake=fake: forward(**fake), kind) == text
            assert text_of(lambda fake=fake: gradient(**fake), kind) == text
    meta = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in broken.items()
    }
    tensors = {name: ones(*SHAPE).to("meta") for name in ("query", "key", "value")}
    assert text_of(lambda: forward(**{**tensors, **meta}), kind) == text


@pytest.mark.parametrize(
    ("broken", "words"),
    [({"head_num": 3}, "head_num=3"), ({"key": ones(2, 3, 9, 8)}, "key.shape=[2, 3, 9, 8]")],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiling_a_broken_call_says_the_same(
    broken: dict[str, Any], words: str, dynamic: bool
) -> None:
    text = text_of(lambda: forward(**broken), RuntimeError)
    assert words in text
    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with pytest.raises(RuntimeError) as caught:
        compiled(**broken)
    assert text in str(caught.value).replace("\\'", "'")


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ({"query": None}, "expected query to be a torch.Tensor, but got query=NoneType."),
        ({"key": np.ones(SHAPE)}, "expected key to be a torch.Tensor, but got key=ndarray."),
        ({"pse": [1.0]}, "expected pse to be a torch.Tensor, but got pse=list."),
        ({"head_num": 4.0}, "expected head_num to be an integer, but got head_num=4.0."),
        ({"head_num": "4"}, "expected head_num to be an integer, but got head_num='4'."),
        ({"pre_tockens": 2**63}, "expected pre_tockens to fit into 64 bits, but got pre_tockens="),
        ({"scale": "x"}, "expected scale to be a number, but got scale='x'."),
        ({"keep_prob": None}, "expected keep_prob to be a number, but got keep_prob=None."),
        ({"input_layout": 3}, "expected input_layout to be a string, but got input_layout=3."),
        ({"softmax_layout": None}, "expected softmax_layout to be a string"),
        ({"prefix": [1.5]}, "expected prefix to be a sequence of integers, but got prefix=[1.5]."),
        ({"prefix": 7}, "expected prefix to be a sequence of integers, but got prefix=7."),
        ({"prefix": [0, 2**63]}, "expected prefix to hold integers of 64 bits, but got prefix[1]="),
        ({"actual_seq_qlen": ones(2)}, "expected actual_seq_qlen to be 1-D and of integers"),
        (
            {"actual_seq_kvlen": torch.ones(1, 1, dtype=torch.int64)},
            "but got a torch.int64 tensor of [1, 1].",
        ),
        ({"keep_prob": 0.5, "seed": 2**64}, "expected seed to fit into 64 bits"),
        ({"keep_prob": 0.5, "seed": 1, "offset": 1.5}, "expected offset to be an integer"),
    ],
)
def test_wrong_types_are_runtime_errors(broken: dict[str, Any], text: str) -> None:
    assert text in text_of(lambda: forward(**broken), RuntimeError)
    assert text in text_of(lambda: gradient(**broken), RuntimeError)


@pytest.mark.parametrize("name", ["dy", "softmax_max", "softmax_sum", "attention_in"])
def test_the_gradient_needs_the_forward_results(name: str) -> None:
    missing = text_of(lambda: gradient(**{name: None}), RuntimeError)
    assert f"expected {name} to be given, but got {name}=None." in missing
    wrong = text_of(lambda: gradient(**{name: ones(2, 4, 8, 8)}), RuntimeError)
    assert f"expected {name} " in wrong
    elsewhere = text_of(lambda: gradient(**{name: ones(*SHAPE).to("meta")}), RuntimeError)
    assert f"expected {name} on the same device as query" in elsewhere


def test_a_wrong_numels_is_refused() -> None:
    assert "numels=5" in text_of(lambda: gradient(numels=5, keep_prob=0.5), RuntimeError)


@pytest.mark.parametrize("name", ["key", "value", "pse", "atten_mask", "sink", "dropout_mask"])
def test_mixed_devices_are_refused(name: str) -> None:
    text = text_of(lambda: forward(**{name: ones(1).to("meta")}), RuntimeError)
    assert f"expected {name} on the same device as query" in text
    assert f"but got query on cpu and {name} on meta." in text


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor")
@pytest.mark.parametrize("name", ["query", "key", "value", "pse", "atten_mask"])
def test_storage_formats_other_than_strided_are_refused(name: str) -> None:
    for tensor in (ones(3, 3).to_sparse(), ones(4, 4).to_sparse_csr(), ones(4, 4).to_mkldnn()):
        text = text_of(lambda tensor=tensor: forward(**{name: tensor}), RuntimeError)
        assert f"expected {name} to be a dense strided tensor, but got a torch." in text
    nested = torch.nested.nested_tensor([ones(2, 3), ones(4, 3)])
    jagged = torch.nested.nested_tensor([ones(2, 3), ones(4, 3)], layout=torch.jagged)
    for tensor in (nested, jagged):
        text = text_of(lambda tensor=tensor: forward(**{name: tensor}), RuntimeError)
        assert f"expected {name} to be a dense strided tensor, but got a nested one." in text


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused() -> None:
    quantised = torch.quantize_per_tensor(ones(*SHAPE), 0.1, 0, torch.qint8)
    text = text_of(lambda: forward(query=quantised, key=quantised, value=quantised), RuntimeError)
    assert "expected query to be a dense strided tensor, but got a quantised one." in text


def test_a_device_without_backend_is_named() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        elsewhere = torch._subclasses.FakeTensor(
            mode, torch.empty(SHAPE, device="meta"), torch.device("cuda", 3)
        )
        text = text_of(
            lambda: npu_fusion_attention(elsewhere, elsewhere, elsewhere, **GOOD),
            NotImplementedError,
        )
    assert "query on cuda:3" in text


@pytest.mark.parametrize("wrong", [~CAUSAL, torch.zeros_like(CAUSAL), torch.ones_like(CAUSAL)])
def test_the_content_of_a_compressed_mask_is_checked(wrong: Tensor) -> None:
    for mode in (2, 3, 4):
        keywords = {"atten_mask": wrong, "sparse_mode": mode}
        text = text_of(lambda keywords=keywords: forward(**keywords), RuntimeError)
        assert text.startswith("npu_fusion_attention: expected atten_mask ")
        assert text_of(lambda keywords=keywords: gradient(**keywords), RuntimeError) == text
        assert len(text) <= 400
    transposed = CAUSAL.t().contiguous().t()
    forward(atten_mask=transposed, sparse_mode=2)


def test_error_types_of_the_compiled_library() -> None:
    def out_of_memory() -> None:
        raise MemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match=r"^no room$"):
        _library.translated(out_of_memory)()
    assert issubclass(torch.OutOfMemoryError, RuntimeError)


def test_a_result_too_large_to_allocate_is_an_out_of_memory_error() -> None:
    # Expanded inputs cost nothing; attention_out and the statistics would need 4 PiB.
    query = ones(1, 1, 1, 1).expand(4096, 256, 2**20, 1)
    key = ones(1, 1, 1, 1).expand(4096, 1, 1, 1)
    text = text_of(
        lambda: npu_fusion_attention(query, key, key, 256, "BNSD"), torch.OutOfMemoryError
    )
    assert text.startswith("npu_fusion_attention: could not allocate ")


def test_a_rejected_call_leaves_the_next_one_as_it_was() -> None:
    expected = forward()
    for broken, _ in BROKEN:
        with pytest.raises(RuntimeError):
            forward(**broken)
        assert torch.equal(forward()[0], expected[0])
