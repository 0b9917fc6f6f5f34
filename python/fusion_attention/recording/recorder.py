"""Writes every call of the family, its results and its backward passes into a folder.

It looks at tensors and changes none; calls, graphs and random numbers are what they are without it.
Calls inside a compiled graph are not seen: there is no call to see.
"""

import contextlib
import operator
import os
import platform
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fusion_attention import __version__, _library, _machine, _observers
from fusion_attention._call import Call
from fusion_attention._errors import FeatureError
from fusion_attention.recording import gradients, saved, tensors
from fusion_attention.recording.listing import folder_name
from fusion_attention.recording.saved import Backward, SavedCall


class Recorder:
    """An observer that saves what it is shown."""

    def __init__(self, folder: str | Path, kept: str = "all", limit: int | None = None) -> None:
        if kept not in saved.KEPT:
            raise FeatureError(f"tensors must be one of {', '.join(saved.KEPT)}, not {kept!r}")
        if limit is not None and limit < 0:
            raise FeatureError(f"limit must be a number of calls or None, not {limit}")
        self.folder = Path(folder).absolute()  # the program may change its folder
        self._kept = kept
        self._limit = limit
        self._lock = threading.Lock()
        self._count = 0

    def before(self, call: Call) -> None:
        """A call that will be refused leaves nothing behind."""

    def after(self, call: Call, result: Any) -> None:
        """Saves a call that succeeded, and waits for its backward passes."""
        results = dict(zip(saved.RESULTS[call.function], _as_tuple(result), strict=True))
        if not all(map(_has_elements, call.arguments.values())):
            _warn_of_no_elements("call", stacklevel=5)
            return
        with self._lock:
            if self._limit is not None and self._count >= self._limit:
                return
            self._count += 1
            folder = self._new_folder(call.function)
        inputs, arguments = self._describe(call.arguments)
        outputs, described_results = self._describe(results)
        with self._clear_disk_errors():
            saved.write(
                SavedCall(
                    folder=folder,
                    kept=self._kept,
                    function=call.function,
                    arguments=arguments,
                    results=described_results,
                    autocast=_autocast_dtype(call),
                    grad_enabled=torch.is_grad_enabled(),
                    machine=machine_facts(),
                ),
                inputs,
                outputs,
            )
        if call.function in saved.DIFFERENTIABLE:
            gradients.watch(call, results["out"], self._backward_saver(folder))

    def _backward_saver(self, folder: Path) -> gradients.Seen:
        """Returns what saves the backward passes of the call in `folder`. It holds no tensor."""
        passes = 0

        def save(dy: Tensor | None, found: dict[str, Tensor]) -> None:
            nonlocal passes
            named = found if dy is None else {"dy": dy, **found}
            if not all(map(_has_elements, named.values())):
                _warn_of_no_elements("backward pass", stacklevel=3)
                return
            passes += 1
            elements, values = self._describe(named)
            backward = Backward(passes, values)
            with self._clear_disk_errors():
                saved.write_backward(folder, self._kept, backward, elements)

        return save

    def _describe(self, values: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the elements to store, and all values with descriptions in place of tensors."""
        elements, described = {}, {}
        for name, value in values.items():
            if not isinstance(value, Tensor):
                described[name] = _plain(name, value)
            elif self._kept == "none":
                described[name] = tensors.describe(value, None)
            else:
                elements[name] = tensors.plain_copy(value)
                described[name] = tensors.describe(value, elements[name])
        return elements, described

    def _new_folder(self, function: str) -> Path:
        """Makes the folder of the next call. An earlier process may have had our number."""
        with self._clear_disk_errors():
            while True:
                folder = self.folder / folder_name(_rank(), os.getpid(), self._count, function)
                try:
                    folder.mkdir(parents=True)
                    return folder
                except FileExistsError:
                    if not self.folder.is_dir():
                        raise
                    self._count += 1

    @contextlib.contextmanager
    def _clear_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeatureError(f"cannot record into {self.folder}: {error}") from None


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _has_elements(value: Any) -> bool:
    """Whether a value is no tensor, or one whose elements can be read."""
    if not isinstance(value, Tensor):
        return True
    functorch = torch._C._functorch
    # The second is what is_grads_batched=True hands to a backward pass.
    wrapped = functorch.is_functorch_wrapped_tensor(value) or functorch.is_legacy_batchedtensor(
        value
    )
    return not (value.is_meta or wrapped or isinstance(value, FakeTensor))


def _warn_of_no_elements(what: str, stacklevel: int) -> None:
    warnings.warn(
        f"fusion_attention: a {what} on tensors without elements of their own (meta, fake, or "
        "inside PyTorch's transforms) is not recorded.",
        stacklevel=stacklevel,
    )


def _plain(name: str, value: Any) -> Any:
    """Returns an argument as JSON can hold it: numpy's numbers and the like become Python's."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return float(value)
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        return [_plain(name, item) for item in value]
    except TypeError:
        pass
    try:
        return float(value)
    except (TypeError, ValueError):
        raise FeatureError(f"cannot record {name}, a {type(value).__name__}") from None


def _autocast_dtype(call: Call) -> str | None:
    """The dtype that autocast gives the call's tensors, if it is on."""
    device = next(x.device.type for x in call.arguments.values() if isinstance(x, Tensor))
    if not torch.is_autocast_enabled(device):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def machine_facts() -> dict[str, Any]:
    """What a reader must know to understand why two results differ."""
    return {
        "fusion_attention": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _machine.cpu_name(),
        "target": _library.target(),
        "threads": torch.get_num_threads(),
        "rank": _rank(),
        "process": os.getpid(),
    }


@contextlib.contextmanager
def record(
    folder: str | Path, tensors: str = "all", limit: int | None = None
) -> Iterator[Recorder]:
    """Saves every call of the family that is made inside the `with` block, by any thread.

    A call is saved once it has succeeded; a backward pass through it is saved beside it, also when
    it happens after the block. Results, graphs and random numbers are what they would be without
    it. The environment variable FUSION_ATTENTION_RECORD=folder does the same for a whole program.
    Calls inside a compiled graph (torch.compile) are not seen; run eagerly to record them.

    `fusion_attention.replay(folder)` makes the calls again and compares every bit.

    Args:
        folder: Gets a folder for each call, named by rank, process and number; it may exist, and
            several processes may use it at once.
        tensors: What is kept of tensors. "all": their elements, so that the calls can be made
            again (a compressed atten_mask is 4 MiB in every call). "statistics": a digest, minimum,
            maximum, mean, norm, and how many elements are NaN or infinite, so that two records can
            be compared. "none": shapes, strides and dtypes.
        limit: The number of calls after which nothing more is saved; None saves all.

    Raises:
        FeatureError: The folder cannot be written, or an argument makes no sense.

    Example:
        >>> import tempfile, torch
        >>> from fusion_attention import npu_fusion_attention, record, replay
        >>> query = torch.randn(1, 2, 64, 16, requires_grad=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with record(folder):
        ...         out = npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.9)[0]
        ...         out.sum().backward()
        ...     replay(folder).same
        True
    """
    recorder = Recorder(folder, tensors, limit)
    _observers.add(recorder)
    try:
        yield recorder
    finally:
        _observers.remove(recorder)


def record_program() -> None:
    """Records from now to the end of the process, as the environment variables say."""
    limit = os.environ.get("FUSION_ATTENTION_RECORD_LIMIT")
    if limit and not limit.isdecimal():
        raise FeatureError(
            f"expected the environment variable FUSION_ATTENTION_RECORD_LIMIT to be a number of "
            f"calls, but got {limit:.40}"
        )
    kept = os.environ.get("FUSION_ATTENTION_RECORD_TENSORS") or "all"
    folder = os.environ["FUSION_ATTENTION_RECORD"]
    _observers.add(Recorder(folder, kept, int(limit) if limit else None))
