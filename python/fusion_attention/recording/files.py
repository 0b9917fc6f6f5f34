"""The two files of a recorded step: tensors in the safetensors format, everything else in JSON.

Nothing read here can run code or name another file: JSON holds values only, file names are fixed,
and every part carries a SHA-256 that is checked before anything is used. Knows no call.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion_attention import _optional
from fusion_attention._errors import FeatureError
from fusion_attention.recording.tensors import memory

# Safetensors' names of dtypes.
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Lists of 2048 sequences and a description for each tensor need some hundred kilobytes.
_MAX_JSON_BYTES = 16 * 2**20
_NUMBERS = re.compile(r"\[[^][{}\"]*\]")  # a list of numbers, which people read in one line


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes contiguous CPU tensors as a safetensors file.

    Written here because the package's own writer needs numpy and, below it, an interface that
    changed between its releases: eight bytes of length, a JSON header, the bytes of the tensors.
    """
    header, begin = {}, 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(memory(tensor))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Opens a safetensors file; says what is wrong with one that is none."""
    require_file(path)
    safetensors = _optional.load("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise FeatureError(f"{path} is damaged or was cut short: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads every tensor of a safetensors file.

    Raises:
        FeatureError: It is missing, damaged or cut short.
    """
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with its own digest; the file appears whole or not at all."""
    text = json.dumps(content | {"digest": _digest(content)}, indent=1, allow_nan=False)
    text = _NUMBERS.sub(lambda numbers: " ".join(numbers.group().split()), text)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        FeatureError: It is missing, damaged, cut short or was changed.
    """
    require_file(path)
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise FeatureError(f"{path} has {size} bytes, more than any recorded call needs")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FeatureError(f"{path} is damaged or was cut short: {error}") from None
    if not isinstance(content, dict):
        raise FeatureError(f"{path} is not a recorded call")
    written = content.pop("digest", None)
    if written != _digest(content):
        raise FeatureError(f"{path} was changed after it was recorded: its digest does not fit")
    return content


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def require_file(path: Path) -> None:
    """Raises unless there is a plain file: no link, which could lead anywhere."""
    if path.is_symlink():
        raise FeatureError(f"{path} is a link; a record has plain files only")
    if not path.is_file():
        raise FeatureError(f"{path} is missing")
