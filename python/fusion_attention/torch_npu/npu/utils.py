"""torch_npu.npu.utils: which devices there are, what they are called, and which one is current.

There is as much of a device as programs ask for: one, or one for each process that a launcher has
started on this machine. All of them are this machine's CPU.
"""

import contextlib
import math
import os
import threading
import types
import warnings
from typing import Any

import torch

_current = threading.local()

#: What the device is called; transfer_to_npu adds "cuda".
NAMES = {"npu"}

#: What torch_npu calls the devices; clients look for "Ascend910B" in it.
_DEFAULT_NAME = "Ascend910B1"


def is_available() -> bool:
    """Says True: the stand-in is there."""
    return True


def is_initialized() -> bool:
    """Says True: there is nothing to initialize."""
    return True


def init() -> None:
    """Does nothing: there is nothing to initialize."""


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    """Returns FUSION_ATTENTION_NPU_COUNT, or one device for each process of a launcher."""
    return int(
        os.environ.get("FUSION_ATTENTION_NPU_COUNT") or os.environ.get("LOCAL_WORLD_SIZE") or 1
    )


def current_device() -> int:
    """Returns the index of the current device."""
    return getattr(_current, "index", 0)


def set_device(device: int | str | torch.device) -> None:
    """Makes a device current.

    Raises:
        RuntimeError: There are not so many devices.
    """
    _current.index = _index(device)


def get_device_name(device: int | str | torch.device | None = None) -> str:
    """Returns FUSION_ATTENTION_NPU_NAME, by default the name of a device that clients know."""
    _index(device)
    return os.environ.get("FUSION_ATTENTION_NPU_NAME", _DEFAULT_NAME)


def get_device_properties(device: int | str | torch.device | None = None) -> Any:
    """Returns the device's name and this machine's memory and number of processors."""
    name = get_device_name(device)
    return types.SimpleNamespace(
        name=name,
        gcnArchName=name,  # PyTorch's compiler asks for it where torch.cuda is available
        total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        multi_processor_count=os.cpu_count(),
    )


def get_device_capability(device: int | str | torch.device | None = None) -> None:
    """Returns None with a warning, as the vendor's does: the devices have no such numbers."""
    _index(device)
    warnings.warn("torch.npu.get_device_capability isn't implemented!", stacklevel=2)


def can_device_access_peer(device: int, peer_device: int) -> bool:
    """Says True: all devices share one memory."""
    return _index(device) >= 0 and _index(peer_device) >= 0


def is_bf16_supported() -> bool:
    """Says True."""
    return True


def synchronize(device: int | str | torch.device | None = None) -> None:
    """Does nothing: every call has finished when it returns."""
    _index(device)


def ipc_collect() -> None:
    """Does nothing."""


def npu_check_overflow(grad: float | torch.Tensor) -> bool:
    """Says whether a number, or the sum of a tensor in float32, is infinite or NaN."""
    total = grad if isinstance(grad, float) else float(grad.float().sum())
    return not math.isfinite(total)


def get_npu_overflow_flag() -> bool:
    """Raises the RuntimeError of devices that, as the CPU, compute with infinities: no flag."""
    raise RuntimeError(
        "torch_npu: there is no overflow flag on an Ascend910B1 and later, nor on the CPU. "
        "Use torch_npu.npu.utils.npu_check_overflow(grad)."
    )


def clear_npu_overflow_flag() -> None:
    """Raises the RuntimeError of get_npu_overflow_flag()."""
    get_npu_overflow_flag()


class device(contextlib.ContextDecorator):  # noqa: N801
    """Makes a device current within a `with` block."""

    def __init__(self, device: int | str | torch.device | None) -> None:
        self.idx = _index(device)
        self._previous = 0

    def __enter__(self) -> None:
        self._previous = current_device()
        _current.index = self.idx

    def __exit__(self, *_: object) -> None:
        _current.index = self._previous


class device_of(device):  # noqa: N801
    """Makes the device of a tensor current, which for a tensor of the CPU is the current one."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(None)


def _index(given: int | str | torch.device | None) -> int:
    """Returns the index of a device that exists."""
    if isinstance(given, str | torch.device):
        given = torch.device(given)
        if given.type not in NAMES | {"cpu"}:
            raise ValueError(f"torch_npu: expected a device of type npu, but got {given}.")
        given = None if given.type == "cpu" else given.index
    index = current_device() if given is None or given < 0 else given
    if index >= device_count():
        raise RuntimeError(
            f"torch_npu: expected a device below {device_count()}, but got npu:{index}. "
            f"FUSION_ATTENTION_NPU_COUNT={index + 1} makes that many devices of this CPU."
        )
    return index
