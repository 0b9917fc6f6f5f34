"""Finds and loads the compiled operators, and gives them their Python error types.

The shared library lies in the package's folder and registers `torch.ops.fusion_attention.*`.
Nothing here knows what the operators mean.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import torch

_FILE_NAMES = ("libfusion_attention_torch.so", "libfusion_attention_torch.dylib")


def _load() -> None:
    # An editable install has two folders: the sources, and the one that holds what was compiled.
    folders = __import__(__package__).__path__
    candidates = [pathlib.Path(folder) / name for folder in folders for name in _FILE_NAMES]
    for candidate in candidates:
        if candidate.is_file():
            torch.ops.load_library(candidate)
            return
    raise ImportError(
        f"fusion_attention: its compiled operators are missing, looked for {candidates}"
    )


def translated(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an operator so that its errors have the types that the package documents.

    A library on PyTorch's stable ABI can only throw standard C++ exceptions. A broken rule arrives
    as RuntimeError already; the two exceptions below were chosen because the bindings keep them
    apart (torch/adapt.h).
    """

    def wrapper(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except ValueError as error:
            raise NotImplementedError(str(error)) from None
        except MemoryError as error:
            raise torch.OutOfMemoryError(str(error)) from None

    return wrapper


def targets() -> list[str]:
    """Returns the SIMD targets that this build has and this CPU can run, best first."""
    return torch.ops.fusion_attention.targets.default().split(",")


def built_targets() -> list[str]:
    """Returns the SIMD targets that this build has, whatever the CPU, best first."""
    return torch.ops.fusion_attention.built_targets.default().split(",")


def backends() -> list[str]:
    """Returns the names of the backends, in order of preference."""
    return torch.ops.fusion_attention.backends.default().split(",")


def target() -> str:
    """Returns the SIMD target in use: the best, or what FUSION_ATTENTION_TARGET names.

    Raises:
        RuntimeError: That variable names a target which is not there.
    """
    return torch.ops.fusion_attention.target.default()


class NotPlainError(Exception):
    """A plain operator did not run: it failed, or somebody stands between it and its kernel."""


def _refuse(*_: Any) -> Any:
    raise NotPlainError


_load()
forward = translated(torch.ops.fusion_attention.forward.default)
backward = translated(torch.ops.fusion_attention.backward.default)
check = translated(torch.ops.fusion_attention.check.default)
check_shapes = translated(torch.ops.fusion_attention.check_shapes.default)
dropout_mask = translated(torch.ops.fusion_attention.dropout_mask.default)
describe = translated(torch.ops.fusion_attention.describe.default)
row_keys = translated(torch.ops.fusion_attention.row_keys.default)

# The plain operators (_plain.py), two for each layout, are for the usual case alone. In all others
# they have a kernel that refuses, so that the usual one need not ask: meta tensors, autocast,
# jit.trace, torch.func, and modes and subclasses that dispatch. Modes of torch functions see the
# operator before any kernel could refuse; they get the same results. torch.export, which has such a
# mode, is asked for (_plain.py): it would keep both the operator that refused and the general one.
_REFUSED = ("Meta", "Tracer", "FuncTorchDynamicLayerFrontMode", "Python")
_fragment = torch.library.Library("fusion_attention", "FRAGMENT")


def _plain(name: str, refused: tuple[str, ...]) -> Callable[..., Any]:
    for key in refused:
        _fragment.impl(name, _refuse, key)
    return getattr(torch.ops.fusion_attention, name).default._op  # the overload's call costs 0.3 us


_LAYOUTS = ("BSH", "SBH", "BNSD", "BSND", "TND")
forward_plain = {x: _plain(f"forward_plain_{x}", (*_REFUSED, "AutocastCPU")) for x in _LAYOUTS}
backward_plain = {x: translated(_plain(f"backward_plain_{x}", _REFUSED)) for x in _LAYOUTS}
