"""The device "npu" of a machine that has none: its tensors live in the CPU's memory, and say so.

PyTorch keeps one spare device for backends from outside. It is named "npu" here, and every operator
that would make a tensor there makes it on the CPU instead: torch.device("npu:0") and device="npu"
work everywhere, and tensor.device is cpu. What such an operator allocates is marked, so that moving
it to the device again moves nothing. Knows nothing of attention.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

_MARK = "_fusion_attention_npu"
_libraries: list[torch.library.Library] = []  # what they register lives as long as they do


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True


def install(module: ModuleType) -> None:
    """Makes "npu" a device of PyTorch, with `module` as torch.npu."""
    backend_registration._setup_privateuseone_for_python_backend("npu", module, hook=_Hooks())
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(_make_on_cpu, "PrivateUse1")
    streams = torch.library.Library("aten", "IMPL")
    streams.impl("record_stream", _ignore_stream, "CPU")
    _libraries.extend((fallback, streams))

    torch.Tensor.to = _wrap(torch.Tensor.to, _to)
    torch.Tensor.cpu = _wrap(torch.Tensor.cpu, _cpu)
    torch.Tensor.pin_memory = _wrap(torch.Tensor.pin_memory, _pin_memory)
    torch.UntypedStorage.npu = _storage_to_npu
    # Before PyTorch's own for a spare device (23), which would allocate there.
    torch.serialization.register_package(9, lambda storage: None, _storage_from_file)
    torch.autocast.__init__ = _wrap(torch.autocast.__init__, _autocast_on_cpu)
    torch.Generator = _Generator
    parallel = torch.nn.parallel.DistributedDataParallel
    parallel.__init__ = _wrap(parallel.__init__, _parallel_on_cpu)
    for name in ("device_count", "synchronize", "current_stream", "set_stream", "empty_cache"):
        setattr(torch.accelerator, name, getattr(module, name))


def is_resident(tensor: Tensor) -> bool:
    """Says whether the tensor's memory was allocated for the device "npu".

    Views, parameters and detached tensors share the memory, and so the answer; results of
    arithmetic are the CPU's own.
    """
    try:
        return hasattr(tensor.untyped_storage(), _MARK)
    except NotImplementedError:  # a layout without one storage
        return False


def _make_on_cpu(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The kernel of every operator that has none for the device, and that is all of them."""
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    if "pin_memory" in kwargs:
        kwargs["pin_memory"] = False
    result = op(*args, **kwargs)
    if isinstance(result, Tensor) and result.layout is torch.strided:
        setattr(result.untyped_storage(), _MARK, True)
    return result


def _ignore_stream(tensor: Tensor, stream: torch.Stream) -> None:
    """Memory of the CPU is freed by nobody else's stream."""


def _wrap(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `replacement` with `original` as its first argument, looking like `original`."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    return wrapper


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Returns "npu" or "cpu" when a call of Tensor.to() names that device.

    A torch.device("cpu") is None: it comes from some tensor.device, which for the tensors of this
    device says cpu, so `x.to(y.device)` must not copy what is there already.
    """
    device = args[0] if args else kwargs.get("device")
    if isinstance(device, str):
        return device.partition(":")[0]
    if isinstance(device, torch.device):
        return "npu" if device.type == "npu" else None
    if type(device) is int:
        return "npu"
    return None


def _to(original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Copies from the host to the device and back, as between two memories."""
    target = _target(args, kwargs)
    if target == "npu" and is_resident(tensor):
        if args:
            args = ("cpu", *args[1:])
        else:
            kwargs["device"] = "cpu"
        return original(tensor, *args, **kwargs)
    moved = original(tensor, *args, **kwargs)
    return moved.clone() if target == "cpu" and moved is tensor else moved


def _cpu(original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    moved = original(tensor, *args, **kwargs)
    return moved.clone() if moved is tensor else moved


def _pin_memory(
    original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Returns the tensor: there is no device that would copy from pinned memory faster."""
    return tensor


def _storage_to_npu(storage: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
    if hasattr(storage, _MARK):
        return storage
    moved = storage.clone()
    setattr(moved, _MARK, True)
    return moved


def _storage_from_file(storage: torch.UntypedStorage, location: str) -> Any:
    """Loads what was saved on a device, or is mapped to it; None leaves it to others."""
    return _storage_to_npu(storage) if location.partition(":")[0] == "npu" else None


def _autocast_on_cpu(
    original: Callable[..., None],
    context: torch.autocast,
    device_type: str,
    dtype: torch.dtype | None = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    if device_type == "npu":
        device_type, dtype = "cpu", dtype or torch.float16  # the device's default
    original(context, device_type, dtype, *args, **kwargs)


def _parallel_on_cpu(
    original: Callable[..., None],
    parallel: torch.nn.parallel.DistributedDataParallel,
    module: torch.nn.Module,
    device_ids: Any = None,
    output_device: Any = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Drops the numbers of devices that a module on the CPU may not be given."""
    original(parallel, module, None, None, *args, **kwargs)


class _GeneratorType(type):
    """Makes instances of PyTorch's class, and takes them for its own."""

    def __call__(cls, device: Any = "cpu") -> torch._C.Generator:
        device = torch.device(device)
        return torch._C.Generator("cpu" if device.type == "npu" else device)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, torch._C.Generator)


class _Generator(metaclass=_GeneratorType):
    """torch.Generator, which for the device "npu" is a generator of the CPU."""
