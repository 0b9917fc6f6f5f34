"""torch_npu.profiler: PyTorch's profiler under the vendor's names.

Traces are PyTorch's: what the CPU did, in the files that torch.profiler writes. What only the
device can be asked, by the experimental configuration, is remembered and has no effect.
"""

import enum
from collections.abc import Callable, Iterable
from typing import Any

from torch import profiler
from torch.profiler import ProfilerAction, ProfilerActivity, supported_activities

from fusion_attention.torch_npu._absent import absent
from fusion_attention.torch_npu.npu._options import Settings

__all__ = [
    "AiCMetrics",
    "ExportType",
    "ProfilerAction",
    "ProfilerActivity",
    "ProfilerLevel",
    "profile",
    "schedule",
    "supported_activities",
    "tensorboard_trace_handler",
]


class ProfilerLevel(enum.Enum):
    """How much is asked of the device."""

    Level_none = "Level_none"
    Level0 = "Level0"
    Level1 = "Level1"
    Level2 = "Level2"


class AiCMetrics(enum.Enum):
    """Which counters of the device's cores are asked for."""

    AiCoreNone = "AiCoreNone"
    PipeUtilization = "PipeUtilization"
    ArithmeticUtilization = "ArithmeticUtilization"
    Memory = "Memory"
    MemoryL0 = "MemoryL0"
    MemoryUB = "MemoryUB"
    MemoryAccess = "MemoryAccess"
    ResourceConflictRatio = "ResourceConflictRatio"
    L2Cache = "L2Cache"


class ExportType(enum.Enum):
    """The formats of the vendor's tools."""

    Db = "Db"
    Text = "Text"


class _ExperimentalConfig(Settings):
    """Remembers what would be asked of the device."""


class profile(profiler.profile):  # noqa: N801
    """torch.profiler.profile of the CPU, whatever the activities."""

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        experimental_config: _ExperimentalConfig | None = None,
        use_cuda: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activities=[ProfilerActivity.CPU], **kwargs)


def schedule(
    wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0
) -> Callable[[int], ProfilerAction]:
    """Returns torch.profiler.schedule, with the vendor's order of parameters."""
    return profiler.schedule(
        wait=wait, warmup=warmup, active=active, repeat=repeat, skip_first=skip_first
    )


def tensorboard_trace_handler(
    dir_name: str | None = None,
    worker_name: str | None = None,
    analyse_flag: bool = True,
    async_mode: bool = False,
) -> Callable[[profiler.profile], None]:
    """Returns what writes PyTorch's trace files into a folder, by default the working one."""
    return profiler.tensorboard_trace_handler(dir_name or ".", worker_name)


def __getattr__(name: str) -> Any:
    raise absent("torch_npu.profiler", name, __all__)
