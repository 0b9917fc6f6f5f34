"""The device "npu" of a machine that has none: its tensors live in the CPU's memory, and say so.

PyTorch keeps one spare device for backends from outside. It is named "npu" here, and every operator
that would make a tensor there makes it on the CPU instead: torch.device("npu:0") and device="npu"
work everywhere, and tensor.device is cpu. What such an operator allocates is marked, so that moving
it to the device again moves nothing. Knows nothing of attention.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._device import _device_constructors

from fusion_attention._errors import FeatureError
from fusion_attention.torch_npu._wrap import wrap

_CPU = torch.device("cpu")
_MARK = "_fusion_attention_npu"
# All operators that make a tensor on a device and have no kernel for every device. The others,
# zeros, randn, copies..., are made of the first two.
_MAKERS = (
    "empty.memory_format",
    "empty_strided",
    "tril_indices",
    "triu_indices",
    "from_file",
    "_efficientzerotensor",
)
_library = torch.library.Library("aten", "IMPL")  # the kernels live as long as it does


def install(module: ModuleType) -> None:
    """Makes "npu" a device of PyTorch, with `module` as torch.npu.

    Raises:
        FeatureError: This process has another device in the spare one's place, or a PyTorch whose
            spare device cannot be made in Python.
    """
    _take_spare_device(module)
    for name in _MAKERS:
        _library.impl(name, _maker(name), "PrivateUse1")
    _library.impl("record_stream", _ignore_stream, "CPU")

    _device_constructors()  # PyTorch's list of what follows `with torch.device`, by identity
    for name in ("empty", "empty_like", "zeros", "ones", "full", "rand", "randn", "tensor"):
        setattr(torch, name, wrap(getattr(torch, name), _unpinned))
    torch.Tensor.npu = _npu
    torch.Tensor.to = wrap(torch.Tensor.to, _to)
    torch.Tensor.cpu = wrap(torch.Tensor.cpu, _cpu)
    torch.Tensor.pin_memory = wrap(torch.Tensor.pin_memory, _pin_memory)
    torch.UntypedStorage.__new__ = staticmethod(wrap(torch.UntypedStorage.__new__, _storage))
    # Before PyTorch's own for a spare device (23), which asks for as many devices as were saved.
    torch.serialization.register_package(9, lambda storage: None, _storage_from_file)
    torch.autocast.__init__ = wrap(torch.autocast.__init__, _autocast_on_cpu)
    torch.Generator = _Generator
    parallel = torch.nn.parallel.DistributedDataParallel
    parallel.__init__ = wrap(parallel.__init__, _parallel_on_cpu)
    # DataParallel without devices calls its module; the package's name for its file is a function.
    sys.modules["torch.nn.parallel.data_parallel"]._get_available_device_type = lambda: None
    for name in ("synchronize", "empty_cache"):
        setattr(torch.accelerator, name, _forwarding(getattr(module, name)))


def _take_spare_device(module: ModuleType) -> None:
    name = torch._C._get_privateuse1_backend_name()
    if name not in ("privateuseone", "npu"):
        raise FeatureError(
            f"PyTorch's one spare device is called '{name}' in this process and cannot be 'npu'. "
            "Use torch_npu's stand-in in a process without that other backend."
        )
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        raise FeatureError(
            f"PyTorch {torch.__version__} has no devices that are made in Python, as torch_npu's "
            "stand-in is. Use a newer PyTorch, or call fusion_attention's functions with this one."
        )
    setup("npu", module, hook=_hooks())
    backend_registration._generate_storage_methods_for_privateuse1_backend("npu")


def _hooks() -> Any:
    """Returns what PyTorch asks about the device."""

    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return True

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, index: int) -> bool:
            return True

    return Hooks()


def _forwarding(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns another function that does the same: PyTorch's compiler wants one for each name."""
    return lambda *args, **kwargs: function(*args, **kwargs)


def is_resident(tensor: Tensor) -> bool:
    """Says whether the tensor's memory was allocated for the device "npu".

    Views, parameters and detached tensors share the memory, and so the answer; results of
    arithmetic are the CPU's own.
    """
    try:
        return hasattr(tensor.untyped_storage(), _MARK)
    except NotImplementedError:  # a layout without one storage
        return False


def _maker(name: str) -> Callable[..., Tensor]:
    """Returns the device's kernel for an operator: the CPU's, and a mark on the memory."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> Tensor:
        kwargs |= {"device": _CPU, "pin_memory": False}
        tensor = operator(*args, **kwargs)
        setattr(tensor.untyped_storage(), _MARK, True)
        return tensor

    return make


def _ignore_stream(tensor: Tensor, stream: torch.Stream) -> None:
    """Memory of the CPU is freed by nobody else's stream."""


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


def _npu(tensor: Tensor, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """Tensor.npu(): moves to the device, or to the one of this index."""
    if device is None or isinstance(device, int):
        device = "npu" if device is None else f"npu:{device}"
    return tensor.to(device, non_blocking=non_blocking, **kwargs)


def _to(original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Copies from the host to the device and back, as between two memories."""
    if torch.compiler.is_compiling():  # what stands in a traced program, _compile.py replaces
        return original(tensor, *args, **kwargs)
    target = _target(args, kwargs)
    if target == "npu" and is_resident(tensor):
        if args:
            args = (_CPU, *args[1:])
        else:
            kwargs["device"] = _CPU
        return original(tensor, *args, **kwargs)
    moved = original(tensor, *args, **kwargs)
    return moved.clone() if target == "cpu" and moved is tensor else moved


def _cpu(original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    moved = original(tensor, *args, **kwargs)
    return moved.clone() if moved is tensor and not torch.compiler.is_compiling() else moved


def _pin_memory(
    original: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Returns the tensor: there is no device that would copy from pinned memory faster."""
    return tensor


def _unpinned(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Makes buffers for offloaded tensors, which PyTorch would ask the device's library to pin."""
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    return original(*args, **kwargs)


def _storage(
    original: Callable[..., torch.UntypedStorage], cls: type, *args: Any, device: Any = None
) -> torch.UntypedStorage:
    """Makes bare memory, as torch.load(map_location="npu") does."""
    if device is None or torch.device(device).type != "npu":
        return original(cls, *args, device=device)
    made = original(cls, *args, device="cpu")
    setattr(made, _MARK, True)
    return made


def _storage_from_file(storage: torch.UntypedStorage, location: str) -> Any:
    """Loads what was saved on a device, or is mapped to it; None leaves it to others."""
    return storage.npu() if location.partition(":")[0] == "npu" else None


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
