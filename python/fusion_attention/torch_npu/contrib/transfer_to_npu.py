"""torch_npu.contrib.transfer_to_npu: importing it makes a program for CUDA one for the device.

"cuda" becomes "npu" in what PyTorch's functions are given, torch.cuda.* becomes torch.npu.*,
.cuda() becomes .npu(), and the backend "nccl" becomes "hccl". Like the vendor's it changes the
process for good; unlike the vendor's it leaves torch.jit alone.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, profiler
from torch.utils import _device

from fusion_attention.torch_npu import npu
from fusion_attention.torch_npu._wrap import script_as, wrap
from fusion_attention.torch_npu.npu import utils

# Beside the functions that make tensors, which PyTorch itself lists.
_FUNCTIONS = ("load", "set_default_device", "get_autocast_dtype")
_TENSOR_METHODS = (
    "to",
    "type",
    "new_empty",
    "new_empty_strided",
    "new_full",
    "new_ones",
    "new_tensor",
    "new_zeros",
)
_NPU_OF_CUDA = {"cuda": "npu", "nccl": "hccl"}
_CUDA_WORD = re.compile(r"(?<![^,:])(cuda|nccl)(?![^,:])")


def _translated(value: Any) -> Any:
    """Returns what stands for the device "npu" where `value` stands for "cuda"."""
    if isinstance(value, str):
        # A device, a backend, or "cpu:gloo,cuda:nccl"; a type of tensors.
        if value.startswith("torch.cuda."):
            return value.replace("cuda", "npu", 1)
        return _CUDA_WORD.sub(lambda found: _NPU_OF_CUDA[found[0]], value)
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("npu", value.index)
    if type(value) is dict:  # map_location
        return {_translated(k): _translated(v) for k, v in value.items()}
    return value


def _translating(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args = tuple(map(_translated, args))
        return function(*args, **{name: _translated(x) for name, x in kwargs.items()})

    script_as(wrapper, function)
    return wrapper


def _translate(owner: Any, *names: str) -> None:
    for name in names:
        setattr(owner, name, _translating(getattr(owner, name)))


def _install() -> None:
    makers = _device._device_constructors()
    listed = vars(torch).items()
    _translate(torch, *_FUNCTIONS, *[name for name, value in listed if _is_in(value, makers)])
    _translate(torch.Tensor, *_TENSOR_METHODS)
    _translate(torch.nn.Module, "to", "to_empty")
    for kind in (torch.autocast, torch.amp.GradScaler, _device.DeviceContext):
        _translate(kind, "__init__")
    _translate(type(torch.Generator), "__call__")
    utils.NAMES.add("cuda")
    torch.Tensor.cuda = torch.Tensor.npu
    torch.nn.Module.cuda = torch.nn.Module.npu
    torch.UntypedStorage.cuda = torch.UntypedStorage.npu
    profiler.profile.__init__ = wrap(profiler.profile.__init__, _profile_the_cpu)
    torch.cuda.nvtx._nvtx = _Marks  # beneath all functions of torch.cuda.nvtx
    for name in dir(npu):
        if name != "amp":  # torch.cuda.amp is made of the classes that were changed above
            setattr(torch.cuda, name, getattr(npu, name))
    if distributed.is_available():
        _translate(distributed, "init_process_group", "new_group")
        _translate(distributed.DeviceMesh, "__init__")
        distributed.is_nccl_available = distributed.is_hccl_available


def _profile_the_cpu(
    original: Callable[..., None], profile: profiler.profile, *, activities: Any = None, **rest: Any
) -> None:
    """Drops CUDA, which PyTorch's profiler fails to record, with a warning for every operator."""
    original(profile, activities=[profiler.ProfilerActivity.CPU], **rest)


class _Marks:
    """The marks of NVIDIA's profiler, which does not watch this process: dropped."""

    @staticmethod
    def rangePushA(message: str) -> int:  # noqa: N802
        return 0

    @staticmethod
    def rangePop() -> int:  # noqa: N802
        return 0

    @staticmethod
    def rangeStartA(message: str) -> int:  # noqa: N802
        return 0

    @staticmethod
    def rangeEnd(range_id: int) -> None:  # noqa: N802
        pass

    @staticmethod
    def markA(message: str) -> None:  # noqa: N802
        pass


def _is_in(value: Any, functions: set[Any]) -> bool:
    original = getattr(value, "__wrapped__", value)
    return callable(value) and original.__hash__ is not None and original in functions


_install()
