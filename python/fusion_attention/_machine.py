"""What this process runs on: the CPU, its cores and its instruction sets, as the system tells them.

Knows Linux's files and falls back to what Python's standard library knows. Knows no operator.
"""

import functools
import os
import pathlib
import platform

#: Instruction sets that a SIMD target needs or that other libraries use for this work, best last.
_X86_FLAGS = (
    *("sse4_1", "sse4_2", "pclmulqdq", "aes", "bmi1", "bmi2", "f16c", "fma", "avx2"),
    *("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16"),
)
_ARM_FLAGS = ("asimd", "asimdhp", "asimddp", "bf16", "sve", "sve2", "sme")


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    file = pathlib.Path("/proc/cpuinfo")
    if not file.is_file():
        return {}
    first = file.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_name() -> str:
    """Returns the CPU's own name, or the architecture where the system does not tell it."""
    return _cpuinfo().get("model name") or platform.machine()


def cpu_flags() -> list[str]:
    """Returns those of the CPU's flags that matter to attention."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in (*_X86_FLAGS, *_ARM_FLAGS) if flag in present]


def amd_family() -> int:
    """Returns the family of an AMD CPU, 25 for Zen 3 and Zen 4, 26 for Zen 5; 0 for other CPUs."""
    info = _cpuinfo()
    return int(info["cpu family"]) if info.get("vendor_id") == "AuthenticAMD" else 0


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
