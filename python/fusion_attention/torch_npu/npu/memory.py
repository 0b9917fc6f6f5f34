"""torch_npu.npu.memory: the figures of this process, for its tensors live in its memory.

"allocated" and "reserved" are what the process holds, resident, with all that is no tensor; "max"
is the highest that this was since the last reset. Where the system has no /proc they are 0.
"""

import os
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_allocated(device: Any = None) -> int:
    """Returns how many bytes of memory the process holds."""
    return _process("VmRSS")


def max_memory_allocated(device: Any = None) -> int:
    """Returns the most bytes of memory that the process has held since the last reset."""
    return _process("VmHWM")


def reset_peak_memory_stats(device: Any = None) -> None:
    """Makes the present figure the highest."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # a system that does not count, or does not let itself be reset


memory_reserved = memory_cached = memory_allocated
max_memory_reserved = max_memory_cached = max_memory_allocated
reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Does nothing: no figure accumulates."""


def memory_stats(device: Any = None) -> dict[str, int]:
    """Returns the current and the highest figures under the names that clients read."""
    current, peak = memory_allocated(), max_memory_allocated()
    return {
        f"{kind}_bytes.all.{name}": value
        for kind in ("allocated", "reserved", "active")
        for name, value in (("current", current), ("peak", peak))
    }


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """Returns the figures as text."""
    current, peak = memory_allocated(), max_memory_allocated()
    return f"this process, on the CPU: {current >> 20} MiB resident, {peak >> 20} MiB at most"


def memory_snapshot() -> list[Any]:
    """Returns an empty list: the CPU's allocator keeps no records."""
    return []


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Returns the machine's (available, total) bytes."""
    total = _PAGE * os.sysconf("SC_PHYS_PAGES")
    return _kilobytes("/proc/meminfo", "MemAvailable"), total


def empty_cache() -> None:
    """Does nothing: the CPU's allocator keeps no cache."""


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Does nothing."""


def _process(name: str) -> int:
    return _kilobytes("/proc/self/status", name)


def _kilobytes(path: str, name: str) -> int:
    """Returns a figure of one of the system's lists, in bytes."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
