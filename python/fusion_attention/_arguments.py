"""Turns what callers pass into what the operators take: ints, floats, lists and strided tensors.

Only Python's side of the checks lives here (types, devices, storage formats); the rules of the
operator are in the compiled library, which every entry calls before it does anything.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

#: What `actual_seq_qlen`, `actual_seq_kvlen` and `prefix` may be: a sequence of integers or a 1-D
#: integer tensor.
Integers: TypeAlias = Sequence[int] | Tensor | None

#: The default of pre_tockens and next_tockens: no bound on that side.
UNLIMITED = 2147483647


class Arguments(NamedTuple):
    """The operators' common arguments, in the order of their schemas."""

    query: Tensor
    key: Tensor
    value: Tensor
    pse: Tensor | None
    padding_mask: Tensor | None
    atten_mask: Tensor | None
    sink: Tensor | None
    dropout_mask: Tensor | None
    query_rope: Tensor | None
    key_rope: Tensor | None
    qlen_tensor: Tensor | None  # in place of actual_seq_qlen, in a graph that has no values for it
    kvlen_tensor: Tensor | None
    head_num: int
    input_layout: str
    scale: float
    keep_prob: float
    pre_tockens: int
    next_tockens: int
    inner_precise: int
    prefix: list[int] | None
    actual_seq_qlen: list[int] | None
    actual_seq_kvlen: list[int] | None
    sparse_mode: int
    softmax_layout: str
    pse_type: int
    q_start_idx: list[int] | None
    kv_start_idx: list[int] | None
    version: int  # of the public function, so that errors name the parameters as it does


COUNT = len(Arguments._fields)
#: How many of them, at the front, are tensors.
TENSOR_COUNT = Arguments._fields.index("head_num")
#: Those that callers pass as tensors.
TENSOR_NAMES = Arguments._fields[: TENSOR_COUNT - 2]
_INTEGER_DTYPES = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


def fail(name: str, rule: str, got: str, hint: str = "") -> RuntimeError:
    """Returns the error of a broken rule, in the wording of all errors of this package."""
    text = f"npu_fusion_attention: expected {name} {rule}, but got {got}."
    return RuntimeError(f"{text} {hint}" if hint else text)


def integer(name: str, value: Any, end: int = 2**63) -> int:
    """Returns `value` as an int of 64 bits, below `end`."""
    if type(value) is not int:
        try:
            value = operator.index(value)
        except TypeError:
            raise fail(name, "to be an integer", f"{name}={value!r:.40}") from None
    if not -(2**63) <= value < end:
        raise fail(name, "to fit into 64 bits", f"{name}={value}")
    return value


def number(name: str, value: Any) -> float:
    """Returns `value` as a float."""
    if type(value) is float:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise fail(name, "to be a number", f"{name}={value!r:.40}") from None


def string(name: str, value: Any) -> str:
    """Returns `value`, which must be a str."""
    if not isinstance(value, str):
        raise fail(name, "to be a string", f"{name}={value!r:.40}")
    return value


def integers(name: str, values: Integers) -> list[int] | None:
    """Returns `values` as a list of ints; None when there are none. A tensor is read back once."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        return _one_axis(name, values).tolist() or None
    try:
        # operator.index refuses floats and takes numpy's integers and one-element tensors.
        result = [operator.index(value) for value in values]
    except TypeError:
        raise fail(name, "to be a sequence of integers", f"{name}={values!r:.60}") from None
    for index, value in enumerate(result):
        if not -(2**63) <= value < 2**63:
            raise fail(name, "to hold integers of 64 bits", f"{name}[{index}]={value}")
    return result or None


def unread_integers(name: str, values: Integers) -> Tensor | None:
    """Returns `values` as a tensor for the operators to read, where Python must not: in a graph."""
    if isinstance(values, Tensor) and torch.compiler.is_compiling():
        return _one_axis(name, values).to("cpu", torch.int64).contiguous()
    return None


def _one_axis(name: str, values: Tensor) -> Tensor:
    if values.dim() == 1 and values.dtype in _INTEGER_DTYPES:
        return values
    got = f"a {values.dtype} tensor of {list(values.shape)}"
    raise fail(name, "to be 1-D and of integers when it is a tensor", got)


def check_tensors(names: Sequence[str], tensors: Sequence[Any]) -> None:
    """Raises unless the tensors given are strided ones on one device that has a backend."""
    device = None
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None and device is not None:
            continue
        if not isinstance(tensor, Tensor):
            raise fail(name, "to be a torch.Tensor", f"{name}={type(tensor).__name__}")
        if device is None:
            device = tensor.device
            if device.type not in ("cpu", "meta"):
                raise NotImplementedError(
                    f"npu_fusion_attention: expected {name} on a device that has a backend (cpu), "
                    f"but got {name} on {device}. Move the tensors with .cpu()."
                )
        elif tensor.device != device:
            got = f"{names[0]} on {device} and {name} on {tensor.device}"
            raise fail(name, f"on the same device as {names[0]}", got)
        # A graph has strided tensors only, and may not ask in a user's own autograd.Function.
        strided = torch.compiler.is_compiling() or tensor.layout is torch.strided
        if not strided or tensor.is_nested or tensor.is_quantized:
            nested, quantised = tensor.is_nested, tensor.is_quantized
            kind = "nested" if nested else "quantised" if quantised else str(tensor.layout)
            hint = "Use .to_dense(), .dequantize() or padding first."
            raise fail(name, "to be a dense strided tensor", f"a {kind} one", hint)


def dropout_numels(arguments: Arguments) -> int:
    """Returns how many dropout elements a call has.

    B*N*Sq*Skv, or N times the sum of Sq*Skv over packed sequences. The arguments must have passed
    the operator's checks.
    """
    query, key = arguments.query, arguments.key
    layout = arguments.input_layout.upper()
    if layout == "TND":
        if arguments.qlen_tensor is not None or arguments.kvlen_tensor is not None:
            q_lens = _lengths_of(arguments.qlen_tensor, arguments.actual_seq_qlen)
            kv_lens = _lengths_of(arguments.kvlen_tensor, arguments.actual_seq_kvlen)
            return arguments.head_num * (q_lens * kv_lens).sum().item()
        pairs = zip(
            _lengths(arguments.actual_seq_qlen), _lengths(arguments.actual_seq_kvlen), strict=True
        )
        return arguments.head_num * sum(q_len * kv_len for q_len, kv_len in pairs)
    batch_axis, token_axis = {"BSH": (0, 1), "SBH": (1, 0), "BSND": (0, 1), "BNSD": (0, 2)}[layout]
    tokens = query.shape[token_axis] * key.shape[token_axis]
    return query.shape[batch_axis] * arguments.head_num * tokens


def _lengths(ends: Sequence[int]) -> list[int]:
    """Returns the lengths of sequences that end there; trailing zeros are unused sequences."""
    return [max(end - begin, 0) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _lengths_of(tensor: Tensor | None, ends: Sequence[int] | None) -> Tensor:
    """The same as a tensor, of ends in either form."""
    if tensor is None:
        tensor = torch.tensor(ends, dtype=torch.int64)
    return torch.diff(tensor, prepend=tensor.new_zeros(1)).clamp(min=0)
