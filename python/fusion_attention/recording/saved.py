"""A saved call: a folder that holds one call of the family, its results and its backward passes.

    call.json                 function, arguments, results, what it ran on
    inputs.safetensors        the tensors among the arguments, by the arguments' names
    results.safetensors       the tensors among the results: out, softmax_max, softmax_sum, ...
    backward-1.json           the first backward pass through out, if there was one
    backward-1.safetensors    dy and the gradients: dq, dk, dv, ...

Everything is checked while it is read; who holds a SavedCall holds one that fits its function.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion_attention._call import Call, bind
from fusion_attention._errors import FeatureError
from fusion_attention.recording import files, tensors
from fusion_attention.recording.tensors import Description

FORMAT = "a recorded call of fusion_attention"
VERSION = 1

_MERGED = ("out", "softmax_max", "softmax_sum")
_ATTENTION = (*_MERGED, "reserved", "seed", "offset")
_GRADIENTS = ("dq", "dk", "dv", "dpse", "dsink")
#: The names of what each function returns.
RESULTS = {
    "npu_fusion_attention": (*_ATTENTION, "numels"),
    "npu_fusion_attention_grad": _GRADIENTS,
    "npu_fusion_attention_v2": (*_ATTENTION, "numels"),
    "npu_fusion_attention_grad_v2": ("dq", "dk", "dv", "dpse", "dq_rope", "dk_rope", "dsink"),
    "npu_fusion_attention_v3": _ATTENTION,
    "npu_fusion_attention_grad_v3": _GRADIENTS,
    "npu_ring_attention_update": _MERGED,
    "_npu_dropout_gen_mask": ("mask",),
}
#: Those that autograd can go back through. The others return gradients or have no derivative.
DIFFERENTIABLE = ("npu_fusion_attention", "npu_fusion_attention_v2", "npu_fusion_attention_v3")
#: How much of the tensors is kept.
KEPT = ("all", "statistics", "none")

_BACKWARD = re.compile(r"backward-(\d+)\.(?:json|safetensors|unfinished)")

Value = Any  # a Description, or a plain value: None, bool, int, float, str or a list of them


@dataclass(frozen=True)
class Backward:
    """One backward pass: the descriptions of dy and of the gradients that were asked for."""

    number: int
    values: dict[str, Description]


@dataclass(frozen=True)
class SavedCall:
    """One recorded call without the elements of its tensors.

    Attributes:
        folder: Where it is.
        kept: How much of the tensors is in the files, one of KEPT.
        function: The name of the function.
        arguments: Its arguments by name.
        results: Its results by name.
        autocast: The dtype of the autocast that the call was made under, if any.
        grad_enabled: Whether autograd recorded the call.
        machine: What it ran on: versions, cpu, target, threads, rank, process.
        backward: Its backward passes.
    """

    folder: Path
    kept: str
    function: str
    arguments: dict[str, Value]
    results: dict[str, Value]
    autocast: str | None
    grad_enabled: bool
    machine: dict[str, Any]
    backward: tuple[Backward, ...] = field(default=())

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Reads the tensors of the arguments, with their strides, and those of the results.

        Raises:
            FeatureError: They are not there, or not what the call says.
        """
        inputs = _elements(self.folder / "inputs.safetensors", self.arguments)
        arguments = {
            name: tensors.restore(self.arguments[name], plain) for name, plain in inputs.items()
        }
        results = _elements(self.folder / "results.safetensors", self.results)
        return arguments, _expanded(results, self.results)

    def backward_tensors(self, backward: Backward) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Reads dy, with its strides, and the gradients of a backward pass."""
        path = self.folder / f"backward-{backward.number}.safetensors"
        found = _elements(path, backward.values)
        dy = found.pop("dy", None)
        if dy is not None:
            dy = tensors.restore(backward.values["dy"], dy)
        return dy, _expanded(found, backward.values)


def write(saved: SavedCall, inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
    """Writes a call into its folder, which exists. The JSON file comes last: it makes it valid."""
    if saved.kept == "all":
        files.write_tensors(saved.folder / "inputs.safetensors", inputs)
        files.write_tensors(saved.folder / "results.safetensors", results)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kept": saved.kept,
        "function": saved.function,
        "arguments": _encode(saved.arguments),
        "results": _encode(saved.results),
        "autocast": saved.autocast,
        "grad_enabled": saved.grad_enabled,
        "machine": saved.machine,
    }
    files.write_json(saved.folder / "call.json", content)


def write_backward(
    folder: Path, kept: str, backward: Backward, elements: dict[str, Tensor]
) -> None:
    """Writes a backward pass beside its call."""
    path = folder / f"backward-{backward.number}.json"
    if kept == "all":
        files.write_tensors(path.with_suffix(".safetensors"), elements)
    content = {"format": FORMAT, "version": VERSION, "values": _encode(backward.values)}
    files.write_json(path, content)


def read(folder: Path) -> SavedCall:
    """Reads and checks the JSON files of a saved call.

    Raises:
        FeatureError: Something is missing, damaged, changed, or does not fit the function.
    """
    path = folder / "call.json"
    content = _content(path)
    try:
        function = content["function"]
        if not isinstance(function, str) or function not in RESULTS:
            raise ValueError(f"{function!r:.60} is no function of the family")
        arguments = bind(function, **_decode(content["arguments"])).arguments
        if not isinstance(next(iter(arguments.values())), Description):
            raise ValueError("its first argument is no tensor")
        results = _decode(content["results"])
        if tuple(results) != RESULTS[function]:
            raise ValueError(f"its results are not those of {function}")
        if content["kept"] not in KEPT:
            raise ValueError(f"it keeps {content['kept']!r:.40}")
        if content["autocast"] is not None:
            tensors.dtype_named(content["autocast"])
        if not isinstance(content["grad_enabled"], bool):
            raise ValueError("grad_enabled is neither true nor false")
        if not isinstance(content["machine"], dict):
            raise ValueError("it does not say what it ran on")
        return SavedCall(
            folder=folder,
            kept=content["kept"],
            function=function,
            arguments=arguments,
            results=results,
            autocast=content["autocast"],
            grad_enabled=content["grad_enabled"],
            machine=content["machine"],
            backward=tuple(_read_backward(folder)),
        )
    except KeyError as error:
        raise FeatureError(f"{path} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise FeatureError(f"{path} is not a call that can be made: {error}") from None


def _read_backward(folder: Path) -> list[Backward]:
    found = (_BACKWARD.fullmatch(file.name) for file in folder.iterdir())
    last = max((int(match.group(1)) for match in found if match), default=0)
    if last > 2**20:
        raise ValueError(f"it has a backward pass with the number {last}")
    passes = []
    for number in range(1, last + 1):
        values = _decode(_content(folder / f"backward-{number}.json")["values"])
        if not all(isinstance(value, Description) for value in values.values()):
            raise ValueError(f"backward pass {number} has something that is no tensor")
        passes.append(Backward(number, values))
    return passes


def load_call(path: str | Path) -> Call:
    """Returns the call that a folder of a record holds, to be looked at or made again.

    Where the record has no tensors, the call gets tensors without elements, on the meta device.

    Args:
        path: The folder of one call, such as "record/rank0-pid7-000001-npu_fusion_attention".

    Raises:
        FeatureError: It is no such folder, or what is in it is damaged or was changed.

    Example:
        >>> import tempfile, torch
        >>> from fusion_attention import load_call, npu_fusion_attention, record
        >>> query = torch.randn(1, 2, 8, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with record(folder):
        ...         _ = npu_fusion_attention(query, query, query, 2, "BNSD", scale=0.5)
        ...     (saved,) = Path(folder).iterdir()
        ...     call = load_call(saved)
        >>> call.function, call.arguments["scale"]
        ('npu_fusion_attention', 0.5)
    """
    saved = read(Path(path))
    if saved.kept == "all":
        elements, _ = saved.tensors()
    else:
        elements = {
            name: tensors.without_elements(value)
            for name, value in saved.arguments.items()
            if isinstance(value, Description)
        }
    return Call(saved.function, saved.arguments | elements)


def _content(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    if content.get("format") != FORMAT:
        raise FeatureError(f"{path} is not a recorded call")
    if content.get("version") != VERSION:
        raise FeatureError(
            f"{path} has version {content.get('version')!r:.20} of the format, and this release of "
            f"fusion_attention reads version {VERSION}"
        )
    return content


def _elements(path: Path, values: dict[str, Value]) -> dict[str, Tensor]:
    """Reads the stored tensors of `values` and holds each to its description."""
    descriptions = {n: value for n, value in values.items() if isinstance(value, Description)}
    found = files.read_tensors(path)
    if found.keys() != descriptions.keys():
        raise FeatureError(f"{path} does not hold the tensors {', '.join(descriptions)}")
    for name, expected in descriptions.items():
        tensor = found[name]
        if tensor.dtype != tensors.DTYPES[expected.dtype]:
            raise FeatureError(f"{path}: {name} is {tensor.dtype}, recorded was {expected.dtype}")
        if tuple(tensor.shape) != expected.stored_shape:
            raise FeatureError(
                f"{path}: {name} has the shape {list(tensor.shape)}, and its description says "
                f"{list(expected.stored_shape)}"
            )
        if tensors.digest(tensor.contiguous()) != expected.sha256:
            raise FeatureError(f"{path}: {name} was changed after it was recorded")
    return {name: found[name] for name in descriptions}


def _expanded(found: dict[str, Tensor], values: dict[str, Value]) -> dict[str, Tensor]:
    return {name: tensor.expand(values[name].shape) for name, tensor in found.items()}


def _encode(values: dict[str, Value]) -> dict[str, Any]:
    return {
        name: {"tensor": tensors.to_json(value)} if isinstance(value, Description) else value
        for name, value in values.items()
    }


def _decode(values: Any) -> dict[str, Value]:
    """The reverse of `_encode`; raises ValueError for what it cannot have written."""
    if not isinstance(values, dict):
        raise ValueError("a table of values is none")
    return {name: _decode_value(name, value) for name, value in values.items()}


def _decode_value(name: str, value: Any) -> Value:
    if isinstance(value, dict):
        if value.keys() != {"tensor"}:
            raise ValueError(f"{name} is a table that describes no tensor")
        return tensors.from_json(value["tensor"])
    if isinstance(value, list):
        if not all(isinstance(item, int | float) for item in value):
            raise ValueError(f"{name} is a list of something else than numbers")
        return value
    return value
