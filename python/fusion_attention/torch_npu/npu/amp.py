"""torch_npu.npu.amp: mixed precision. It is the CPU's autocast and PyTorch's scaler of losses."""

import functools
from typing import Any

import torch


class autocast(torch.autocast):  # noqa: N801
    """torch.autocast of the device."""

    def __init__(
        self,
        enabled: bool = True,
        dtype: torch.dtype = torch.float16,
        cache_enabled: bool | None = True,
    ) -> None:
        super().__init__("cpu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler of the device; `dynamic=False` keeps the scale as it is."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ) -> None:
        super().__init__("cpu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def update(self, new_scale: Any = None) -> None:
        if self._dynamic or new_scale is not None:
            super().update(new_scale)
        else:
            self._per_optimizer_states.clear()


custom_fwd = functools.partial(torch.amp.custom_fwd, device_type="cpu")
custom_bwd = functools.partial(torch.amp.custom_bwd, device_type="cpu")


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Returns what autocast may cast to."""
    return [torch.float16, torch.bfloat16, torch.float32]


def is_autocast_enabled() -> bool:
    """Says whether the CPU's autocast is on."""
    return torch.is_autocast_enabled("cpu")


def set_autocast_enabled(enabled: bool) -> None:
    """Turns the CPU's autocast on or off."""
    torch.set_autocast_enabled("cpu", enabled)


def get_autocast_dtype() -> torch.dtype:
    """Returns what the CPU's autocast casts to."""
    return torch.get_autocast_dtype("cpu")


def set_autocast_dtype(dtype: torch.dtype) -> None:
    """Sets what the CPU's autocast casts to."""
    torch.set_autocast_dtype("cpu", dtype)
