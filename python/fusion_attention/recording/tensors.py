"""Tensors as values on disk: what describes one, its bytes, its digest, and how it is made again.

An axis that repeats its elements (stride 0, as expand() makes it) is stored once, so a mask that
was expanded over batches and heads costs one mask. Knows neither files nor calls.
"""

import ctypes
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_attention._errors import FeatureError

#: The dtypes that a call of the family may hold, by the names in JSON.
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
_FIGURES = ("min", "max", "mean", "norm", "nan", "infinite")
_CHUNK = 2**15  # in double, a chunk stays in a core's cache: 6 times as fast as 2**20
# What an allocation of one storage may be asked for; untouched memory costs nothing until then.
_MAX_STORAGE_BYTES = 2**40
# Where an element lies within a cache line is all that a kernel could notice of a storage offset.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Description:
    """All of a tensor but its elements; those are held by `digest` and `statistics`, if kept."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    device: str
    requires_grad: bool
    sha256: str | None = None
    statistics: dict[str, float | int | None] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what is stored: repeated axes are cut to one."""
        pairs = zip(self.shape, self.stride, strict=True)
        return tuple(1 if size > 1 and stride == 0 else size for size, stride in pairs)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def describe(tensor: Tensor, plain: Tensor | None) -> Description:
    """Describes a tensor; with the digest and the statistics of `plain`, if that is given."""
    return Description(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        stride=tuple(tensor.stride()),
        storage_offset=tensor.storage_offset(),
        device=str(tensor.device),
        requires_grad=tensor.requires_grad,
        sha256=None if plain is None else digest(plain),
        statistics=None if plain is None else statistics(plain),
    )


def plain_copy(tensor: Tensor) -> Tensor:
    """Returns the elements to store: on the CPU, contiguous, repeated axes cut to one."""
    return _without_repeats(tensor.detach()).cpu().resolve_neg().contiguous()


def _without_repeats(tensor: Tensor) -> Tensor:
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def memory(plain: Tensor) -> memoryview:
    """Returns the bytes of a contiguous CPU tensor, which must outlive them."""
    if plain.nbytes == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * plain.nbytes).from_address(plain.data_ptr())).cast("B")


def digest(plain: Tensor) -> str:
    """Returns the SHA-256 of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(memory(plain)).hexdigest()


def statistics(plain: Tensor) -> dict[str, float | int | None]:
    """Returns what tells two tensors apart at a glance; figures are those of finite elements.

    Example:
        >>> statistics(torch.tensor([3.0, -4.0, float("nan")]))
        {'min': -4.0, 'max': 3.0, 'mean': -0.5, 'norm': 5.0, 'nan': 1, 'infinite': 0}
    """
    least, most, total, squares = math.inf, -math.inf, 0.0, 0.0
    nan = infinite = 0
    for chunk in plain.reshape(-1).split(_CHUNK):
        if plain.is_floating_point() and not (finite := chunk.isfinite()).all():
            nan += int(chunk.isnan().sum())
            infinite += int(chunk.isinf().sum())
            chunk = chunk[finite]
        if chunk.numel():
            values = chunk.double()
            least, most = min(least, values.min().item()), max(most, values.max().item())
            total += values.sum().item()
            squares += values.dot(values).item()
    count = plain.numel() - nan - infinite
    if count == 0:
        figures: dict[str, float | int | None] = dict.fromkeys(_FIGURES[:4])
    else:
        figures = {"min": least, "max": most, "mean": total / count, "norm": math.sqrt(squares)}
        # The squares of large float64 values overflow; JSON has no infinity.
        figures = {name: x if math.isfinite(x) else None for name, x in figures.items()}
    return figures | {"nan": nan, "infinite": infinite}


def restore(description: Description, plain: Tensor) -> Tensor:
    """Returns the tensor that was described, with its strides, from its stored elements.

    The storage offset is restored up to whole cache lines; elements between those of the tensor are
    zero.

    Raises:
        FeatureError: There is no memory for a tensor of these strides.
    """
    shape, stride = description.shape, description.stride
    offset = description.storage_offset % (_ALIGNMENT // plain.element_size())
    if plain.is_contiguous() and plain.shape == shape and plain.stride() == stride and offset == 0:
        return plain
    if 0 in shape:
        span = 0
    else:
        span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    needed = (offset + span) * plain.element_size()
    try:
        if needed > _MAX_STORAGE_BYTES:
            raise MemoryError
        storage = torch.zeros(offset + span, dtype=plain.dtype)
    except (RuntimeError, MemoryError):
        raise FeatureError(
            f"a recorded tensor of {description} with strides {list(stride)} needs "
            f"{needed} bytes of memory, which are not there"
        ) from None
    view = storage.as_strided(shape, stride, offset)
    _without_repeats(view).copy_(plain)
    return view


def dtype_named(name: Any) -> torch.dtype:
    """Returns the dtype of this name.

    Raises:
        ValueError: There is none that a call could have.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"there is no dtype {name!r:.40}")
    return DTYPES[name]


def without_elements(description: Description) -> Tensor:
    """Returns the tensor as shape, dtype and strides only, on the meta device."""
    return torch.empty_strided(
        description.shape, description.stride, dtype=DTYPES[description.dtype], device="meta"
    )


def to_json(description: Description) -> dict[str, Any]:
    """Returns the description as JSON's values."""
    return {
        "dtype": description.dtype,
        "shape": list(description.shape),
        "stride": list(description.stride),
        "storage_offset": description.storage_offset,
        "device": description.device,
        "requires_grad": description.requires_grad,
        "sha256": description.sha256,
        "statistics": description.statistics,
    }


def from_json(value: Any) -> Description:
    """Returns the description that `to_json` wrote.

    Raises:
        ValueError: It did not write this; the text says what is wrong.
    """
    if not isinstance(value, dict) or value.keys() != set(Description.__dataclass_fields__):
        raise ValueError("a tensor's description lacks an entry or has one too many")
    for name in ("shape", "stride"):
        numbers = value[name]
        if not isinstance(numbers, list) or not all(_is_count(x) for x in numbers):
            raise ValueError(f"a tensor's {name} is not a list of integers from 0 to 2**62")
    if len(value["shape"]) != len(value["stride"]) or len(value["shape"]) > 16:
        raise ValueError("a tensor has not as many strides as axes, or more than 16")
    if math.prod(value["shape"]) > 2**62:
        raise ValueError("a tensor has more than 2**62 elements")
    if not _is_count(value["storage_offset"]):
        raise ValueError("a storage offset is not an integer from 0 to 2**62")
    dtype_named(value["dtype"])
    if not isinstance(value["requires_grad"], bool) or not isinstance(value["device"], str):
        raise ValueError("a tensor's requires_grad or device has the wrong type")
    if not isinstance(value["sha256"], str | None):
        raise ValueError("a tensor's digest is no text")
    figures = value["statistics"]
    if figures is not None and not (
        isinstance(figures, dict)
        and tuple(figures) == _FIGURES
        and all(isinstance(figure, int | float | None) for figure in figures.values())
    ):
        raise ValueError("a tensor's statistics are no table of figures")
    return Description(
        **{**value, "shape": tuple(value["shape"]), "stride": tuple(value["stride"])}
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 2**62
