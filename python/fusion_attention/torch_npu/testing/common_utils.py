"""torch_npu.testing.common_utils: test data in pairs, and which devices a test is for."""

import contextlib
import functools
import itertools
import os
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_attention.torch_npu import npu


def get_npu_device() -> str:
    """Returns the device that tests use: npu:0, or the one that SET_NPU_DEVICE numbers."""
    return f"npu:{os.environ.get('SET_NPU_DEVICE', '0')}"


def set_npu_device() -> str:
    """Makes the device that tests use the current one, and returns its name."""
    device = get_npu_device()
    npu.set_device(device)
    return device


def create_common_tensor(
    item: Sequence[Any],
    minValue: float,
    maxValue: float,
    device: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the same uniformly random numbers as a tensor of the CPU and one of the device.

    Args:
        item: A numpy dtype, a storage format of the device (any; none exists here), a shape.
        minValue: The least value.
        maxValue: The value that all are below.
        device: The device, by default that of get_npu_device().
    """
    dtype, _, shape = item
    values = np.random.uniform(minValue, maxValue, shape).astype(dtype)
    # Two copies, for a test may change one of them in place.
    return torch.from_numpy(values), torch.from_numpy(values.copy()).to(device or get_npu_device())


def create_dtype_tensor(
    shape: Sequence[int],
    dtype: torch.dtype,
    npu_format: int = -1,
    min_value: float = -5,
    max_value: float = 5,
    no_zero: bool = False,
    device: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the same random values as a tensor of the CPU and one of the device.

    bool, float16 and float32 as asked for; every other dtype gives int32, as the vendor's does.
    """
    if dtype == torch.bool:
        values = np.random.randint(0, 2, size=shape).astype(bool)
    elif dtype in (torch.float16, torch.float32):
        kind = np.float16 if dtype == torch.float16 else np.float32
        values = np.random.uniform(min_value, max_value, shape).astype(kind)
    else:
        values = np.random.randint(min_value, max_value + 1, size=shape).astype(np.int32)
    if no_zero:
        values = np.where(values != 0, values, np.ones_like(values))
    return torch.from_numpy(values), torch.from_numpy(values.copy()).to(device or get_npu_device())


class SupportedDevices:
    """Skips a test on devices that are not listed: the first ten letters of the device's name."""

    def __init__(self, supported_devices: Sequence[str]) -> None:
        self.supported_devices = supported_devices

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def run_where_supported(case: Any, *args: Any, **kwargs: Any) -> Any:
            name = npu.get_device_name(0)[:10]
            if name not in self.supported_devices:
                raise unittest.SkipTest(
                    f"Only run on {self.supported_devices!r}, current device is {name}."
                )
            return test(case, *args, **kwargs)

        return run_where_supported


class SkipIfNotGteCANNVersion:
    """Runs a test that needs some release of CANN: there is none here that could be too old."""

    def __init__(self, version: str) -> None:
        self.version = version

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        return test


@contextlib.contextmanager
def freeze_rng_state() -> Iterator[None]:
    """Gives the generator its state back at the end of a `with` block."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def iter_indices(tensor: Tensor) -> Iterable[Any]:
    """Returns the indices of all elements: integers for one axis, tuples for more."""
    if tensor.dim() <= 1:
        return range(tensor.numel() if tensor.dim() else 0)
    return itertools.product(*map(range, tensor.shape))


def is_iterable(value: Any) -> bool:
    """Says whether `for x in value` would work."""
    try:
        iter(value)
    except TypeError:
        return False
    return True
