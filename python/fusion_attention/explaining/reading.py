"""A call of any function of the family, read without running it: one set of names for all.

Explaining must say something about calls that the operator refuses, so nothing here raises because
of a value; `refusal` asks the function itself what it thinks of the call.
"""

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fusion_attention import _arguments as arg
from fusion_attention import _entry, _library, _observers, _vendor
from fusion_attention._call import Call
from fusion_attention._errors import FeatureError

GRADIENT_TENSORS = ("dy", "softmax_max", "softmax_sum", "attention_in")
#: As the other functions of the family spell what npu_fusion_attention has.
_SPELLINGS = {"pre_tokens": "pre_tockens", "next_tokens": "next_tockens", "scale_value": "scale"}
#: What a function that lacks the parameter does.
_ABSENT: dict[str, Any] = {
    "pse_type": 1,
    "q_start_idx": None,
    "kv_start_idx": None,
    "query_rope": None,
    "key_rope": None,
    "seed": 0,
    "offset": 0,
    "numels": 0,
    "sink": None,
    "dropout_mask": None,
    "softmax_layout": "",
}
#: What the operators take besides tensors.
_SETTINGS = arg.Arguments._fields[arg.TENSOR_COUNT : -1]
#: Tensors whose values are arguments.
_READ_TENSORS = ("actual_seq_qlen", "actual_seq_kvlen", "prefix", "seed", "offset")
_AXES = {"BSH": "B S H", "SBH": "S B H", "BNSD": "B N S D", "BSND": "B S N D", "TND": "T N D"}


@dataclass(frozen=True)
class Reading:
    """The arguments of a call by the names that npu_fusion_attention gives them.

    Attributes:
        call: The call as it was made.
        values: Its arguments, and the defaults of those that its function lacks.
    """

    call: Call
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def is_gradient(self) -> bool:
        return "_grad" in self.call.function

    @property
    def layout(self) -> str:
        """The layout in capitals; "" where it is no text."""
        value = self.values["input_layout"]
        return value.upper() if isinstance(value, str) else ""

    def tensor(self, name: str) -> Tensor | None:
        """The tensor of this name. One without axes counts as absent, as the operator has it."""
        value = self.values.get(name)
        return value if isinstance(value, Tensor) and value.dim() > 0 else None

    def data(self, name: str) -> Tensor | None:
        """The tensor of this name on the CPU; None where it has no elements that can be read."""
        tensor = self.tensor(name)
        if tensor is None or tensor.is_meta or tensor.layout is not torch.strided:
            return None
        return tensor.detach().cpu()

    def integer(self, name: str, default: int = 0) -> int:
        """An integer argument, or `default` where it is none."""
        try:
            return operator.index(self.values[name])
        except (TypeError, RuntimeError):  # the latter from tensors of several or no elements
            return default

    def number(self, name: str) -> float:
        """A real argument; NaN where it is none."""
        try:
            return float(self.values[name])
        except (TypeError, ValueError, RuntimeError):
            return math.nan

    def integers(self, name: str) -> list[int]:
        """A list of integers; empty where there is none, or where it is no such list."""
        value = self.values.get(name)
        if isinstance(value, Tensor) and value.is_meta:
            return []
        try:
            return arg.integers(name, value) or []
        except RuntimeError:
            return []

    def spelling(self, name: str) -> str:
        """The name that the call's own function gives to an argument."""
        theirs = {ours: theirs for theirs, ours in _SPELLINGS.items()}
        return theirs[name] if theirs.get(name) in self.call.arguments else name

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """What the layout's letters stand for in query and key, as far as their ranks fit it."""
        found: dict[str, int] = {}
        letters = _AXES.get(self.layout, "").split()
        for name, own in (("query", {"S": "Sq", "T": "Tq"}), ("key", {"S": "Skv", "N": "Nkv"})):
            tensor = self.tensor(name)
            if tensor is None or tensor.dim() != len(letters):
                continue
            for letter, size in zip(letters, tensor.shape, strict=True):
                found.setdefault(
                    own.get(letter, letter if name == "query" else f"{letter}kv"), size
                )
        return found


def read(call: Call) -> Reading:
    """Returns the call under npu_fusion_attention's names.

    Raises:
        FeatureError: The function is not one that computes attention or its gradient.
    """
    package = __import__(__package__.partition(".")[0])
    if call.function not in package.__all__ or "fusion_attention" not in call.function:
        raise FeatureError(
            f"explain: {call.function} computes no attention; what can be explained are calls of "
            "npu_fusion_attention, its _grad, and their _v2 and _v3."
        )
    values = {_SPELLINGS.get(name, name): value for name, value in call.arguments.items()}
    return Reading(call, _ABSENT | values)


def refusal(reading: Reading) -> Exception | None:
    """Returns the error with which the function would refuse this call, or None."""
    package = __import__(__package__.partition(".")[0])
    function = getattr(package, reading.call.function)
    dtypes = _dtypes(reading)
    given = dict(reading.call.arguments)
    for name, value in given.items():
        if isinstance(value, Tensor) and name not in _READ_TENSORS:
            given[name] = _stand_in(value, dtypes.get(name, value.dtype), "meta")
    # What a stand-in hides: kinds of tensors, and devices. A meta tensor stands for one on the CPU.
    tensors = [reading[name] for name in arg.TENSOR_NAMES]
    real = [_stand_in(x, x.dtype, "cpu") if _is_meta(x) else x for x in tensors]
    # Observers see no stand-ins.
    with torch.no_grad(), _disable_current_modes(), _observers.unseen():
        try:
            if not _vendor.is_npu(real[0]):
                arg.check_tensors(arg.TENSOR_NAMES, real)
            function(**given)
            mask = reading.tensor("atten_mask")
            if mask is not None and mask.device.type == "cpu":
                _library.check(*arguments(reading, "cpu", atten_mask=mask), *(None,) * 5)
        except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is the first
            return error
    return None


def arguments(reading: Reading, device: str, **instead: Any) -> arg.Arguments:
    """Returns the operators' arguments: stand-ins on `device` for all tensors but those `instead`.

    Raises:
        RuntimeError: A value has not even the type of its argument.
    """
    dtypes = _dtypes(reading)
    values = reading.values | instead
    tensors = {name: values[name] for name in arg.TENSOR_NAMES}
    for name, value in tensors.items():
        if isinstance(value, Tensor) and name not in instead:
            tensors[name] = _stand_in(value, dtypes.get(name, value.dtype), device)
    settings = {name: values[name] for name in _SETTINGS}
    version = {"2": 2, "3": 3}.get(reading.call.function[-1], 1)
    return _entry.arguments(tuple(tensors.values()), **settings, version=version)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _stand_in(value: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """A tensor of the same shape that takes no memory."""
    if device == "cpu":
        return torch.empty((), dtype=dtype).expand(value.shape)
    return torch.empty(value.shape, dtype=dtype, device=device)


def _dtypes(reading: Reading) -> dict[str, torch.dtype]:
    """What autocast makes of the tensors; empty where it is off or the function ignores it."""
    if reading.is_gradient or not torch.is_autocast_enabled("cpu"):
        return {}
    tensors = [reading.tensor(name) for name in arg.TENSOR_NAMES]
    scalars = (None if x is None else torch.empty((), dtype=x.dtype) for x in tensors)
    named = dict(zip(arg.TENSOR_NAMES, scalars, strict=True)) | {"pse_type": reading["pse_type"]}
    cast = _entry.autocast(arg.Arguments(*(None,) * arg.COUNT)._replace(**named))
    return {name: x.dtype for name in arg.TENSOR_NAMES if (x := getattr(cast, name)) is not None}
