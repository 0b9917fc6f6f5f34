"""`info`: what is installed, what this machine offers, and what of it is used and why.

It computes nothing. The first thing to ask for when results or times differ between two machines.
"""

import argparse
import importlib.util
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fusion_attention
from fusion_attention import _library, _machine, _optional
from fusion_attention._environment import VARIABLES

HELP = "say what is installed, what this machine offers and what is selected"

# Whoever sets one of these decides how many threads PyTorch starts with.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Prints the facts."""
    found = facts()
    print(json.dumps(found, indent=1) if options.json else render(found))
    return 0


def facts() -> dict[str, Any]:
    """Returns everything that `info` prints, as plain values."""
    return {
        "fusion_attention": fusion_attention.__version__,
        "folder": str(Path(fusion_attention.__file__).parent),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {
            "name": _machine.cpu_name(),
            "cores": _machine.cores(),
            "flags": _machine.cpu_flags(),
        },
        "simd_targets": {
            "built": _library.built_targets(),
            "runnable": _library.targets(),
            **dict(zip(("selected", "why"), _selected(), strict=True)),
            "bfloat16": _bfloat16(),
        },
        "backends": _library.backends(),
        "threads": {"count": torch.get_num_threads(), "why": _why_threads()},
        "torch_npu": _version("torch_npu") if _vendor_is_installed() else None,
        "environment": {name: os.environ.get(name) for name in (*VARIABLES, *_THREAD_VARIABLES)},
        "optional_packages": {
            name: {
                "version": _version(name) if _optional.is_installed(name) else None,
                "feature": feature,
                "extra": extra,
            }
            for name, (feature, extra) in _optional.PACKAGES.items()
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # importable, but not installed as a distribution
        return "of unknown version"


def _vendor_is_installed() -> bool:
    """Whether there is a torch_npu that is not our own stand-in, which may be on the path."""
    spec = importlib.util.find_spec("torch_npu")
    package = Path(fusion_attention.__file__).parent
    return spec is not None and package not in Path(spec.origin or "").parents


def _selected() -> tuple[str | None, str]:
    """Returns the SIMD target in use, if any, and why it is that one."""
    try:
        target = _library.target()
    except RuntimeError as error:
        return None, str(error)
    if os.environ.get("FUSION_ATTENTION_TARGET"):
        return target, "FUSION_ATTENTION_TARGET names it"
    return target, "the best one that this build has and this CPU can run"


def _bfloat16() -> str:
    """Returns how the target in use multiplies bfloat16 inputs."""
    if _selected()[0] == "avx512_bf16":
        return (
            "bfloat16 is multiplied by the CPU's own instruction, weights are rounded to it; "
            "FUSION_ATTENTION_TARGET=avx512 multiplies in float32"
        )
    return "bfloat16 is multiplied in float32"


def _why_threads() -> str:
    count = torch.get_num_threads()
    for name in _THREAD_VARIABLES:
        if os.environ.get(name) == str(count):
            return f"{name}={count}"
    if count == _machine.cores():
        return "PyTorch took one for each core that this process may use"
    return f"PyTorch's choice; this process may use {_machine.cores()} cores"


def render(found: dict[str, Any]) -> str:
    """Returns the facts as text for a terminal."""
    cpu, threads = found["cpu"], found["threads"]
    simd, vendor = found["simd_targets"], found["torch_npu"]
    lines = [
        ("fusion_attention", f"{found['fusion_attention']} in {found['folder']}"),
        ("torch", found["torch"]),
        ("python", f"{found['python']} on {found['system']}"),
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores for this process"),
        ("", " ".join(cpu["flags"]) or "no flags known"),
        ("SIMD target", f"{simd['selected'] or 'NONE'}: {simd['why']}"),
        ("", simd["bfloat16"]),
        ("", f"built {', '.join(simd['built'])}; this CPU runs {', '.join(simd['runnable'])}"),
        ("backends", f"{', '.join(found['backends'])} (the first that supports a call runs it)"),
        ("threads", f"{threads['count']}: {threads['why']} (torch.set_num_threads changes it)"),
        (
            "torch_npu",
            f"{vendor}: gets the calls on NPU tensors"
            if vendor
            else "not installed: `python -m fusion_attention run` stands in for it",
        ),
    ]
    environment = [
        (name, f"{value if value is not None else '(not set)'}", VARIABLES.get(name, "PyTorch's"))
        for name, value in found["environment"].items()
    ]
    packages = [
        (
            name,
            package["version"] or "(missing)",
            package["feature"]
            if package["version"]
            else f"{package['feature']}: pip install {name}",
        )
        for name, package in found["optional_packages"].items()
    ]
    return "\n".join(
        [
            *_columns(lines),
            "",
            "environment",
            *_columns(environment, "  "),
            "",
            "optional packages",
            *_columns(packages, "  "),
        ]
    )


def _columns(rows: list[tuple[str, ...]], indent: str = "") -> list[str]:
    """Returns the rows as lines, all columns but the last as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
