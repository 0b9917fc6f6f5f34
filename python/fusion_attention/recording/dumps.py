"""What a replay may be held against: another record, or tensors that a device's program saved.

A dump is a .safetensors or .pt file of tensors by name (out, softmax_max, softmax_sum, dq, dk, dv,
...), or a folder with one such file for each tensor, or what the vendor's tool msprobe saved.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusion_attention._errors import FeatureError
from fusion_attention.recording import files, saved
from fusion_attention.recording.listing import calls_before, calls_in
from fusion_attention.recording.saved import SavedCall

_ENDINGS = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Other:
    """The other side of a comparison: a record or a dump, whichever it is.

    Attributes:
        call: The same call in another record.
        dump: Tensors by name.
        source: Where it is.
    """

    source: Path
    call: SavedCall | None = None
    dump: dict[str, Tensor] | None = None


def find(path: Path, chosen: list[tuple[int, SavedCall]], folders: list[Path]) -> list[Other]:
    """Returns what stands against each of the calls that are replayed.

    Args:
        path: A record, the folder of a call, a dump, or a folder of dumps that are named as the
            calls' folders or by their numbers: 1.safetensors, 2.pt, 3/out.pt; or msprobe's.
        chosen: The numbers of the calls that are replayed, from 1, and the calls.
        folders: The folders of all calls of the record.

    Raises:
        FeatureError: Something is missing there or cannot be read.
    """
    if not path.exists():
        raise FeatureError(f"{path} does not exist")
    if path.is_file() or (path / "call.json").exists() or _is_dump(path):
        if len(chosen) != 1:
            raise FeatureError(
                f"{path} has the results of one call; say with --call which of the {len(chosen)} "
                "recorded calls it belongs to"
            )
        if (path / "call.json").exists():
            return [Other(path, call=saved.read(path))]
        return [Other(path, dump=_read(path))]
    if others := calls_in(path):
        if len(others) != len(folders):
            raise FeatureError(
                f"{path} has {len(others)} recorded calls and the record has {len(folders)}: which "
                "belong together? Compare single calls by their folders."
            )
        return [Other(others[number - 1], call=saved.read(others[number - 1]))
                for number, _ in chosen]  # fmt: skip
    if any(path.glob("NPU.*.forward.output.0.pt")):
        return [_msprobe(path, call, calls_before(folders, number)) for number, call in chosen]
    return [_named_dump(path, number, call) for number, call in chosen]


def _msprobe(path: Path, call: SavedCall, index: int) -> Other:
    """Reads what msprobe saved of the call with this index, from 0, of its function.

    It has a file for each result: NPU.npu_fusion_attention.0.forward.output.0.pt is the first of
    the first call.
    """
    stem = f"NPU.{call.function}.{index}.forward.output"
    results = enumerate(saved.RESULTS[call.function])
    found = {name: path / f"{stem}.{place}.pt" for place, name in results}
    dump = {name: _only(file) for name, file in found.items() if file.exists()}
    if not dump:
        raise FeatureError(f"{path} has no {stem}.0.pt")
    return Other(path / stem, dump=dump)


def _named_dump(path: Path, number: int, call: SavedCall) -> Other:
    stems = (call.folder.name, str(number))
    candidates = [path / f"{stem}{ending}" for stem in stems for ending in ("", *_ENDINGS)]
    for candidate in candidates:
        if candidate.exists():
            return Other(candidate, dump=_read(candidate))
    raise FeatureError(
        f"{path} has nothing for call {number}: expected {number}.safetensors, {number}.pt or a "
        f"folder {number} (or {call.folder.name} in place of {number})"
    )


def _is_dump(path: Path) -> bool:
    """Whether a folder is itself a dump: one file for each tensor."""
    names = {name for results in saved.RESULTS.values() for name in results}
    return any(file.suffix in _ENDINGS and file.stem in names for file in path.iterdir())


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS)
        return {file.stem: _only(file) for file in inside}
    if path.suffix == ".safetensors":
        return files.read_tensors(path)
    if path.suffix in _ENDINGS:
        return _read_pt(path)
    raise FeatureError(f"{path} is neither a .safetensors nor a .pt file")


def _only(path: Path) -> Tensor:
    tensors = _read(path)
    if len(tensors) != 1:
        raise FeatureError(f"{path} has {len(tensors)} tensors; in a folder each has its own file")
    return next(iter(tensors.values()))


def _read_pt(path: Path) -> dict[str, Tensor]:
    """Reads torch.save's format with the loader that builds tensors and runs nothing."""
    files.require_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeatureError(
            f"{path} cannot be read as tensors alone ({reason:.200}); save a dict of plain tensors "
            "that were moved with .cpu()"
        ) from None
    if isinstance(content, Tensor):
        return {path.stem: content.detach()}
    if isinstance(content, dict) and all(isinstance(x, Tensor) for x in content.values()):
        return {str(name): tensor.detach() for name, tensor in content.items()}
    raise FeatureError(f"{path} holds something else than a tensor or a dict of tensors")
