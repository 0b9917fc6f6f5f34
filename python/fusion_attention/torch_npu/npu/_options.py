"""Switches of the device's compiler and its numerics: taken, remembered, and without effect.

There is no compiler to tell, and the CPU's results do not depend on them.
"""

from typing import Any

_options: dict[str, Any] = {}
_switches: dict[str, bool] = {"mm_bmm_format_nd": True}


class Settings:
    """Takes any attribute, as torch.npu.config does, and gives back what it was set to."""

    def __init__(self, **defaults: Any) -> None:
        self.__dict__.update(defaults)


config = Settings(allow_internal_format=False)
matmul = Settings(allow_hf32=False)
conv = Settings(allow_hf32=True)


def set_option(option: dict[str, Any]) -> None:
    """Remembers options."""
    if not isinstance(option, dict):
        raise TypeError(f"torch_npu: expected option to be a dict, but got {option!r:.40}.")
    _options.update(option)


def set_compile_mode(jit_compile: bool = False) -> None:
    """Remembers the mode."""
    _options["jitCompile"] = "enable" if jit_compile else "disable"


def is_jit_compile_false() -> bool:
    """Says whether set_compile_mode(jit_compile=False) is in force; it is at the start."""
    return _options.get("jitCompile", "disable") == "disable"


def set_mm_bmm_format_nd(is_nd: bool) -> None:
    """Remembers the format."""
    _switches["mm_bmm_format_nd"] = is_nd


def get_mm_bmm_format_nd() -> bool:
    """Returns what set_mm_bmm_format_nd() was given; True at the start."""
    return _switches["mm_bmm_format_nd"]
